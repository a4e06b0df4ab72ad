"""The ledger: every term counted where it lies, every packet once, in any state of the way."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eastwest.bus.messages import (
    FLOWS,
    STREAM,
    TOTALS,
    PendingMessage,
)
from eastwest.bus.stream import waiting
from tests.system.bus_server import until
from tests.system.fake_probe import FakeProbe, flow_rows, total_rows
from tests.system.server_site import ALL, site


def test_ledger_counts_every_message_once_wherever_it_is(tmp_path: Path) -> None:
    """Stored, in the stream, in the outbox, held, lost: the same message in two places counts once."""

    async def scenario() -> None:
        async with site(tmp_path, collecting=False) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.answer()
            await probe.report(time.time_ns())
            await probe.flows([1, 2], [10, 20])
            both = await probe.flows([1], [5])
            probe.outbox.append(_pending(both, {1: 5}))  # in the stream, its acknowledgement under way
            probe.keep([2], [7])
            probe.seen[1] += 3
            probe.lost[1] = 3
            probe.seen[0] = probe.held = 4
            await probe.totals()
            await probe.flows([1], [1000])  # of the next drain
            probe.seen[1] -= 1000

            async def known() -> bool:
                return len(await s.get("hosts")) == 1

            await until(known)
            expected = {
                0: (4, 0, 4, {}, True),
                1: (18, 0, 15, {"flow_map_full": 3}, True),
                2: (27, 0, 27, {}, True),
            }
            assert await s.ledger() == expected
            async with s.collector:
                await s.settled(4)
            assert await s.ledger() == {
                0: (4, 0, 4, {}, True),
                1: (18, 15, 0, {"flow_map_full": 3}, True),
                2: (27, 20, 7, {}, True),
            }

    asyncio.run(scenario())


def _pending(sequence: int, packets: dict[int, int]) -> PendingMessage:
    return PendingMessage(sequence, packets)


def test_a_deleted_row_or_message_unbalances_the_ledger(tmp_path: Path) -> None:
    """Every term is counted where it lies: what is taken away there is missed, and only there."""

    async def scenario() -> None:
        async with site(tmp_path, collecting=False) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.answer()
            await probe.report(time.time_ns())
            await probe.flows([1, 2], [10, 20])
            await probe.totals()
            async with s.collector:
                await s.settled(2)
            assert await s.ledger() == {
                0: (0, 0, 0, {}, True),
                1: (10, 10, 0, {}, True),
                2: (20, 20, 0, {}, True),
            }

            for statement in (
                "ALTER TABLE eastwest.flows DELETE WHERE label = 1 SETTINGS mutations_sync = 1",
                "DELETE FROM eastwest.flows WHERE label = 2",
            ):
                await s.store._engine.run(lambda database, sql: database.command(sql), statement)
            assert await s.ledger() == {
                0: (0, 0, 0, {}, True),
                1: (10, 0, 0, {}, False),
                2: (20, 0, 0, {}, False),
            }

            await probe.flows([3, 4], [30, 40])
            await probe.flows([4], [2])
            await probe.totals()
            assert (await s.ledger())[3] == (30, 0, 30, {}, True)
            first, _ = [m.position async for m in waiting(s.bus) if m.subject == f"{FLOWS}.h"]
            await (await s.bus.connection()).jetstream().delete_msg(STREAM, first)
            after = await s.ledger()
            assert after[3] == (30, 0, 0, {}, False)
            assert after[4] == (42, 0, 2, {}, False)

    asyncio.run(scenario())


def test_ledger_of_a_silent_probe_comes_from_its_totals(tmp_path: Path) -> None:
    """Two boots, nobody answers: seen is what the accounts said last, and every boot balances for itself."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            for boot, packets in ((1, 10), (2, 5)):
                probe = FakeProbe(s.probe_bus, boot=boot)
                probe.seen[1], probe.lost[1] = 2, 2
                await probe.flows([1], [packets])
                await probe.totals()
            await probe.flows([1], [100])  # a drain that never ended
            await s.settled(5)
            assert (await s.ledger())[1] == (19, 15, 0, {"flow_map_full": 4}, True)

    asyncio.run(scenario())


def test_expired_packets_keep_the_ledger_balanced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.flows([1, 2], [10, 20])
            await probe.totals()
            await s.settled(2)
            assert await s.store.expire(datetime.now(UTC).date() + timedelta(7)) == []
            assert len(await s.store.expire(datetime.now(UTC).date() + timedelta(8))) == 1
            assert await s.ledger() == {
                0: (0, 0, 0, {}, True),
                1: (10, 0, 0, {"expired": 10}, True),
                2: (20, 0, 0, {"expired": 20}, True),
            }
            assert await s.get("flows", **ALL) == []
            assert sum(m["packets"] for m in await s.get("minutes", **ALL)) == 30

    asyncio.run(scenario())


def test_ledger_balances_under_live_traffic(tmp_path: Path) -> None:
    """While messages move, every ledger taken is balanced."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.answer()
            await probe.report(time.time_ns())
            taken = 0

            async def traffic() -> None:
                counted = {1: 0, 2: 0}
                for drain in range(1, 61):
                    for k in range(1, 6):
                        await probe.send(FLOWS, flow_rows([1, 2], [drain, k]).tobytes())
                        counted[1] += drain
                        counted[2] += k
                    # As a probe does: an answer is as of the last drain that ended.
                    cut = await probe.send(TOTALS, total_rows(counted).tobytes())
                    probe.seen, probe.cut = dict(counted), cut
                    # Let several ledgers see this drain's messages in different places.
                    goal = taken + drain % 2
                    await until(lambda goal=goal: _reached(lambda: taken >= goal))

            work = asyncio.create_task(traffic())
            while not work.done():
                for label, entry in (await s.ledger()).items():
                    assert entry[4], (label, entry)
                taken += 1
            await work
            assert taken >= 30
            await s.settled(360)
            assert (await s.ledger())[1] == (9150, 9150, 0, {}, True)
            assert (await s.ledger())[2] == (900, 900, 0, {}, True)

    asyncio.run(scenario())


async def _reached(condition: Callable[[], bool]) -> bool:
    return condition()
