"""A source: something on the host that knows workloads, and comes and goes as it likes."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

from eastwest.errors import InventoryError
from eastwest.inventory.model import Claim

log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0


def is_there(socket: Path) -> bool:
    """Whether a daemon may be asked there."""
    try:
        return socket.exists()
    except OSError:
        return True  # asking it says why it cannot be asked


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
        """Why it says nothing now, or what of its words cannot be used, with the remedy.

        An absent daemon that nobody asked for is no problem.
        """

        self.away = False
        """Whether its claims are what it said last, not what it says now."""

        self.unheard = True
        """Whether it may have something to say, and has not yet since the start."""

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
            begun = time.monotonic()
            try:
                await self._follow()
                fresh, self.unheard = self.unheard, False
                self._answer(fresh)
                failed = False
            except InventoryError as e:
                failed = True
                self._silent(str(e))
            # One that answers and fails at once, again and again, is asked as rarely as one that is away.
            well = not failed or time.monotonic() - begun > _LONGEST_PAUSE
            pause = _FIRST_PAUSE if well else pause
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def taps_changed(self) -> None:  # noqa: B027 (most do not care)
        """Taps came, went or changed: whoever holds them may be looked up again."""

    @abstractmethod
    async def _follow(self) -> None:
        """Say what there is and follow it. InventoryError: silent. Returns: not installed."""

    def _say(self, claims: dict[str, Claim], refused: str | None = None) -> None:
        """Replace all claims, by whatever key the source knows a workload by; it is well.

        `refused`: what of its words cannot be used, with the remedy.
        """
        if self.problem and not refused:
            log.info("%s: all is well again", self.name)
        self._name(refused)
        fresh = self.away or self.unheard or claims != self._claims
        self.away = self.unheard = False
        self._claims = claims
        self._answer(fresh)

    def _silent(self, problem: str) -> None:
        self._name(problem)
        # What it said holds from now on only for what is still there.
        fresh, self.away = not self.away and bool(self._claims), True
        self._answer(fresh)

    def _name(self, problem: str | None) -> None:
        named = f"{self.name}: {problem}" if problem else None
        if named and named != self.problem:
            log.warning("%s", named)
        self.problem = named

    def _answer(self, fresh: bool) -> None:
        if fresh or not self.answered.is_set():
            self.answered.set()
            self._changed()
