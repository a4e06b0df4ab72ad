"""What the watcher asks every few seconds: bounded in time, one statement for all watches of a kind.

A host's rows are complete up to its *horizon* (unix ns by the host's own clock): windows end there, each
host's at its own. `received` is by the store's clock; it only keeps the database from reading older parts.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

import msgspec

from eastwest.store.engine import Database
from eastwest.store.reads import shown
from eastwest.store.schema import DATABASE

Cut = tuple[str, int, int]
"""Host, boot, sequence."""

Pair = tuple[int, str]
"""A label and the address of one of its peers."""

NS = 1_000_000_000
_LATE_SECONDS = 120
RECENT_SECONDS = 600


@dataclass(frozen=True)
class Window:
    """Where to look: each host's horizon, and what was received since (unix seconds)."""

    horizons: Mapping[str, int]
    now: int
    """Unix seconds."""

    def parameters(self, seconds: int) -> dict[str, Any]:
        """`since` and `received` for the longest window, `seconds`."""
        return {
            "hosts": list(self.horizons),
            "untils": list(self.horizons.values()),
            "since": min(self.horizons.values()) - seconds * NS,
            "received": self.now - seconds - _LATE_SECONDS,
        }


@dataclass(frozen=True)
class Traffic:
    """What a label's flow rows hold of one window of `seconds`."""

    label: int
    seconds: int
    ingress_packets: int
    ingress_bytes: int
    egress_packets: int
    egress_bytes: int
    suspect_packets: int
    suspect_bytes: int


@dataclass(frozen=True)
class FlowFilter:
    """Whose flows, of which seconds before the horizon, and which of them; empty: any."""

    labels: Sequence[int]
    seconds: int
    direction: str = ""
    suspect: bool = False
    unanswered: bool = False
    """TCP: a SYN, perhaps an ACK, and no more: nothing was said."""
    src: str = ""
    dst: str = ""
    dst_port: int | None = None
    peers: Sequence[str] = ()


# In a flow row's own host's window; `until` is that host's horizon.
UNTIL = "transform(f.host, {hosts:Array(String)}, {untils:Array(Int64)}, toInt64(0))"
WITHIN = f"""
    f.received >= toDateTime({{received:Int64}}, 'UTC')
    AND f.`end` > fromUnixTimestamp64Nano({{since:Int64}}, 'UTC')
    AND toUnixTimestamp64Nano(f.`end`) <= {UNTIL}
"""
_FLOW_KEY = "host, port, label, class, direction, src, dst, src_port, dst_port, protocol"
_UNANSWERED = "HAVING protocol != 6 OR bitAnd(groupBitOr(r.tcp_flags), 11) = 2"
_PEER = "if(direction = 'egress', dst, src)"
_MULTICAST = "BETWEEN toIPv6('::ffff:224.0.0.0') AND toIPv6('::ffff:239.255.255.255')"
UNICAST = f"NOT ({{0}} >= toIPv6('ff00::') OR {{0}} {_MULTICAST})"
_PEERS = f"""
    {UNICAST.format("peer")}
    AND peer NOT IN (toIPv6('::'), toIPv6('::ffff:0.0.0.0'), toIPv6('::ffff:255.255.255.255'))
"""


def stored_cuts(database: Database, cuts: Collection[Cut]) -> set[Cut]:
    """Which of these messages are stored."""
    if not cuts:
        return set()
    hosts, boots, sequences = (list(part) for part in zip(*cuts, strict=True))
    rows = database.query(
        f"""
        SELECT host, boot, sequence FROM {DATABASE}.batches
        WHERE (host, boot, sequence) IN (SELECT t.1, t.2, t.3 FROM (SELECT arrayJoin(arrayZip(
            {{hosts:Array(String)}}, {{boots:Array(UInt64)}}, {{sequences:Array(UInt64)}})) AS t))
        """,
        {"hosts": hosts, "boots": boots, "sequences": sequences},
    )
    return {(str(host), int(boot), int(sequence)) for host, boot, sequence in rows}


