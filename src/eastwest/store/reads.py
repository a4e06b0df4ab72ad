"""Reading: what the API shows, and the terms of the ledger that the store can count."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from eastwest.bus.messages import Evidence, Workload
from eastwest.meter.rows import LOSSES, TOTAL_ROW
from eastwest.store import community_id
from eastwest.store.engine import Database
from eastwest.store.schema import DATABASE
from eastwest.store.sums import IS_IP

Account = tuple[str, int]
"""Host and boot."""

NEVER = 2**64 - 1
"""A cut that leaves nothing out."""

_IDENTITY = ("name", "tenant", "service", "host")
COUNTERS = tuple(name for name in TOTAL_ROW.names or () if name.endswith(("_packets", "_bytes")))


@dataclass(frozen=True)
class LabelTotal:
    """Sums of all accounts of a label; times: unix ns."""

    label: int
    counters: Mapping[str, int]
    first_seen: int
    last_seen: int


@dataclass(frozen=True)
class Figures:
    """A label's counters, all hosts and boots, and whose they are; texts are empty where not known."""

    label: int
    name: str
    tenant: str
    service: str
    host: str
    counters: Mapping[str, int]


@dataclass(frozen=True)
class Minute:
    """A label's traffic of one minute; `minute`: unix seconds of its start."""

    minute: int
    label: int
    direction: str
    traffic_class: str
    packets: int
    bytes: int


@dataclass(frozen=True)
class Witnessed:
    """A packet of suspect traffic, the host that saw it, and when this store got it (unix ns)."""

    host: str
    received: int
    evidence: Evidence


@dataclass
class Totals:
    """The accounts of one boot as stored: label → packets seen, label → place → packets lost."""

    cut: int = 0
    """Sequence of the last totals message; flows of higher ones were not finished."""
    seen: dict[int, int] = field(default_factory=dict)
    lost: dict[int, dict[str, int]] = field(default_factory=dict)


@dataclass
class Stored:
    """What `flows` holds of one boot."""

    packets: dict[int, int] = field(default_factory=dict)
    """label → packets up to the cut."""
    sequences: set[int] = field(default_factory=set)
    """Which of the messages asked about are stored."""
    expired: dict[int, int] = field(default_factory=dict)
    """label → packets of days that were dropped."""


def workloads(database: Database) -> list[Workload]:
    """The latest document of each label; where several hosts had it, of the one that has it."""
    rows = database.query(
        f"""
        SELECT document FROM {DATABASE}.workloads FINAL
        ORDER BY label, present DESC, version DESC LIMIT 1 BY label
        """
    )
    return [msgspec.json.decode(document, type=Workload) for (document,) in rows]


_PRESENT = f"SELECT label FROM {DATABASE}.workloads FINAL WHERE present"


def present_workloads(database: Database, or_since: int = NEVER) -> list[Workload]:
    """As `workloads`, of labels that some host has, or of which something was stored since (unix ns)."""
    # By the key first, so that documents of what has gone are not even read.
    rows = database.query(
        f"""
        SELECT document FROM {DATABASE}.workloads FINAL
        PREWHERE label IN ({_PRESENT} OR version >= {{since:UInt64}})
        ORDER BY label, present DESC, version DESC LIMIT 1 BY label
        """,
        {"since": or_since},
    )
    return [msgspec.json.decode(document, type=Workload) for (document,) in rows]


def names(database: Database, labels: Collection[int]) -> dict[int, str]:
    """label → name, of those labels that are known."""
    rows = database.query(
        f"""
        SELECT document FROM {DATABASE}.workloads FINAL PREWHERE label IN {{labels:Array(UInt32)}}
        ORDER BY label, present DESC, version DESC LIMIT 1 BY label
        """,
        {"labels": sorted(labels)},
    )
    found = [msgspec.json.decode(document, type=Workload) for (document,) in rows]
    return {workload.label: workload.name for workload in found}


def evidence(database: Database, since: int, limit: int) -> list[Witnessed]:
    """What was received later than `since` (unix ns), the oldest first: `limit`, and what came with the last.

    By the time of receiving, which is one for all that is stored together: so who asks again with the last
    one misses nothing, neither what came late nor what came with it.
    """
    rows = database.query(
        f"""
        SELECT host, toUnixTimestamp64Nano(received), document FROM (
            SELECT * FROM {DATABASE}.evidence FINAL
            WHERE received > fromUnixTimestamp64Nano({{since:Int64}}, 'UTC')
            ORDER BY received LIMIT {{limit:UInt32}} WITH TIES
        ) ORDER BY received, host, boot, sequence, place
        """,
        {"since": since, "limit": limit},
    )
    return [
        Witnessed(str(host), int(received), msgspec.json.decode(document, type=Evidence))
        for host, received, document in rows
    ]


