"""How long questions take that the store answers over 100 million rows of flows.

The rows are made up by the database and inserted into the product's own tables, a day of 1,000 labels with
100,000 pairs of addresses; what follows an insert (roll-ups by minute, projections) is the product's as well.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

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

TALKERS = f"""
SELECT label, src, dst, sum(bytes) AS sent FROM {DATABASE}.flows
GROUP BY label, src, dst ORDER BY sent DESC LIMIT 10
"""
LABELS = f"SELECT label, sum(bytes) AS sent FROM {DATABASE}.flows GROUP BY label ORDER BY sent DESC LIMIT 10"
BY_MINUTE = f"""
SELECT label, src, dst, sum(bytes) AS sent FROM {DATABASE}.flows_1m
GROUP BY label, src, dst ORDER BY sent DESC LIMIT 10
"""


def fill(database: Database, rows: int) -> float:
    """Insert so many; the seconds it took."""
    start, began = int(time.time()) - _DAY, time.monotonic()
    values = ", ".join(_VALUES[name].format(start=start, day=_DAY, rows=rows) for name in FLOWS)
    for first in range(0, rows, _AT_ONCE):
        made_up = f"(SELECT number, {_PAIR} FROM numbers({first}, {min(_AT_ONCE, rows - first)}))"
        database.command(f"INSERT INTO {DATABASE}.flows ({names(FLOWS)}) SELECT {values} FROM {made_up}")
    return time.monotonic() - began


def settle(database: Database) -> None:
    """Until the roll-up is as small as the database makes it by itself in the end."""
    database.command(f"OPTIMIZE TABLE {DATABASE}.flows_1m FINAL")


def ask(database: Database, question: str, times: int) -> list[float]:
    """Seconds of each answer."""
    found = []
    for _ in range(times):
        start = time.monotonic()
        database.query(question)
        found.append(time.monotonic() - start)
    return found


async def run(directory: Path, rows: int, times: int) -> None:
    async with Store(StoreConfig(path=directory)) as store:
        engine = store._engine  # the store has no verb for made-up rows
        spent = await engine.run(fill, rows)
        await engine.run(settle)
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        print(
            f"{rows:,} rows inserted in {spent:.0f} s, {size / 1e9:.1f} GB on disk with roll-ups; "
            f"{times} times each.\n"
        )
        figures = []
        for told, question in (
            ("top talkers: label and pair of addresses, all rows", TALKERS),
            ("top labels, all rows", LABELS),
            ("top talkers, from the roll-up by minute", BY_MINUTE),
        ):
            found = await engine.run(ask, question, times)
            figures.append((told, spread(found, 2)))
        until = time.time_ns()
        start = time.monotonic()
        await store.flows(FlowQuestion(None, until - 300 * 10**9, until, 100))
        figures.append(("`flows --since 5m --limit 100`", f"{time.monotonic() - start:.2f}"))
        table(("question", "s, median (range)"), figures)


def main(quick: bool) -> None:
    with (
        machine.section("Questions over many rows"),
        tempfile.TemporaryDirectory(prefix="eastwest-bench-") as directory,
    ):
        asyncio.run(run(Path(directory), *((2_000_000, 2) if quick else (100_000_000, 7))))


if __name__ == "__main__":
    main("--quick" in sys.argv)