def traffic(
    database: Database, window: Window, lengths: Sequence[int], labels: Sequence[int]
) -> list[Traffic]:
    """Each label's traffic in windows of these lengths (seconds), where there is any."""
    if not (window.horizons and lengths and labels):
        return []
    rows = database.query(
        f"""
        SELECT label, length, sumIf(packets, direction = 'ingress'), sumIf(bytes, direction = 'ingress'),
               sumIf(packets, direction = 'egress'), sumIf(bytes, direction = 'egress'),
               sumIf(packets, class = 'suspect'), sumIf(bytes, class = 'suspect')
        FROM {DATABASE}.flows AS f ARRAY JOIN {{lengths:Array(UInt32)}} AS length
        WHERE label IN {{labels:Array(UInt32)}} AND {WITHIN}
          AND toUnixTimestamp64Nano(f.`end`) > {UNTIL} - toInt64(length) * {NS}
        GROUP BY label, length
        """,
        {**window.parameters(max(lengths)), "lengths": list(lengths), "labels": list(labels)},
    )
    return [Traffic(*map(int, row)) for row in rows]


def last_packets(database: Database, labels: Sequence[int]) -> dict[int, int]:
    """When a label's counters last moved, unix ns by its host's clock."""
    rows = database.query(
        f"""
        SELECT label, toUnixTimestamp64Nano(max(last_seen)) FROM {DATABASE}.totals
        WHERE label IN {{labels:Array(UInt32)}} GROUP BY label
        """,
        {"labels": list(labels)},
    )
    return {int(label): int(last) for label, last in rows}


def fresh_peers(
    database: Database, window: Window, seconds: int, labels: Sequence[int], most: int
) -> list[Pair]:
    """Whom labels met in the window and not in the ten minutes before it: few, for others to look up. Of each
    label `most`, those that it met last: one workload hides no other's."""
    if not (window.horizons and labels):
        return []
    parameters = window.parameters(seconds)
    end = _minute(parameters["since"])
    rows = database.query(
        f"""
        SELECT label, toString(peer) FROM (
            SELECT label, {_PEER} AS peer, toUnixTimestamp64Nano(f.`start`) AS met FROM {DATABASE}.flows AS f
            WHERE label IN {{labels:Array(UInt32)}} AND protocol <= 255 AND {WITHIN}
              AND toUnixTimestamp64Nano(f.`end`) > {UNTIL} - toInt64({{seconds:UInt32}}) * {NS}
        ) WHERE {_PEERS} AND (label, peer) NOT IN (
            SELECT label, {_PEER} FROM {DATABASE}.flows_1m
            WHERE label IN {{labels:Array(UInt32)}} AND protocol <= 255
              AND minute >= toDateTime({{start:Int64}}, 'UTC') AND minute < toDateTime({{end:Int64}}, 'UTC')
        )
        GROUP BY label, peer ORDER BY label, min(met) DESC, peer LIMIT {{most:UInt32}} BY label
        """,
        {
            **parameters,
            "most": most,
            "seconds": seconds,
            "labels": list(labels),
            "start": end - RECENT_SECONDS,
            "end": end,
        },
    )
    return [(int(label), plain(str(peer))) for label, peer in rows]


