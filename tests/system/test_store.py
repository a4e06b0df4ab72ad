"""The store against a real chDB: once and only once, through crashes, full disks and second servers."""

import asyncio
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from eastwest.bus.messages import Evidence
from eastwest.errors import StoreError
from eastwest.meter.rows import FLOW_ROW
from eastwest.store import engine, writes
from eastwest.store.batch import Batch
from eastwest.store.detection import Limits
from eastwest.store.engine import Database
from eastwest.store.reads import FlowQuestion
from eastwest.store.store import Store, StoreConfig
from eastwest.store.watching import FlowFilter, Window
from tests.conftest import require
from tests.system.fake_probe import START, flow_rows, total_rows, workload

H = ("h", 1)


def _flows(sequence: int, packets: int, host: str = "h") -> Batch:
    return Batch(host, 1, sequence, "flows", flow_rows([1], [packets]))


async def _stored(store: Store) -> dict[int, int]:
    return (await store.stored({H: 2**64 - 1}, {}))[H].packets


def test_repeats_are_refused_for_ever(tmp_path: Path) -> None:
    """Within a group, in the next one, and after a restart."""

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            written = await store.write([_flows(1, 10), _flows(1, 10), _flows(2, 20), _flows(1, 5, "other")])
            assert (written.stored, written.repeats, written.rows, written.packets) == (3, 1, 3, 35)
            assert (await store.write([_flows(2, 20), _flows(3, 30)])).repeats == 1
        async with Store(StoreConfig(path=tmp_path)) as store:
            assert (await store.write([_flows(1, 10), _flows(3, 30)])).stored == 0
            assert await _stored(store) == {1: 60}

    asyncio.run(scenario())


def test_crash_between_rows_and_number_neither_loses_nor_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are in, the numbers not: the next attempt finds them stored, and only the one after that, or
    one of the next server, is told of repeats."""
    insert = Database.insert

    def fail_at_numbers(self: Database, table: str, columns: list[str], rows: bytes, *form: str) -> None:
        if table.endswith(".batches"):
            raise StoreError("pulled the plug")
        insert(self, table, columns, rows, *form)

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            await store.write([_flows(1, 10)])
            with monkeypatch.context() as patch:
                patch.setattr(Database, "insert", fail_at_numbers)
                with pytest.raises(StoreError):
                    await store.write([_flows(2, 20), _flows(3, 30)])
            written = await store.write([_flows(1, 10), _flows(2, 20), _flows(3, 30), _flows(4, 40)])
            assert (written.repeats, [batch.sequence for batch in written.batches]) == (1, [2, 3, 4])
            assert (await store.write([_flows(3, 30)])).repeats == 1
            assert await _stored(store) == {1: 100}
            with monkeypatch.context() as patch:
                patch.setattr(Database, "insert", fail_at_numbers)
                with pytest.raises(StoreError):
                    await store.write([_flows(5, 50)])
        async with Store(StoreConfig(path=tmp_path)) as store:
            assert (await store.write([_flows(5, 50), _flows(6, 60)])).stored == 1
            assert await _stored(store) == {1: 210}

    asyncio.run(scenario())


def test_killed_while_writing_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """A process is killed in the middle of its inserts; what is written again afterwards is there once."""
    code = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.system.test_store import _flows
from eastwest.store.store import Store, StoreConfig
async def main():
    async with Store(StoreConfig(path=Path({str(tmp_path)!r}))) as store:
        for sequence in range(1, 100000):
            await store.write([_flows(sequence, 1)])
            print(sequence, flush=True)
asyncio.run(main())
"""
    acknowledged = 0
    for round_ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                acknowledged = int(line)
                if acknowledged >= 40 * (round_ + 1):
                    break
            process.kill()

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            before = (await _stored(store))[1]
            assert before >= acknowledged
            await store.write([_flows(sequence, 1) for sequence in range(1, 201)])
            assert await _stored(store) == {1: 200}

    asyncio.run(scenario())


