"""Who talks most: what sums answer is what all rows would, to the packet, whatever the database merged."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eastwest.store import sums, writes
from eastwest.store.batch import Batch
from eastwest.store.reads import FlowQuestion
from eastwest.store.store import Store, StoreConfig
from eastwest.store.talkers import Span, parts
from tests.system.fake_probe import START, flow_rows, mapped

SECOND = 10**9
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86_400 * SECOND
MIDNIGHT = START // DAY * DAY
ALL = Span(0, 1 << 62)
DAYS = 4

# Times that begin and end within a minute, at a minute's, an hour's and a day's edge, in one minute, nowhere.
SPANS = (
    ALL,
    Span(MIDNIGHT, MIDNIGHT + 2 * DAY),
    Span(MIDNIGHT + 5 * HOUR, MIDNIGHT + DAY + 7 * HOUR),
    Span(MIDNIGHT + 5 * HOUR + 3 * MINUTE, MIDNIGHT + 2 * DAY + 4 * HOUR + 59 * MINUTE),
    Span(MIDNIGHT + 7 * SECOND + 1, MIDNIGHT + 3 * DAY + 3 * HOUR + 42 * SECOND + 999),
    Span(MIDNIGHT + 5 * HOUR + 61 * SECOND, MIDNIGHT + 5 * HOUR + 31 * MINUTE + 5),
    Span(MIDNIGHT + 9 * HOUR + 10 * SECOND, MIDNIGHT + 9 * HOUR + 50 * SECOND),
    Span(MIDNIGHT + 6 * HOUR - 7 * SECOND, MIDNIGHT + 6 * HOUR + 50 * SECOND),
    Span(MIDNIGHT + DAY + 1, 1 << 62),
    Span(0, MIDNIGHT + DAY + 23 * HOUR + 59 * MINUTE + 59 * SECOND),
    Span(MIDNIGHT + 2 * HOUR, MIDNIGHT + HOUR),
)

# The last IPv6 address has the bytes of the MAC address.
ADDRESSES = {
    "10.0.0.1": mapped(b"\x0a\x00\x00\x01"),
    "10.0.0.2": mapped(b"\x0a\x00\x00\x02"),
    "2001:db8::1": np.void(bytes.fromhex("20010db8000000000000000000000001")),
    "::200:a:1": np.void(bytes(10) + bytes.fromhex("0200000a0001")),
}
MAC = "02:00:00:0a:00:01"

Talk = tuple[int, str, str]


def _rows(seed: int, count: int = 3000) -> NDArray[Any]:
    """Flows of three labels between all these addresses, over some days; every tenth is of frames."""
    rng = np.random.default_rng(seed)
    rows = flow_rows(list(rng.integers(0, 3, count)), list(rng.integers(1, 1000, count)))
    ends = MIDNIGHT + rng.integers(0, DAYS * DAY, count)
    # Many on the edges: at the nanosecond of a day, an hour, a minute, and just before it.
    for unit, first in ((DAY, 0), (HOUR, 1), (MINUTE, 2)):
        ends[first::6] = ends[first::6] // unit * unit - rng.integers(0, 2, len(ends[first::6]))
    rows["end"], rows["start"] = ends, ends - SECOND
    rows["bytes"] = rng.integers(1, 1 << 40, count)
    rows["src_port"] = rng.integers(1, 9, count)
    addresses = np.array(list(ADDRESSES.values()))
    rows["src"], rows["dst"] = addresses[rng.integers(0, 4, count)], addresses[rng.integers(0, 4, count)]
    rows["protocol"][::10], rows["src"][::10], rows["dst"][::10] = 0x0806, addresses[3], addresses[3]
    return rows


def _expected(
    rows: NDArray[Any], counts: Callable[[NDArray[Any]], NDArray[Any]], labels: list[int] | None = None
) -> list[dict[str, Any]]:
    """What the rows sum to whose end `counts`, as the API says it."""
    text = {bytes(address): name for name, address in ADDRESSES.items()}
    packets: Counter[Talk] = Counter()
    octets: Counter[Talk] = Counter()
    chosen = rows[counts(rows["end"])]
    for row in chosen if labels is None else chosen[np.isin(chosen["label"], labels)]:
        frame = row["protocol"] > 255
        ends = [MAC if frame else text[bytes(row[name])] for name in ("src", "dst")]
        talk = (int(row["label"]), *ends)
        packets[talk] += int(row["packets"])
        octets[talk] += int(row["bytes"])
    return [
        {"label": talk[0], "src": talk[1], "dst": talk[2], "packets": packets[talk], "bytes": octets[talk]}
        for talk in sorted(octets, key=lambda talk: -octets[talk])
    ]


def _within(span: Span) -> Callable[[NDArray[Any]], NDArray[Any]]:
    return lambda ends: (ends >= span.start) & (ends < span.end)


async def _talkers(
    store: Store, span: Span, labels: list[int] | None = None, limit: int = 1000
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await store.talkers(FlowQuestion(labels, *span, limit)))
    return found


async def _compare(store: Store, rows: NDArray[Any]) -> None:
    for span in SPANS:
        assert await _talkers(store, span) == _expected(rows, _within(span)), span
    assert await _talkers(store, SPANS[4], [0, 2]) == _expected(rows, _within(SPANS[4]), [0, 2])
    assert await _talkers(store, SPANS[4], []) == []
    assert await _talkers(store, ALL, limit=5) == _expected(rows, _within(ALL))[:5]


async def _query(store: Store, sql: str) -> list[Any]:
    return [row[0] for row in await store._engine.run(lambda database: database.query(sql))]


async def _merge(store: Store) -> None:
    await store._engine.run(lambda database: database.command("OPTIMIZE TABLE eastwest.flows_1m FINAL"))


async def _parts(store: Store) -> tuple[int, int]:
    """Parts of the roll-up, and how many of them have their sums."""
    (count,) = await _query(
        store,
        "SELECT count() FROM system.parts WHERE active AND database = 'eastwest' AND table = 'flows_1m'",
    )
    (summed,) = await _query(
        store,
        "SELECT uniqExact(parent_name) FROM system.projection_parts"
        " WHERE active AND database = 'eastwest' AND table = 'flows_1m'",
    )
    return int(count), int(summed)


def test_sums_are_those_of_all_rows(tmp_path: Path) -> None:
    """Before any merge, after one, and with parts of both kinds; for every span, label and limit."""

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            await store._engine.run(lambda d: d.command("SYSTEM STOP MERGES eastwest.flows_1m"))
            rows = np.concatenate([_rows(seed) for seed in range(3)])
            for sequence, part in enumerate(np.split(rows, 3)):
                await store.write([Batch("h", 1, sequence, "flows", part)])
            assert await _parts(store) == (3, 0)
            await _compare(store, rows)
            await store._engine.run(lambda d: d.command("SYSTEM START MERGES eastwest.flows_1m"))
            await _merge(store)
            assert await _parts(store) == (1, 1)
            await _compare(store, rows)
            more = _rows(9)
            await store.write([Batch("h", 1, 9, "flows", more)])
            assert await _parts(store) == (2, 1)
            await _compare(store, np.concatenate([rows, more]))

    asyncio.run(scenario())


def test_long_times_are_answered_from_sums(tmp_path: Path) -> None:
    """The database says what it reads of whole days and hours: the projections, not the minutes."""

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            await store.write([Batch("h", 1, 1, "flows", _rows(1, 60_000))])
            await store.write([Batch("h", 1, 2, "flows", _rows(2, 60_000))])
            await _merge(store)
            read = {
                name: await _query(
                    store,
                    f"EXPLAIN SELECT label, {sums.IS_IP} AS ip, src, dst, sum(packets), sum(bytes)"
                    f" FROM eastwest.flows_1m WHERE {sums.number(seconds)} >= 1"
                    " GROUP BY label, ip, src, dst",
                )
                for name, seconds in sums.SUMS.items()
            }
            for name, plan in read.items():
                assert any(f"ReadFromMergeTree ({name})" in line for line in plan), plan

    asyncio.run(scenario())


@contextmanager
def _clock(monkeypatch: pytest.MonkeyPatch, now: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(writes, "time", SimpleNamespace(time_ns=lambda: now))
        yield


def test_minutes_stand_for_flows_that_have_expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a day whose flows are gone, the minutes at the edges count whole; of others, to the nanosecond."""
    old, new, edge = _rows(1), _rows(2), SPANS[4]
    now = time.time_ns()
    today = datetime.fromtimestamp(now / SECOND, UTC).date()

    def overlaps(ends: NDArray[Any]) -> NDArray[Any]:
        return (ends >= edge.start // MINUTE * MINUTE) & (ends < -(-edge.end // MINUTE) * MINUTE)

    async def scenario() -> None:
        async with Store(StoreConfig(path=tmp_path)) as store:
            with _clock(monkeypatch, now - 9 * DAY):
                await store.write([Batch("h", 1, 1, "flows", old)])
            with _clock(monkeypatch, now):
                await store.write([Batch("h", 1, 2, "flows", new)])
            both = np.concatenate([old, new])
            assert await _talkers(store, edge) == _expected(both, _within(edge))
            assert len(await store.expire(today)) == 1
            counted = np.concatenate([old[overlaps(old["end"])], new[_within(edge)(new["end"])]])
            assert await _talkers(store, edge) == _expected(counted, _within(ALL))
            assert await _talkers(store, ALL) == _expected(both, _within(ALL))

    asyncio.run(scenario())


def test_store_of_an_older_version_gets_its_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds is summed as well, and the answers are exact before and after."""
    rows = _rows(1)

    async def summed(store: Store) -> bool:
        return await _parts(store) == (1, 1)

    async def scenario() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sums, "keep", lambda database: None)
            async with Store(StoreConfig(path=tmp_path)) as store:
                await store.write([Batch("h", 1, 1, "flows", rows)])
                assert await _parts(store) == (1, 0)
        async with Store(StoreConfig(path=tmp_path)) as store:
            await _compare(store, rows)
            deadline = time.monotonic() + 60
            while not await summed(store):
                assert time.monotonic() < deadline, "no sums after a minute"
            await _compare(store, rows)
        async with Store(StoreConfig(path=tmp_path)) as store:
            assert await summed(store)

    asyncio.run(scenario())


def test_a_time_is_cut_without_gap_or_overlap() -> None:
    """Every piece of whole units is aligned to them, and together they are the time."""
    rng = np.random.default_rng(1)
    for _ in range(500):
        start = int(rng.integers(0, 3 * DAY))
        whole = Span(start, start + int(rng.integers(0, 10 ** rng.integers(1, 15))))
        units = (86_400, 3_600, 60)
        found, left = parts(whole, units)
        for unit, spans in zip(units, found, strict=True):
            assert all(edge % (unit * SECOND) == 0 for span in spans for edge in span)
        pieces = sorted([*(span for spans in found for span in spans), *left])
        assert sum(piece.end - piece.start for piece in pieces) == whole.end - whole.start
        assert all(one.end == other.start for one, other in pairwise(pieces))
        assert all(span.end - span.start < 2 * MINUTE for span in left)
