"""Drives cuts into the outbox: a large one in steps, so that it is sent while the rest is still written."""

import asyncio
from collections.abc import Callable, Iterator

from eastwest.errors import StoreError
from eastwest.meter.drain import Cut
from eastwest.probe.cutter import Cutter
from eastwest.probe.outbox import Outbox

_TURN_SECONDS = 0.001
"""What others, the outbox above all, have between two steps."""


class Recording:
    """Records cuts, one at a time; `told` hears why the disk refuses, or None where it does not."""

    def __init__(self, cutter: Cutter, outbox: Outbox, told: Callable[[StoreError | None], None]) -> None:
        self._cutter = cutter
        self._outbox = outbox
        self._told = told

    async def run(self, cut: Cut | None) -> None:
        """Record a cut, or what is left of an earlier one; to its end, also where this is cancelled."""
        steps = self._steps(cut)
        try:
            for _ in steps:
                await asyncio.sleep(_TURN_SECONDS)
        except asyncio.CancelledError:
            for _ in steps:
                pass
            raise

    def finish(self, cut: Cut | None) -> None:
        """The same at once."""
        for _ in self._steps(cut):
            pass

    def _steps(self, cut: Cut | None) -> Iterator[None]:
        try:
            for _ in self._cutter.record(cut):
                self._outbox.wake()
                yield
            self._told(None)
        except StoreError as error:
            self._told(error)
        self._outbox.wake()