def test_one_insert_is_one_part_whatever_its_times(tmp_path: Path) -> None:
    """Flows of a hundred different days in one insert: one part, in the table and in the roll-up."""

    async def scenario() -> None:
        rows = np.concatenate([flow_rows([1], [1], START + day * 86400 * 10**9) for day in range(300)])
        async with Store(StoreConfig(path=tmp_path)) as store:
            await store.write([Batch("h", 1, 1, "flows", rows)])
            parts = await store._engine.run(
                lambda d: d.query(
                    "SELECT table, count() FROM system.parts WHERE database = 'eastwest' AND active"
                    " AND table LIKE 'flows%' GROUP BY table ORDER BY table"
                )
            )
            assert [tuple(p) for p in parts] == [("flows", 1), ("flows_1m", 1)]

    asyncio.run(scenario())


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_many_old_parts_are_removed_without_an_army_of_threads(tmp_path: Path) -> None:
    """A server that inserts for minutes on end has no more threads, and descriptors of them, than before."""
    keep = "ALTER TABLE eastwest.alerts MODIFY SETTING cleanup_delay_period = 1, old_parts_lifetime = {}"
    old = "SELECT count() FROM system.parts WHERE database = 'eastwest' AND table = 'alerts' AND NOT active"

    def fill(database: Database) -> int:
        database.command(keep.format(3600))
        for verb in ("DETACH", "ATTACH"):  # so that this is heeded at once
            database.command(f"{verb} TABLE eastwest.alerts")
        for number in range(200):
            database.command(f"INSERT INTO eastwest.alerts (id) VALUES ('{number}')")
        database.command("OPTIMIZE TABLE eastwest.alerts FINAL")
        return int(database.query(old)[0][0])

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            many = await store._engine.run(fill)
            assert many >= 200
            before = _threads()
            await store._engine.run(lambda d: d.command(keep.format(0)))
            async with asyncio.timeout(60):
                while (await store._engine.run(lambda d: d.query(old)))[0][0] >= many:
                    await asyncio.sleep(0.2)
            assert _threads() < before + 50

    asyncio.run(scenario())


def test_totals_are_the_latest_of_each_account(tmp_path: Path) -> None:
    """A late older message changes nothing; an account that had no label moves to its own."""

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            unnamed = total_rows({7: 10})
            unnamed["label"] = 0
            await store.write([Batch("h", 1, 3, "totals", total_rows({1: 30}))])
            await store.write([Batch("h", 1, 2, "totals", total_rows({1: 20}))])
            await store.write([Batch("h", 1, 4, "totals", unnamed)])
            assert (await store.totals())[H].seen == {1: 30, 0: 10}
            await store.write([Batch("h", 1, 5, "totals", total_rows({7: 15}))])
            await store.write([Batch("other", 1, 1, "totals", total_rows({7: 4}))])
            totals = await store.totals()
            assert (totals[H].seen, totals[H].cut) == ({1: 30, 7: 15}, 5)
            assert [(t.label, t.counters["egress_packets"]) for t in await store.label_totals()] == [
                (1, 30), (7, 19),
            ]  # fmt: skip

    asyncio.run(scenario())


def test_workload_that_moved_is_where_it_is(tmp_path: Path) -> None:
    """The old host's late word that it is gone does not hide it on the new one."""

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            await store.write([Batch("a", 1, 1, "workloads", workloads=[workload(1, "web", host="a")])])
            await store.write([Batch("b", 1, 1, "workloads", workloads=[workload(1, "web", host="b")])])
            gone = workload(1, "web", host="a", present=False)
            await store.write([Batch("a", 1, 2, "workloads", workloads=[gone])])
            assert [(w.host, w.present) for w in await store.workloads()] == [("b", True)]
            odd = workload(2, "ünïcode ' \\ \" \n")
            await store.write([Batch("a", 1, 3, "workloads", workloads=[odd])])
            assert (await store.workloads())[1] == odd

    asyncio.run(scenario())


def test_present_workloads_are_read_without_those_that_have_gone(tmp_path: Path) -> None:
    """Gone, moved and returned ones, each by its latest word; names of gone ones are found by label."""

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            here = [workload(label, f"w{label}") for label in (1, 2, 3, 4)]
            await store.write([Batch("h", 1, 1, "workloads", workloads=here)])
            await store.write([Batch("h", 1, 2, "totals", total_rows({1: 10, 2: 20, 4: 40, 5: 50}))])
            gone = [workload(label, f"w{label}", present=False) for label in (1, 2, 3)]
            await store.write([Batch("h", 1, 3, "workloads", workloads=gone)])
            await store.write([Batch("h", 1, 4, "workloads", workloads=[workload(2, "back")])])
            await store.write([Batch("g", 1, 1, "workloads", workloads=[workload(3, "moved", host="g")])])
            present = await store.present_workloads()
            assert [(w.label, w.name, w.host) for w in present] == [
                (2, "back", "h"), (3, "moved", "g"), (4, "w4", "h"),
            ]  # fmt: skip
            assert present == [w for w in await store.workloads() if w.present]
            assert await store.present_workloads(or_since=time.time_ns()) == present
            assert await store.present_workloads(or_since=0) == await store.workloads()
            assert await store.names([1, 3, 9]) == {1: "w1", 3: "moved"}
            assert await store.names([]) == {}
            assert [t.label for t in await store.label_totals(gone_too=False)] == [2, 4, 5]
            assert [t.label for t in await store.label_totals()] == [1, 2, 4, 5]

    asyncio.run(scenario())