def label_totals(database: Database, gone_too: bool = True) -> list[LabelTotal]:
    """Every label's totals, all hosts and boots; or without labels whose workload is known to be gone."""
    sums = ", ".join(f"sum({name})" for name in COUNTERS)
    gone = f"SELECT label FROM {DATABASE}.workloads WHERE label NOT IN ({_PRESENT})"
    wanted = "" if gone_too else f"WHERE label NOT IN ({gone})"
    rows = database.query(
        f"""
        SELECT label, toUnixTimestamp64Nano(min(first_seen)), toUnixTimestamp64Nano(max(last_seen)), {sums}
        FROM {DATABASE}.totals FINAL {wanted} GROUP BY label ORDER BY label
        """
    )
    return [
        LabelTotal(int(label), dict(zip(COUNTERS, map(int, counts), strict=True)), int(first), int(last))
        for label, first, last, *counts in rows
    ]


def figures(database: Database) -> list[Figures]:
    """Every label's counters, and whose they are, in one statement."""
    sums = ", ".join(f"sum(t.{name})" for name in COUNTERS)
    told = ", ".join(f"JSONExtractString(document, '{name}') AS {name}" for name in _IDENTITY)
    rows = database.query(
        f"""
        SELECT label, {", ".join(f"any(w.{name})" for name in _IDENTITY)}, {sums}
        FROM {DATABASE}.totals AS t FINAL
        LEFT JOIN (
            SELECT label, {told} FROM {DATABASE}.workloads FINAL
            ORDER BY label, present DESC, version DESC LIMIT 1 BY label
        ) AS w USING (label)
        GROUP BY label
        """
    )
    return [
        Figures(int(label), name, tenant, service, host, dict(zip(COUNTERS, map(int, counts), strict=True)))
        for label, name, tenant, service, host, *counts in rows
    ]


@dataclass(frozen=True)
class FlowQuestion:
    """Flows of a time (unix ns), at most `limit`; `labels` None: of all."""

    labels: Sequence[int] | None
    since: int
    until: int
    limit: int


def flows(database: Database, asked: FlowQuestion, seed: int, lines: bool) -> bytes:
    """Flows that were active then, the latest first, as a JSON list or, `lines`, as an object a line; `seed`:
    of Community IDs.

    The database writes the document, so that no row passes through Python.
    """
    return database.json(
        shown(
            f"""
            SELECT * FROM {DATABASE}.flows AS g
            WHERE g.`end` >= fromUnixTimestamp64Nano({{since:Int64}}, 'UTC')
              AND g.`start` <= fromUnixTimestamp64Nano({{until:Int64}}, 'UTC')
              {"" if asked.labels is None else "AND label IN {labels:Array(UInt32)}"}
            ORDER BY g.`end` DESC, packets DESC LIMIT {{limit:UInt32}}
            """,
            "f.`end` DESC, packets DESC",
            seed,
        ),
        {
            "since": asked.since,
            "until": asked.until,
            "limit": asked.limit,
            "labels": list(asked.labels or []),
        },
        lines,
    )


def shown(rows: str, order: str, seed: int) -> str:
    """The statement that shows flow rows, themselves a statement, as the API does, in an order of `f`."""
    return f"""
        WITH {community_id.with_clause("f", seed)}
        SELECT {_FLOW_FIELDS}, community_id FROM ({rows}) AS f ORDER BY {order}
    """


