"""Telling people: what becomes of an alert's beginning and end outside of this process.

Each output has a queue of its own, of bounded length, and a task that empties it: one that is slow or away
delays nobody else. How often people are told is limited; what is not told, or could not be, is counted.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from eastwest.bus.background import Background
from eastwest.errors import EastwestError

log = logging.getLogger(__name__)

_MINUTE = 60.0
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0

Document = Mapping[str, Any]


class Undelivered(EastwestError):
    """An output did not take a notification; `again`: whether it may the next time."""

    def __init__(self, what: str, again: bool = True) -> None:
        super().__init__(what)
        self.again = again


class Way(Protocol):
    """How a notification leaves. `name` is shown; `send` raises Undelivered."""

    name: str

    async def send(self, alert: Document) -> None: ...


class Output:
    """One way out, with its queue, while it is entered."""

    def __init__(self, way: Way, queue: int, per_minute: int, attempts: int) -> None:
        self._way = way
        self._waiting: asyncio.Queue[Document] = asyncio.Queue(queue)
        self._per_minute = per_minute
        self._attempts = attempts
        self._told: deque[float] = deque()
        self._trouble = ""
        self._work = Background()
        self.sent = 0
        self.dropped: Counter[str] = Counter()
        """Notifications that were not told: too_many (in a minute), queue_full, gave_up."""

    async def __aenter__(self) -> Self:
        await self._work.start(self._run(), self._way.name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._work.stop(kind, error, trace)

    @property
    def problem(self) -> str | None:
        """What went wrong last, and what was not told since the start."""
        lost = ", ".join(f"{reason} {count}" for reason, count in sorted(self.dropped.items()))
        if not self._trouble and not lost:
            return None
        parts = [self._trouble, f"notifications dropped: {lost}" if lost else ""]
        return f"{self._way.name}: {'; '.join(filter(None, parts))}"

    def tell(self, alert: Document) -> None:
        """Have it told; at once it is only queued."""
        now = time.monotonic()
        while self._told and now - self._told[0] >= _MINUTE:
            self._told.popleft()
        if len(self._told) >= self._per_minute:
            self.dropped["too_many"] += 1
            return
        try:
            self._waiting.put_nowait(alert)
        except asyncio.QueueFull:
            self.dropped["queue_full"] += 1
            return
        self._told.append(now)

    async def _run(self) -> None:
        while True:
            await self._deliver(await self._waiting.get())

    async def _deliver(self, alert: Document) -> None:
        delay = _FIRST_DELAY
        for attempt in range(1, self._attempts + 1):
            try:
                await self._way.send(alert)
            except Undelivered as error:
                self._note(str(error))
                if not error.again or attempt == self._attempts:
                    break
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
                continue
            except Exception as error:  # noqa: BLE001 (one output must not end the server)
                self._note(f"cannot send ({type(error).__name__})")
                break
            self.sent += 1
            self._note("")
            return
        self.dropped["gave_up"] += 1

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.warning("%s: %s", self._way.name, trouble)
        self._trouble = trouble