def test_evidence_that_was_stored_together_is_read_together(tmp_path: Path) -> None:
    """Five packets in one insert, four in the next, read two at a time: each comes once."""

    def packets(host: str, count: int) -> Batch:
        seen = Evidence(1, 7, "veth0", "egress", "e", "10.0.0.1", "192.0.2.9", 1, 2, 6, False, 40, b"E")
        found = [msgspec.structs.replace(seen, length=length) for length in range(count)]
        return Batch(host, 1, 1, "evidence", evidence=found)

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            await store.write([packets("a", 3), packets("b", 2)])
            await store.write([packets("c", 4)])
            since, read = 0, []
            while part := await store.evidence(since, 2):
                since = part[-1].received
                read.append([(seen.host, seen.evidence.length) for seen in part])
            assert read == [
                [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)],
                [("c", 0), ("c", 1), ("c", 2), ("c", 3)],
            ]

    asyncio.run(scenario())


def test_question_without_an_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By time and by memory, with a remedy; the store goes on, and what it asks itself has no bounds."""
    endless = "SELECT count() FROM numbers(1000000000000) WHERE cityHash64(number) = 1"
    large = "SELECT number FROM numbers(20000000) ORDER BY cityHash64(number) LIMIT 1000000"
    monkeypatch.setattr(engine, "BOUNDS", {"max_execution_time": 1, "max_memory_usage": 20_000_000})

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            for asked in (endless, large):
                with pytest.raises(StoreError, match=r"^the question takes .* memory; ask for less: "):
                    await store._engine.ask(lambda d, sql=asked: d.query(sql))
                with pytest.raises(StoreError, match=r"^the question takes .* memory; ask for less: "):
                    await store._engine.ask(lambda d, sql=asked: d.json(sql, {}))
            assert len(await store._engine.run(lambda d: d.query(large))) == 1_000_000
            assert (await store.write([_flows(1, 10)])).stored == 1

    asyncio.run(scenario())


def test_what_the_server_asks_itself_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By time, with a remedy; the ledger's, the watches' and the detectors' statements."""
    endless = "SELECT count() FROM numbers(1000000000000) WHERE cityHash64(number) = 1"
    window = Window({"h": START + 10**10}, START // 10**9)

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            await store.write([_flows(1, 10), _flows(2, 20), Batch("h", 1, 3, "totals", total_rows({1: 1}))])
            asked = [
                store.totals,
                lambda: store.stored({H: 9}, {}),
                lambda: store.patterns(window, Limits(10, 3, 1, 1, 1), {1: 1}),
                lambda: store.traffic(window, [60], [1]),
                lambda: store.top_flows(window, FlowFilter([1], 60), 10),
            ]
            for question in asked:
                await question()
            with monkeypatch.context() as patch:
                patch.setattr(engine, "OWN_BOUNDS", {"max_execution_time": 1})
                with pytest.raises(StoreError, match=r"^the question takes the store too long, .* keep up"):
                    await store._engine.look(lambda d: d.query(endless))
                patch.setattr(engine, "OWN_BOUNDS", {"max_rows_to_read": 1})
                for question in asked:
                    with pytest.raises(StoreError):
                        await question()
            assert (await store.write([_flows(4, 10)])).stored == 1

    asyncio.run(scenario())


def test_addresses_and_odd_ports_are_shown_as_they_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        import json

        rows = flow_rows([1, 1, 1, 1], [4, 3, 2, 1])
        rows["src"][1] = np.void(bytes(10) + b"\x02\x00\x00\x0a\x00\x01")
        rows["dst"][1] = np.void(bytes(10) + b"\xff" * 6)
        rows["protocol"][1] = 0x0806
        rows["src"][2] = np.void(bytes.fromhex("20010db8000000000000000000000001"))
        rows["port"] = [b"", b"tap\xff", b"0123456789abcde", b'"quote']
        async with Store(StoreConfig(path=tmp_path)) as store:
            await store.write([Batch("h", 1, 1, "flows", rows)])
            flows = json.loads(await store.flows(FlowQuestion([1], 0, 1 << 62, 10)))
            assert [(f["src"], f["dst"], f["port"]) for f in flows] == [
                ("10.0.0.1", "10.0.0.2", ""),
                ("02:00:00:0a:00:01", "ff:ff:ff:ff:ff:ff", "tap\ufffd"),
                ("2001:db8::1", "10.0.0.2", "0123456789abcde"),
                ("10.0.0.1", "10.0.0.2", '"quote'),
            ]

    asyncio.run(scenario())


def test_crash_between_counting_and_dropping_a_day_counts_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import date

    from eastwest.store import retention

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            await store.write([_flows(1, 10)])
            with monkeypatch.context() as patch:
                patch.setattr(retention, "_drop", _fail)
                with pytest.raises(StoreError):
                    await store.expire(date(2099, 1, 1))
            for _ in range(2):
                side = (await store.stored({H: 9}, {}))[H]
                assert (side.packets, side.expired) == ({}, {1: 10})
                await store.expire(date(2099, 1, 1))
            assert (await store.write([_flows(1, 10)])).repeats == 1

    asyncio.run(scenario())


def _fail(*_: object) -> None:
    raise StoreError("pulled the plug")


def test_second_server_is_refused(tmp_path: Path) -> None:
    code = f"""
import asyncio
from pathlib import Path
from eastwest.errors import StoreError
from eastwest.store.store import Store, StoreConfig
async def main():
    try:
        async with Store(StoreConfig(path=Path({str(tmp_path)!r}))):
            print("opened")
    except StoreError as error:
        print(error)
asyncio.run(main())
"""

    async def scenario() -> str:
        async with Store(StoreConfig(path=tmp_path)):
            return await asyncio.to_thread(
                lambda: (
                    subprocess.run(
                        [sys.executable, "-c", code], capture_output=True, text=True, check=True
                    ).stdout
                )
            )

    said = asyncio.run(scenario())
    assert said == (
        f"the store {tmp_path} is in use by another server; "
        "stop it (eastwest down), or choose another state directory\n"
    )


def test_unusable_paths_are_refused(tmp_path: Path) -> None:
    async def enter(path: Path) -> None:
        async with Store(StoreConfig(path=path)):
            pass

    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(StoreError, match=r"cannot open the store .*; correct the path"):
            asyncio.run(enter(path))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = str(tmp_path).encode()
    mounted = libc.mount(b"small", target, b"tmpfs", 0, b"size=96m") == 0
    require(mounted, "mounting a small disk needs CAP_SYS_ADMIN: run the tests as root")
    try:
        yield tmp_path
    finally:
        libc.umount2(target, 2)


def test_full_disk_is_named_and_nothing_is_lost_or_doubled(small_disk: Path) -> None:
    """Writing fails with the remedy; once there is space, the same batches go in, each once."""

    async def scenario() -> None:
        async with Store(StoreConfig(path=small_disk / "store")) as store:
            await store.write([_flows(1, 10)])
            ballast = small_disk / "ballast"
            # Unbuffered: what a full disk refused would be tried again when the file is closed.
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            rows = np.zeros(20000, FLOW_ROW)
            rows["src"] = np.frombuffer(os.urandom(16 * len(rows)), "V16")
            rows["label"], rows["packets"] = 1, 1
            batches = [_flows(2, 20), Batch("h", 1, 3, "flows", rows)]
            for _ in range(3):
                with pytest.raises(StoreError, match=r"disk of the store .* is full; free space, or lower"):
                    await store.write(batches)
            ballast.unlink()
            await store.write(batches)
            assert await _stored(store) == {1: 20030}

    asyncio.run(scenario())


def test_time_of_storing_never_goes_back() -> None:
    clock = writes.Clock()
    clock.pass_by(4_000_000_000)
    first = clock.now()
    assert first > 4_000_000_000 * 10**9
    assert clock.now() == first + 1
