"""Scans, sweeps and floods, found in flow rows by one statement.

Rows are first joined into conversations, so that a flow counts once though both its ends saw it, in several
cuts. Who spoke first, and whether he was answered, is then told by the rows of both directions:

    TCP         answered where the first speaker sent an ACK, unless all that came back refused his SYN (a
                reset with an ACK): then he sent it blindly. Where nothing came back it cannot be told
                from a SYN-ACK that is sent again, as flags are summed up by flow
    UDP, ICMP   answered where anything came back; unanswered, a few packets are an attempt, more a stream

Addresses are only unique within a *realm* (a tenant's network; without one, a host): the watcher gives each
label its realm, and conversations are joined within one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eastwest.store.engine import Database
from eastwest.store.schema import DATABASE
from eastwest.store.watching import NS, UNICAST, UNTIL, WITHIN, Window, plain

Kind = Literal["port_scan", "address_sweep", "syn_flood"]

_MOST = 10_000
_MOST_OF_LABEL = 500
"""Of each kind: one workload must not hide the others."""
_STREAM_PACKETS = 3
_UNKNOWN = "toUInt32(2147483648)"
"""A label whose realm is not known (its workload's document is still on its way) is one by itself."""

_ECHO = "(2048, 0, 32768, 33024)"
"""ICMP echo and echo reply, IPv4 and IPv6: type << 8 | code."""


@dataclass(frozen=True)
class Limits:
    """From where on it is one; 0: not looked for. The window is (horizon - seconds - settle, … - settle]:
    answers have until the horizon to come."""

    seconds: int
    settle: int
    ports: int
    addresses: int
    syn_packets: int
    """In the whole window."""


@dataclass(frozen=True)
class Pattern:
    """One scan, sweep or flood. Labels: 0 where no workload of that end was seen."""

    kind: Kind
    src: str
    dst: str
    dst_port: int
    src_label: int
    dst_label: int
    figure: int
    """Ports, addresses or SYN packets without an answer."""
    answered: int
    """Ports, addresses or connections with one."""
    sources: int


# Rows that can be part of one. Addresses are compared as they are: as text it took six times as long.
_ROWS = f"""
    {WITHIN} AND (protocol IN (6, 17) OR (protocol IN (1, 58) AND dst_port IN {_ECHO}))
    AND {UNICAST.format("f.dst")} AND f.dst != toIPv6('::ffff:255.255.255.255')
"""

# Who may be over a limit, by his rows alone: an attempt that failed left one with a SYN or of few packets, a
# half-open one has no ACK. So nobody is left out, and nearly everybody is who is not over one.
_CANDIDATES = f"""
    SELECT toString(src) FROM (
        SELECT src, dst, uniqExact(dst_port) AS ports FROM {DATABASE}.flows AS f
        WHERE {_ROWS} AND if(protocol = 6, bitAnd(tcp_flags, 2) = 2, packets <= {_STREAM_PACKETS})
        GROUP BY src, dst
    )
    GROUP BY src
    HAVING ({{ports:UInt32}} > 0 AND max(ports) >= {{ports:UInt32}})
        OR ({{addresses:UInt32}} > 0 AND count() >= {{addresses:UInt32}})
    UNION DISTINCT
    SELECT toString(dst) FROM {DATABASE}.flows AS f
    WHERE {_ROWS} AND protocol = 6 AND bitAnd(tcp_flags, 16) = 0
    GROUP BY dst, dst_port HAVING {{syns:UInt32}} > 0 AND sum(packets) >= {{syns:UInt32}}
"""

_GIVEN = "(SELECT toIPv6(arrayJoin({candidates:Array(String)})))"

# `a` is the lower of the two endpoints.
_CONVERSATIONS = f"""
    SELECT realm, protocol, a, b, a_port, b_port,
           maxIf(age, NOT swapped) AS a_age, maxIf(age, swapped) AS b_age,
           countIf(NOT swapped) > 0 AS a_spoke, countIf(swapped) > 0 AS b_spoke,
           groupBitOrIf(tcp_flags, NOT swapped) AS a_flags, groupBitOrIf(tcp_flags, swapped) AS b_flags,
           greatest(sumIf(packets, NOT swapped AND sent), sumIf(packets, NOT swapped AND NOT sent))
               AS a_packets,
           greatest(sumIf(packets, swapped AND sent), sumIf(packets, swapped AND NOT sent)) AS b_packets,
           maxIf(label, swapped != sent) AS a_label, maxIf(label, swapped = sent) AS b_label
    FROM (
        SELECT protocol, label, packets, tcp_flags, direction = 'egress' AS sent,
               transform(label, {{labels:Array(UInt32)}}, {{realms:Array(UInt32)}}, bitOr(label, {_UNKNOWN}))
                   AS realm,
               {UNTIL} - toUnixTimestamp64Nano(f.`start`) AS age,
               if(protocol IN (1, 58), 0, src_port) AS from_port,
               if(protocol IN (1, 58), 0, dst_port) AS to_port,
               (f.src, from_port) > (f.dst, to_port) AS swapped,
               if(swapped, f.dst, f.src) AS a, if(swapped, f.src, f.dst) AS b,
               if(swapped, to_port, from_port) AS a_port, if(swapped, from_port, to_port) AS b_port
        FROM {DATABASE}.flows AS f
        WHERE {_ROWS} AND (f.src IN {_GIVEN} OR f.dst IN {_GIVEN})
    )
    GROUP BY realm, protocol, a, b, a_port, b_port
"""

# FIN is 1, SYN 2, RST 4, PSH 8, ACK 16. Who sent a SYN without an ACK spoke first, or whose SYN was refused;
# else who was seen first, and of two seen in the same tick the one with the higher port.
_ATTEMPTS = f"""
    SELECT realm, protocol, tcp,
           multiIf(tcp AND bitAnd(a_flags, 18) = 2, true, tcp AND bitAnd(b_flags, 18) = 2, false,
                   tcp AND bitAnd(a_flags, 2) = 2 AND bitAnd(b_flags, 31) = 20, true,
                   tcp AND bitAnd(b_flags, 2) = 2 AND bitAnd(a_flags, 31) = 20, false,
                   a_spoke != b_spoke, a_spoke, a_age != b_age, a_age > b_age, a_port > b_port) AS by_a,
           if(by_a, a, b) AS src, if(by_a, b, a) AS dst, if(by_a, b_port, a_port) AS dst_port,
           if(by_a, a_label, b_label) AS src_label, if(by_a, b_label, a_label) AS dst_label,
           if(by_a, a_packets, b_packets) AS packets, if(by_a, a_age, b_age) AS first_age,
           if(by_a, a_flags, b_flags) AS flags, if(by_a, b_flags, a_flags) AS back_flags,
           if(tcp, bitAnd(flags, 16) != 0 AND bitAnd(back_flags, 31) != 20, a_spoke AND b_spoke) AS answered,
           NOT answered AND (tcp OR packets <= {_STREAM_PACKETS}) AS failed,
           tcp AND failed AND bitAnd(back_flags, 6) != 4 AS half_open
    FROM (SELECT *, protocol = 6 AS tcp FROM ({_CONVERSATIONS}))
    WHERE (NOT tcp OR bitAnd(flags, 2) = 2)
      AND first_age >= toInt64({{settle:UInt32}}) * {NS} AND first_age < toInt64({{seconds:UInt32}}) * {NS}
"""


_PATTERNS = f"""
    SELECT grouping(src) AS any_src, grouping(dst) AS any_dst, toString(src), toString(dst), dst_port,
           max(src_label), max(dst_label),
           uniqExactIf(dst_port, failed AND protocol IN (6, 17)) AS ports,
           uniqExactIf(dst_port, answered AND protocol IN (6, 17)) AS open_ports,
           uniqExactIf(dst, failed) AS addresses, uniqExactIf(dst, answered) AS open_addresses,
           sumIf(packets, half_open) AS syns, countIf(tcp AND answered) AS connections,
           uniqExactIf(src, half_open) AS sources,
           multiIf(any_src = 1 AND max(dst_label) > 0, max(dst_label), max(src_label) > 0, max(src_label),
                   max(dst_label)) AS owner
    FROM ({_ATTEMPTS})
    GROUP BY GROUPING SETS ((realm, src, dst), (realm, src), (realm, dst, dst_port))
    HAVING multiIf(
        any_src = 1, {{syns:UInt32}} > 0 AND syns >= {{syns:UInt32}} AND syns >= 4 * connections,
        any_dst = 1, {{addresses:UInt32}} > 0 AND addresses >= {{addresses:UInt32}}
                     AND addresses >= open_addresses,
        {{ports:UInt32}} > 0 AND ports >= {{ports:UInt32}} AND ports >= open_ports)
    ORDER BY syns + addresses + ports DESC, src, dst, dst_port
"""


_AS_IT_IS = "SETTINGS compile_expressions = 0, compile_aggregate_expressions = 0"
"""Compiled at its third time, which is in the middle of the first attack: that takes longer than it saves."""


def patterns(database: Database, window: Window, limits: Limits, realms: Mapping[int, int]) -> list[Pattern]:
    """What is over its limit now, the largest first. `realms`: label → number of its realm."""
    if not window.horizons:
        return []
    seconds = limits.seconds + limits.settle
    parameters = {
        **window.parameters(seconds),
        "seconds": seconds,
        "settle": limits.settle,
        "labels": list(realms),
        "realms": list(realms.values()),
        "ports": limits.ports,
        "addresses": limits.addresses,
        "syns": limits.syn_packets,
    }
    candidates = [str(address) for (address,) in database.query(_CANDIDATES, parameters)]
    if not candidates:
        return []
    room = f"LIMIT {_MOST_OF_LABEL} BY any_src, any_dst, owner LIMIT {_MOST}"
    rows = database.query(f"{_PATTERNS} {room} {_AS_IT_IS}", {**parameters, "candidates": candidates})
    return [_pattern(row) for row in rows]


def _pattern(row: Sequence[Any]) -> Pattern:
    any_src, any_dst, src, dst, port, src_label, dst_label, *figures = row
    ports, open_ports, addresses, open_addresses, syns, connections, sources = map(int, figures[:7])
    if any_src:
        kind: Kind = "syn_flood"
        src, figure, answered = "", syns, connections
    elif any_dst:
        kind, dst, port, figure, answered = "address_sweep", "", 0, addresses, open_addresses
    else:
        kind, port, figure, answered = "port_scan", 0, ports, open_ports
    return Pattern(
        kind=kind,
        src=plain(str(src)) if src else "",
        dst=plain(str(dst)) if dst else "",
        dst_port=int(port),
        src_label=int(src_label),
        dst_label=int(dst_label),
        figure=figure,
        answered=answered,
        sources=sources,
    )
