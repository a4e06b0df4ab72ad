"""How long the product's own questions take over 100 million rows of flows.

The rows are made up by the database and inserted into the product's own tables, a day of 1,000 labels with
100,000 pairs of addresses; what follows an insert (roll-ups by minute, projections) is the product's as well,
and so is every question: it is asked as the API asks it. One answer is held against a sum over all rows.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from bench import machine
from bench.figures import spread, table
from eastwest.store.engine import Database
from eastwest.store.reads import FlowQuestion
from eastwest.store.schema import DATABASE, FLOWS, names
from eastwest.store.store import Store, StoreConfig

_AT_ONCE = 1_000_000
_DAY = 86_400

# A few pairs of workloads have most of the flows; a pair is always on the same host, port and protocol.
_VALUES = {
    "host": "concat('host-', toString(pair % 50))",
    "boot": "1",
    "sequence": "intDiv(number, 4096)",
    "received": "toDateTime({start} + intDiv(number * {day}, {rows}), 'UTC')",
    "src": "toIPv6(concat('10.0.', toString(pair % 250), '.', toString(intDiv(pair, 250) % 250)))",
    "dst": "toIPv6(concat('10.1.', toString(pair % 200), '.', toString(intDiv(pair, 200) % 250)))",
    "src_port": "1024 + rand(1) % 60000",
    "dst_port": "[80, 443, 53, 5432, 6379][1 + pair % 5]",
    "protocol": "if(pair % 5 = 2, 17, 6)",
    "direction": "toInt8(pair % 2)",
    "class": "toInt8(pair % 100 = 99)",
    "packets": "1 + rand(5) % 1000",
    "bytes": "100 + rand(6) % 1000000",
    "start": "toDateTime64({start} + intDiv(number * {day}, {rows}) - 2, 9, 'UTC')",
    "end": "toDateTime64({start} + intDiv(number * {day}, {rows}), 9, 'UTC')",
    "tcp_flags": "27",
    "label": "1 + pair % 1000",
    "port": "toFixedString(concat('veth', toString(pair % 1000)), 16)",
}
_PAIR = "toUInt32(pow(100000, rand(7) / 4294967296.0)) AS pair"

BY_ROWS = f"""
SELECT label, sum(packets), sum(bytes) AS sent FROM {DATABASE}.flows
GROUP BY label, src, dst ORDER BY sent DESC LIMIT {{limit:UInt32}}
"""
_LIMIT = 20
_HOUR = 3_600

Question = Callable[[], Awaitable[object]]


def fill(database: Database, rows: int) -> float:
    """Insert so many; the seconds it took."""
    start, began = int(time.time()) - _DAY, time.monotonic()
    values = ", ".join(_VALUES[name].format(start=start, day=_DAY, rows=rows) for name in FLOWS)
    for first in range(0, rows, _AT_ONCE):
        made_up = f"(SELECT number, {_PAIR} FROM numbers({first}, {min(_AT_ONCE, rows - first)}))"
        database.command(f"INSERT INTO {DATABASE}.flows ({names(FLOWS)}) SELECT {values} FROM {made_up}")
    return time.monotonic() - began


def merging(database: Database) -> bool:
    """Whether the database still puts parts together by itself."""
    ((merges,),) = database.query("SELECT count() FROM system.merges")
    return bool(merges)


def parts(database: Database) -> str:
    """Parts, and rows of the roll-up by minute and of the sums beside it."""
    ((count, rows),) = database.query(
        "SELECT count(), sum(rows) FROM system.parts WHERE active AND table = 'flows_1m'"
    )
    summed = database.query(
        "SELECT name, sum(rows) FROM system.projection_parts WHERE active AND table = 'flows_1m'"
        " GROUP BY name ORDER BY name"
    )
    told = ", ".join(f"{number:,} {name}" for name, number in summed)
    return f"{rows:,} rows by minute in {count} parts, {told}"


async def timed(question: Question, times: int) -> list[float]:
    """Seconds of each answer."""
    found = []
    for _ in range(times):
        start = time.monotonic()
        await question()
        found.append(time.monotonic() - start)
    return found


async def check(store: Store, whole: FlowQuestion) -> float:
    """Hold the answer against a sum over all rows; the seconds that this one takes."""
    start = time.monotonic()
    rows = await store._engine.run(lambda d: d.query(BY_ROWS, {"limit": whole.limit}))
    spent = time.monotonic() - start
    told = msgspec.json.decode(await store.talkers(whole))
    assert [(t["label"], t["packets"], t["bytes"]) for t in told] == [tuple(row) for row in rows]
    return spent


def questions(store: Store, now: int) -> dict[str, Question]:
    """What to say of each, and how it is asked."""

    def ago(seconds: int) -> int:
        return now - seconds * 1_000_000_000

    latest = FlowQuestion(None, ago(300), now, 100)
    return {
        "`talkers`: all that is kept": lambda: store.talkers(FlowQuestion(None, 0, 1 << 62, _LIMIT)),
        "`talkers --since 23h`": lambda: store.talkers(FlowQuestion(None, ago(23 * _HOUR), 1 << 62, _LIMIT)),
        "`talkers --since 1h`": lambda: store.talkers(FlowQuestion(None, ago(_HOUR), 1 << 62, _LIMIT)),
        "`talkers --label label=7`": lambda: store.talkers(FlowQuestion([7], 0, 1 << 62, _LIMIT)),
        "`minutes`, the last hour": lambda: store.minutes(None, ago(_HOUR), now),
        "`flows --since 5m --limit 100`": lambda: store.flows(latest),
    }


async def run(directory: Path, rows: int, times: int) -> None:
    async with Store(StoreConfig(path=directory)) as store:
        engine = store._engine  # the store has no verb for made-up rows
        busy = time.process_time()
        spent = await engine.run(fill, rows)
        while await engine.run(merging):
            await asyncio.sleep(1)
        busy = time.process_time() - busy
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        print(
            f"{rows:,} rows inserted in {spent:.0f} s, {busy * 1e6 / rows:.2f} CPU s per million with merges "
            f"and making them up; {size / 1e9:.1f} GB on disk with roll-ups: {await engine.run(parts)}. "
            f"Each question {times} times.\n"
        )
        figures = [
            (told, spread(await timed(question, times), 2))
            for told, question in questions(store, time.time_ns()).items()
        ]
        whole = await check(store, FlowQuestion(None, 0, 1 << 62, _LIMIT))
        figures.append(("a sum over all rows, which says the same", f"{whole:.2f}"))
        table(("question", "s, median (range)"), figures)


def main(quick: bool) -> None:
    with (
        machine.section("Questions over many rows"),
        tempfile.TemporaryDirectory(prefix="eastwest-bench-") as directory,
    ):
        asyncio.run(run(Path(directory), *((2_000_000, 2) if quick else (100_000_000, 7))))


if __name__ == "__main__":
    main("--quick" in sys.argv)
