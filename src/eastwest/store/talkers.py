"""Who talks to whom most, over any time: whole days and hours from the sums kept beside `flows_1m`, the rest
from its minutes, and what is left of a minute from the flows themselves.

A flow row counts at its `end`, in each of them, so the answer is what all rows would give, to the packet.
Where a day's flows have expired, the minutes that the time begins and ends in count whole.
"""

from collections.abc import Sequence
from typing import NamedTuple

from eastwest.store.engine import Database
from eastwest.store.reads import FlowQuestion, address
from eastwest.store.schema import DATABASE
from eastwest.store.sums import IS_IP, SUMS, number

_SECOND = 1_000_000_000
_MINUTE = 60
_LAST = (1 << 32) // 86_400 * 86_400 * _SECOND
"""No minute of a DateTime is later."""


class Span(NamedTuple):
    """From `start` to before `end`, unix ns."""

    start: int
    end: int


def parts(whole: Span, units: Sequence[int]) -> tuple[list[list[Span]], list[Span]]:
    """For each unit (seconds, the longest first) what lies in whole ones of it and in no longer ones; and
    the rest."""
    found, left = [], [whole] if whole.start < whole.end else []
    for unit in (seconds * _SECOND for seconds in units):
        inner, outer = [], []
        for span in left:
            first, last = -(-span.start // unit) * unit, span.end // unit * unit
            if first < last:
                inner.append(Span(first, last))
                outer += [Span(span.start, first), Span(last, span.end)]
            else:
                outer.append(span)
        found.append(inner)
        left = [span for span in outer if span.start < span.end]
    return found, left


def talkers(database: Database, asked: FlowQuestion) -> bytes:
    """The pairs of addresses that a label's traffic was most between, as a JSON list, the most bytes first.

    Of flows that ended in the time asked for, its first moment included.
    """
    sources = _sources(Span(max(0, asked.since), min(asked.until, _LAST)))
    if not sources:
        return b"[]"
    wanted = "" if asked.labels is None else "AND label IN {labels:Array(UInt32)}"
    union = " UNION ALL ".join(
        f"""
        SELECT label, {IS_IP} AS ip, src, dst, sum(packets) AS p, sum(bytes) AS b
        FROM {DATABASE}.{table} WHERE {when} {wanted} GROUP BY label, ip, src, dst
        """
        for table, when in sources
    )
    return database.json(
        f"""
        SELECT label, {address("src", "f.ip")} AS src, {address("dst", "f.ip")} AS dst, packets, bytes
        FROM (
            SELECT label, ip, src, dst, sum(p) AS packets, sum(b) AS bytes FROM ({union})
            GROUP BY label, ip, src, dst
            ORDER BY bytes DESC, label, ip, src, dst LIMIT {{limit:UInt32}}
        ) AS f ORDER BY bytes DESC, label, f.ip, f.src, f.dst
        """,
        {"labels": list(asked.labels or []), "limit": asked.limit},
    )


def _sources(whole: Span) -> list[tuple[str, str]]:
    """Tables, and which of their rows make up the time: each row once."""
    whole_units, edges = parts(whole, [*SUMS.values(), _MINUTE])
    *long, minutes = whole_units
    sources = [
        ("flows_1m", _within(number(unit), "{}", spans, unit * _SECOND))
        for unit, spans in zip(SUMS.values(), long, strict=True)
        if spans
    ]
    if minutes:
        sources.append(("flows_1m", _within("minute", "toDateTime({}, 'UTC')", minutes, _SECOND)))
    if edges:
        expired = f"IN (SELECT day FROM {DATABASE}.expired)"
        exact = _within("`end`", "fromUnixTimestamp64Nano({}, 'UTC')", edges, 1)
        touched = _within("minute", "toDateTime({}, 'UTC')", [_outward(edge) for edge in edges], _SECOND)
        sources.append(("flows", f"{exact} AND toYYYYMMDD(received) NOT {expired}"))
        sources.append(("flows_1m", f"{touched} AND toYYYYMMDD(day) {expired}"))
    return sources


def _outward(span: Span) -> Span:
    """All minutes that it lies in."""
    minute = _MINUTE * _SECOND
    return Span(span.start // minute * minute, -(-span.end // minute) * minute)


def _within(column: str, moment: str, spans: Sequence[Span], resolution: int) -> str:
    """A test of a column that holds a `moment` of so many ns: whether it is in one of the spans."""
    tests = (
        f"{column} >= {moment.format(span.start // resolution)}"
        f" AND {column} < {moment.format(span.end // resolution)}"
        for span in spans
    )
    return f"({' OR '.join(tests)})"