def known_peers(
    database: Database, window: Window, seconds: int, learn: int, pairs: Sequence[Pair]
) -> tuple[set[Pair], dict[int, int]]:
    """Which of the pairs had met in the `learn` seconds before the window; label → unix seconds of its
    oldest minute, from which on its peers can be known."""
    if not (window.horizons and pairs):
        return set(), {}
    end = _minute(window.parameters(seconds)["since"])
    parameters = {
        "labels": [label for label, _ in pairs],
        "peers": [str(mapped(peer)) for _, peer in pairs],
        "start": end - learn,
        "end": end,
    }
    rows = database.query(
        f"""
        SELECT DISTINCT label, toString({_PEER}) FROM {DATABASE}.flows_1m
        WHERE label IN {{labels:Array(UInt32)}} AND protocol <= 255
          AND minute >= toDateTime({{start:Int64}}, 'UTC') AND minute < toDateTime({{end:Int64}}, 'UTC')
          AND (label, {_PEER}) IN (SELECT t.1, toIPv6(t.2) FROM (SELECT arrayJoin(arrayZip(
              {{labels:Array(UInt32)}}, {{peers:Array(String)}})) AS t))
        """,
        parameters,
    )
    oldest = database.query(
        f"""
        SELECT label, toUnixTimestamp(min(minute)) FROM {DATABASE}.flows_1m
        WHERE label IN {{labels:Array(UInt32)}} GROUP BY label
        """,
        parameters,
    )
    known = {(int(label), plain(str(peer))) for label, peer in rows}
    return known, {int(label): int(minute) for label, minute in oldest}


def top_flows(
    database: Database, window: Window, wanted: FlowFilter, limit: int, seed: int
) -> list[dict[str, Any]]:
    """The largest flows that a filter lets through, as `reads.flows` shows them, all rows of one in one;
    `seed`: of Community IDs."""
    if not window.horizons:
        return []
    document = database.json(
        shown(
            f"""
            SELECT {_FLOW_KEY}, min(r.`start`) AS `start`, max(r.`end`) AS `end`,
                   sum(r.packets) AS packets, sum(r.bytes) AS bytes, groupBitOr(r.tcp_flags) AS tcp_flags
            FROM (
                SELECT * FROM {DATABASE}.flows AS f
                WHERE {WITHIN} {_tests(wanted)}
            ) AS r
            GROUP BY {_FLOW_KEY} {_UNANSWERED if wanted.unanswered else ""}
            ORDER BY bytes DESC, `start`, src, dst, src_port, dst_port
            LIMIT {{limit:UInt32}}
            """,
            "bytes DESC, f.`start`, f.src, f.dst, f.src_port, f.dst_port",
            seed,
        ),
        {
            **window.parameters(wanted.seconds),
            "labels": list(wanted.labels),
            "direction": wanted.direction,
            "src": _mapped_text(wanted.src),
            "dst": _mapped_text(wanted.dst),
            "dst_port": wanted.dst_port or 0,
            "peers": [_mapped_text(peer) for peer in wanted.peers],
            "limit": limit,
        },
    )
    rows: list[dict[str, Any]] = msgspec.json.decode(document)
    return rows


def _tests(wanted: FlowFilter) -> str:
    """What a filter asks of a row, beside its window."""
    tests = [
        (bool(wanted.labels), "label IN {labels:Array(UInt32)}"),
        (bool(wanted.direction), "direction = {direction:String}"),
        (wanted.suspect, "class = 'suspect'"),
        (bool(wanted.src), "f.src = toIPv6({src:String})"),
        (bool(wanted.dst), "f.dst = toIPv6({dst:String})"),
        (wanted.dst_port is not None, "dst_port = {dst_port:UInt16}"),
        (bool(wanted.peers), "if(f.direction = 'egress', f.dst, f.src) IN"
         " (SELECT toIPv6(arrayJoin({peers:Array(String)})))"),
    ]  # fmt: skip
    return "".join(f" AND {test}" for applies, test in tests if applies)


def mapped(address: str) -> IPv6Address:
    """An address as flows hold it: IPv4 mapped into IPv6."""
    return IPv6Address(address if ":" in address else f"::ffff:{address}")


def plain(address: str) -> str:
    """An address as people write it."""
    parsed = IPv6Address(address)
    return str(parsed.ipv4_mapped or parsed)


def _mapped_text(address: str) -> str:
    return str(mapped(address)) if address else ""


def _minute(ns: int) -> int:
    return ns // NS // 60 * 60
