"""A source: something on the host that knows workloads, and comes and goes as it likes."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from eastwest.errors import InventoryError
from eastwest.inventory.model import Claim

log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0


class Source(ABC):
    """Follows one daemon or one kind of process. What it last said holds while it is away.

    An implementation connects, says all claims once, and then what changes; it raises InventoryError when its
    daemon goes, hangs or says what cannot be understood, and `run` comes back to it with growing pauses.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.hearsay = False
        """Whether it knows workloads only by what it was told of their interfaces."""
        self.problem: str | None = None
        """Why it says nothing now, with the remedy. An absent daemon that nobody asked for is no problem."""

        self.answered = asyncio.Event()
        """Set once it has said all its claims, or is known to be silent."""

        self._claims: dict[str, Claim] = {}
        self._changed: Callable[[], None] = lambda: None

    @property
    def claims(self) -> Iterable[Claim]:
        """What it says now, or said last."""
        return self._claims.values()

    async def run(self, changed: Callable[[], None]) -> None:
        """Follow until cancelled; `changed` is called whenever `claims` did."""
        self._changed = changed
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._follow()
                self._answer(False)
            except InventoryError as e:
                pause = _FIRST_PAUSE if self.problem is None else min(pause * 2, _LONGEST_PAUSE)
                self._silent(str(e))
            await asyncio.sleep(pause)

    def links_changed(self) -> None:  # noqa: B027 (most do not care)
        """Interfaces came, went or changed: whoever holds them may be looked up again."""

    @abstractmethod
    async def _follow(self) -> None:
        """Say what there is and follow it. InventoryError: silent. Returns: not installed."""

    def _say(self, claims: dict[str, Claim]) -> None:
        """Replace all claims, by whatever key the source knows a workload by; it is well."""
        if self.problem:
            log.info("%s: answers again", self.name)
        self.problem = None
        fresh = claims != self._claims
        self._claims = claims
        self._answer(fresh)

    def _silent(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("%s: %s", self.name, problem)
        self.problem = f"{self.name}: {problem}"
        self._answer(False)

    def _answer(self, fresh: bool) -> None:
        if fresh or not self.answered.is_set():
            self.answered.set()
            self._changed()
