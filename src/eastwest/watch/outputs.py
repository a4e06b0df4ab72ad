"""Telling people: what becomes of an alert's beginning and end outside of this process.

Each output has a queue of its own, of bounded length, and a task that empties it: one that is slow or away
delays nobody else. How often people are told is limited. What there is no room for now is not lost: who
offers it (see `watch.telling`) does so again.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Protocol

from eastwest.bus.background import Working
from eastwest.errors import EastwestError

log = logging.getLogger(__name__)

_MINUTE = 60.0
_FORGET_SECONDS = 3600.0
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


class Output(Working):
    """One way out, with its queue, while it is entered."""

    def __init__(self, way: Way, queue: int, per_minute: int, attempts: int) -> None:
        super().__init__(way.name)
        self.name = way.name
        self._way = way
        self._waiting: asyncio.Queue[Document] = asyncio.Queue(queue)
        self._per_minute = per_minute
        self._attempts = attempts
        self._told: deque[float] = deque()
        self._trouble = ""
        self._troubled = float("-inf")
        self.sent = 0
        self.dropped: Counter[str] = Counter()
        """Notifications that were not told: gave_up (for now), never_told."""
        self.outcomes: list[tuple[str, str, bool]] = []
        """What has become of notifications, for who offered them to take: alert, its state, delivered."""

    @property
    def problem(self) -> str | None:
        """What went wrong within the last hour, and what was not told since the start."""
        if time.monotonic() - self._troubled > _FORGET_SECONDS:
            return None
        lost = ", ".join(f"{reason} {count}" for reason, count in sorted(self.dropped.items()))
        if not self._trouble and not lost:
            return None
        parts = [self._trouble, f"notifications dropped: {lost}" if lost else ""]
        return f"{self.name}: {'; '.join(filter(None, parts))}"

    def offer(self, alert: Document) -> bool:
        """Have it told; at once it is only queued. False: there is no room now."""
        now = time.monotonic()
        while self._told and now - self._told[0] >= _MINUTE:
            self._told.popleft()
        if len(self._told) >= self._per_minute or self._waiting.full():
            return False
        self._waiting.put_nowait(alert)
        self._told.append(now)
        return True

    def drop(self, reason: str) -> None:
        """Count a notification that is not told."""
        self.dropped[reason] += 1
        self._troubled = time.monotonic()

    async def _run(self) -> None:
        while True:
            alert = await self._waiting.get()
            delivered = await self._deliver(alert)
            self.outcomes.append((alert["id"], alert["state"], delivered))

    async def _deliver(self, alert: Document) -> bool:
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
            return True
        self.drop("gave_up")
        return False

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.warning("%s: %s", self.name, trouble)
        self._trouble = trouble
        if trouble:
            self._troubled = time.monotonic()