def minutes(database: Database, labels: Sequence[int] | None, since: int, until: int) -> list[Minute]:
    """Traffic by minute and label between two times (unix ns), oldest first."""
    rows = database.query(
        f"""
        SELECT toUnixTimestamp(minute), label, direction, class, sum(packets), sum(bytes)
        FROM {DATABASE}.flows_1m
        WHERE minute >= toDateTime({{since:Int64}}, 'UTC') AND minute <= toDateTime({{until:Int64}}, 'UTC')
          {"" if labels is None else "AND label IN {labels:Array(UInt32)}"}
        GROUP BY minute, label, direction, class ORDER BY minute, label, direction, class
        """,
        {"since": since // 10**9, "until": until // 10**9, "labels": list(labels or [])},
    )
    return [Minute(*row) for row in rows]


def totals(database: Database) -> dict[Account, Totals]:
    """Every boot's accounts by label, and how far they reach: each boot of which anything was stored."""
    found: dict[Account, Totals] = {}
    losses = ", ".join(f"sum({place}_packets)" for place in LOSSES)
    for host, boot, label, seen, *lost in database.query(
        f"""
        SELECT host, boot, label, sum(ingress_packets + egress_packets), {losses}
        FROM {DATABASE}.totals FINAL GROUP BY host, boot, label
        """
    ):
        account = found.setdefault((host, int(boot)), Totals())
        account.seen[int(label)] = int(seen)
        account.lost[int(label)] = {place: int(n) for place, n in zip(LOSSES, lost, strict=True) if n}
    for host, boot, cut in database.query(
        f"SELECT host, boot, maxIf(sequence, kind = 'totals') FROM {DATABASE}.batches GROUP BY host, boot"
    ):
        found.setdefault((host, int(boot)), Totals()).cut = int(cut)
    return found


def stored(
    database: Database, cuts: Mapping[Account, int], wanted: Mapping[Account, set[int]]
) -> dict[Account, Stored]:
    """Count the packets in `flows` up to each boot's cut, and find which of the `wanted` messages are there.

    One statement counts both, so a message is seen either stored with all its packets or not at all.
    """
    found: dict[Account, Stored] = {}
    _mark_numbered(database, wanted, found)
    hosts, boots, limits = _columns(cuts)
    numbers = sorted({n for sequences in wanted.values() for n in sequences})
    for host, boot, label, packets, sequences in database.query(
        f"""
        SELECT host, boot, label, sumIf(p, sequence <= cut),
               groupUniqArrayIf(sequence, sequence IN {{numbers:Array(UInt64)}})
        FROM (
            SELECT host, boot, sequence, label, sum(packets) AS p FROM {DATABASE}.flows
            WHERE toYYYYMMDD(received) NOT IN (SELECT day FROM {DATABASE}.expired)
            GROUP BY host, boot, sequence, label
        ) AS counted
        INNER JOIN (
            SELECT t.1 AS host, t.2 AS boot, t.3 AS cut FROM (SELECT arrayJoin(arrayZip(
                {{hosts:Array(String)}}, {{boots:Array(UInt64)}}, {{limits:Array(UInt64)}})) AS t)
        ) AS cuts USING (host, boot)
        GROUP BY host, boot, label
        """,
        {"hosts": hosts, "boots": boots, "limits": limits, "numbers": numbers},
    ):
        part = found.setdefault((host, int(boot)), Stored())
        part.packets[int(label)] = int(packets)
        part.sequences.update(map(int, sequences))
    _add_expired(database, found)
    return found


def _mark_numbered(
    database: Database, wanted: Mapping[Account, set[int]], found: dict[Account, Stored]
) -> None:
    """A message with its number is stored, even if somebody has deleted its rows: then they are missing."""
    for (host, boot), sequences in wanted.items():
        if sequences:
            rows = database.query(
                f"""
                SELECT sequence FROM {DATABASE}.batches WHERE host = {{host:String}}
                AND boot = {{boot:UInt64}} AND sequence IN {{numbers:Array(UInt64)}}
                """,
                {"host": host, "boot": boot, "numbers": sorted(sequences)},
            )
            found.setdefault((host, boot), Stored()).sequences.update(int(n) for (n,) in rows)


def _add_expired(database: Database, found: dict[Account, Stored]) -> None:
    for host, boot, label, packets in database.query(
        f"SELECT host, boot, label, sum(packets) FROM {DATABASE}.expired FINAL GROUP BY host, boot, label"
    ):
        found.setdefault((host, int(boot)), Stored()).expired[int(label)] = int(packets)


def _columns(cuts: Mapping[Account, int]) -> tuple[list[str], list[int], list[int]]:
    return [h for h, _ in cuts], [b for _, b in cuts], list(cuts.values())


def _rfc3339(column: str) -> str:
    return f"concat(replaceOne(toString(f.`{column}`), ' ', 'T'), 'Z')"


def address(column: str, is_ip: str) -> str:
    """A column of `f` as people write it: IPv4 without its mapping into IPv6; what is not IP as a MAC."""
    pairs = ", ".join(f"substring(lower(hex(f.{column})), {start}, 2)" for start in range(21, 32, 2))
    ip = f"replaceRegexpOne(toString(f.{column}), '^::ffff:([0-9]+[.])', '\\\\1')"
    return f"if({is_ip}, {ip}, concatWithSeparator(':', {pairs}))"


_FLOW_FIELDS = f"""
    {_rfc3339("start")} AS `start`, {_rfc3339("end")} AS `end`, host,
    toValidUTF8(toStringCutToZero(f.port)) AS port, label, class, direction,
    {address("src", IS_IP)} AS src, {address("dst", IS_IP)} AS dst,
    src_port, dst_port, protocol, packets, bytes, tcp_flags
"""
"""A row of `flows AS f` as the API shows it."""
