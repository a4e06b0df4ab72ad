"""The sending side of the journal, on a bus that refuses."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from eastwest.bus.client import Bus
from eastwest.errors import BusError
from eastwest.probe import outbox
from eastwest.probe.journal import Journal, Outgoing
from eastwest.probe.outbox import Outbox


class Refusing:
    """Takes messages but for those of `refused`, once each; says which are under way at once."""

    def __init__(self, refused: set[int]) -> None:
        self.refused = refused
        self.taken: list[int] = []
        self.groups: list[list[int]] = []
        self._waiting: list[int] = []

    async def publish(self, subject: str, payload: bytes, *, sequence: int, **_: Any) -> None:
        if not self._waiting:
            self.groups.append(self._waiting)
        self._waiting.append(sequence)
        await asyncio.sleep(0)
        self._waiting = []
        if sequence in self.refused:
            self.refused.remove(sequence)
            raise BusError("full")
        self.taken.append(sequence)


def test_a_cut_ends_in_the_stream_after_all_its_flows(tmp_path: Path, monkeypatch: Any) -> None:
    """Flows go side by side, and again where they were refused; the totals behind them go last, alone."""
    monkeypatch.setattr(outbox, "_RETRY_SECONDS", 0.0)
    bus = Refusing({2, 9})

    async def scenario(journal: Journal) -> None:
        sending = asyncio.create_task(Outbox("h", journal, cast("Bus", bus)).run())
        async with asyncio.timeout(10):
            while journal.outgoing(1):
                await asyncio.sleep(0)
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending

    with Journal(tmp_path / "probe.db") as journal:
        with journal.transaction():
            for sequence in range(1, 12):
                kind = "totals" if sequence in (10, 11) else "flows"
                journal.send(Outgoing(1, sequence, f"eastwest.{kind}.h", b"rows", {}))
        asyncio.run(scenario(journal))
    assert bus.groups == [[1, 2, 3, 4, 5, 6, 7, 8], [2, 9], [9], [10], [11]]
    assert sorted(bus.taken) == list(range(1, 12))
