"""What the roles say to each other. Every subject, bucket and document is declared here, those of taps in
`bus.taps`.

Durable messages go to the stream `EASTWEST`. Each carries the headers `Ew-Host`, `Ew-Boot` and
`Ew-Sequence`; the three together number it for good, so that a repeat is refused however late it comes.

    eastwest.flows.<host>      packed `meter.rows.FLOW_ROW` array
    eastwest.totals.<host>     packed `meter.rows.TOTAL_ROW` array: accounts that changed since the last cut
    eastwest.workloads.<host>  JSON list of `Workload`: those that changed
    eastwest.evidence.<host>   JSON list of `Evidence`: first packets of suspect traffic

A probe ends each drain with a totals message; whatever flows it counted have lower sequence numbers.
State that only matters while it is fresh is a KV bucket entry; a question to a probe is a request.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

STREAM = "EASTWEST"
FLOWS = "eastwest.flows"
TOTALS = "eastwest.totals"
WORKLOADS = "eastwest.workloads"
EVIDENCE = "eastwest.evidence"

HOST_HEADER = "Ew-Host"
BOOT_HEADER = "Ew-Boot"
SEQUENCE_HEADER = "Ew-Sequence"

MAX_MESSAGE_BYTES = 8 << 20
"""The largest message that the bus takes."""

HOSTS_BUCKET = "eastwest-hosts"
"""host name → `HostReport`, written by the probe after each drain."""

FACTS_BUCKET = "eastwest-facts"
"""label (decimal) → `Facts`, written by the manager, watched by the probes."""

WATCHES_BUCKET = "eastwest-watches"
"""name → `Watch`, written by the server for those who ask its API."""

SILENCES_BUCKET = "eastwest-silences"
"""id → `Silence`, written by the server for those who ask its API."""

LABELS_BUCKET = "eastwest-labels"
"""One key, `next`: the first label that no probe has leased, decimal; taken by compare-and-set."""

SUSPECT_BUCKET = "eastwest-suspect"
"""name of a prefix or flow (`labels.suspect.Target`) → `SuspectOrder`, written by the manager, watched by the
probes."""

MOST_ENTRIES = 10_000
"""Of a `SuspectAnswer`."""

ENFORCE_BUCKET = "eastwest-enforce"
"""name of a selector → `EnforceOrder`, written by the manager, watched by the probes."""

# What these bound is checked, and refused, by whoever decodes a document.
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""A number of things, or a time: unix ns, to the year 2262."""
Words = Annotated[str, Meta(max_length=255)]
Target = Annotated[str, Meta(max_length=200)]
"""A prefix or a flow as `labels.suspect` writes it."""
Sentence = Annotated[str, Meta(max_length=4096)]

TrafficClass = Literal["normal", "suspect"]
Condition = Literal["rate_above", "rate_below", "new_peer", "silence", "suspect_share"]
Severity = Literal["info", "warning", "critical"]


def suspect_subject(host: str) -> str:
    """Request subject on which the probe of `host` answers with a `SuspectAnswer`."""
    return f"eastwest.probe.{host}.suspect"


def enforce_subject(host: str) -> str:
    """Request subject on which the probe of `host` answers with an `EnforceAnswer`."""
    return f"eastwest.probe.{host}.enforce"


def ledger_subject(host: str) -> str:
    """Request subject on which the probe of `host` answers with a `ProbeLedger`."""
    return f"eastwest.probe.{host}.ledger"


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """What a user, a rule or a source says of a workload. None: not said."""

    tenant: str | None = None
    network: str | None = None
    service: str | None = None
    service_id: int | None = None
    traffic_class: TrafficClass | None = msgspec.field(default=None, name="class")

    def over(self, other: "Facts") -> "Facts":
        """These, and where they say nothing, `other`'s."""
        if other in (NOTHING_SAID, self):
            return self
        if self == NOTHING_SAID:
            return other
        return Facts(**{f: getattr(self if getattr(self, f) is not None else other, f) for f in _FACTS})


_FACTS = Facts.__struct_fields__
NOTHING_SAID = Facts()


LONGEST_FACT = 255
"""Characters in a text that somebody says of a workload."""


def refuse_impossible(facts: Facts) -> None:
    """Raises ValueError for facts that no reader of a workload's document would take."""
    if facts.service_id is not None and not 0 <= facts.service_id < 1 << 32:
        raise ValueError("service_id must be 0 to 4294967295")
    for name in ("tenant", "network", "service"):
        if len(getattr(facts, name) or "") > LONGEST_FACT:
            raise ValueError(f"{name} is longer than {LONGEST_FACT} characters")


class Port(msgspec.Struct, frozen=True):
    """A workload's port: its interface on the host side."""

    name: str
    ifindex: int
    mac: str


class Workload(msgspec.Struct, frozen=True):
    """A workload, present or gone (`present`), with everything known of it. Times: unix ns."""

    label: int
    name: str
    kind: str
    host: str
    tenant: str
    network: str
    service: str
    service_id: int
    traffic_class: TrafficClass
    ports: list[Port]
    addresses: list[str]
    past_ports: list[str]
    past_addresses: list[str]
    cgroup: str
    present: bool
    first_seen: int
    last_seen: int


class Evidence(msgspec.Struct, frozen=True):
    """A packet of suspect traffic, as a hook saw it. Rate-limited in the kernel: a sample, not a count."""

    time: int
    """unix ns"""
    label: int
    port: str
    """The host-side interface, empty where a cgroup hook saw it."""
    direction: Literal["ingress", "egress"]
    entry: str
    """The prefix or flow that was declared suspect; empty where the label's own class is suspect."""
    src: str
    dst: str
    src_port: int
    dst_port: int
    protocol: int
    dropped: bool
    length: int
    """Of the packet, IP header included."""
    packet: bytes
    """Its first bytes, from the IP header on (LINKTYPE_RAW)."""


class Watch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to raise an alert of every workload that `match` selects (see `watch.definition`)."""

    name: str
    match: str
    condition: Condition
    threshold: float = 0.0
    """rate_above, rate_below: units per second; suspect_share: a part of 1; else without meaning."""
    unit: Literal["packets", "bytes"] = "packets"
    direction: Literal["ingress", "egress", "both"] = "both"
    window_seconds: int = 60
    """What is looked at: of silence how long it must be, of a new peer how long it counts as new."""
    for_seconds: int = 0
    """How long the condition must hold before it is an alert."""
    learn_seconds: int = 86400
    """new_peer: how far back a peer makes a known one, and how long flows must be there to tell."""
    severity: Severity = "warning"


class Silence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Alerts that nobody is told of until `until` (unix ns): one by its id, or all of some workloads."""

    id: str
    until: int
    alert: str = ""
    match: str | None = None
    comment: str = ""


class SuspectOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prefix or flow that a user declares suspect; times: unix ns."""

    what: Target
    why: Words
    added: Count
    expires: Count
    """0: never."""


class SuspectEntry(msgspec.Struct, frozen=True):
    """A prefix or flow declared suspect, and what it met on a host since; times: unix ns, 0 for never."""

    what: Target
    why: Words
    sources: Annotated[list[Sentence], Meta(max_length=256)]
    """Who declares it: `api`, or files on the host."""
    added: Count
    expires: Count
    packets: Count
    bytes: Count
    last_hit: Count
    pending: bool = False
    """Declared, and not in effect yet: the cut that puts it into effect could not be made."""


class SuspectAnswer(msgspec.Struct, frozen=True):
    """What is suspect on a host: what users declared, then what was met most."""

    host: Words
    entries: Annotated[list[SuspectEntry], Meta(max_length=MOST_ENTRIES)]
    left_out: Count
    """Entries of files that are not among them."""


class EnforceOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The suspect packets of selected workloads are to be dropped; `added`: unix ns."""

    selector: Sentence
    added: Count


class Enforced(msgspec.Struct, frozen=True):
    """A port or cgroup of a workload whose suspect packets are dropped, or why they are not."""

    label: Annotated[int, Meta(ge=0, lt=1 << 32)]
    port: Words
    """The host-side interface, empty for a cgroup."""
    hook: Literal["port", "cgroup"]
    refused: Sentence
    """Empty where it is enforced."""


class EnforceAnswer(msgspec.Struct, frozen=True):
    """What is enforced on a host."""

    host: Words
    sources: Annotated[list[Enforced], Meta(max_length=100_000)]
    selectors: Annotated[list[Sentence], Meta(max_length=10_000)] = []
    """The orders that the probe follows."""


class HookCount(msgspec.Struct, frozen=True):
    """What one hook counted since the boot, whoever it belonged to."""

    hook: Literal["port", "cgroup"]
    ingress_packets: int
    ingress_bytes: int
    egress_packets: int
    egress_bytes: int


class HostInterface(msgspec.Struct, frozen=True):
    """An interface of the host's own, and what of its traffic no cgroup hook saw."""

    name: str
    ingress_packets: int
    egress_packets: int
    ingress_not_seen_by_cgroup: int
    egress_not_seen_by_cgroup: int


class ProgramCost(msgspec.Struct, frozen=True):
    """One kernel program's cost in the last sample of one second."""

    program: str
    runs: int
    ns_per_packet: float


class Cost(msgspec.Struct, frozen=True):
    """What the probe itself takes."""

    cpu_percent: float
    memory_bytes: int
    programs: list[ProgramCost]
    sampled_at: int


class HostReport(msgspec.Struct, frozen=True):
    """The state of one probe after a drain. Counters run since `boot`; times are unix ns."""

    host: str
    boot: int
    cut: int
    """Sequence of the totals message that ended this drain."""
    time: int
    started_at: int
    version: str
    interval_seconds: float
    hooks: list[HookCount]
    interfaces: list[HostInterface]
    malformed: dict[str, int]
    """Packets counted, but not parsed to the end, by reason."""
    cost: Cost
    problems: list[str]
    """What the probe cannot do now, each with its remedy."""
    evidence_lost: int = 0
    """Suspect packets of which evidence was due and found no room; they are counted all the same."""
    taps: list[str] = []
    """The orders to copy packets of which this host has something to say."""


class PendingMessage(msgspec.Struct, frozen=True):
    """A flows message that the stream has not acknowledged yet."""

    sequence: int
    packets: dict[int, int]


class ProbeLedger(msgspec.Struct, frozen=True):
    """A probe's side of the ledger, all as of the drain that ended with sequence `cut`."""

    host: str
    boot: int
    cut: int
    seen: dict[int, int]
    """label → packets counted by the hooks."""
    lost: dict[int, dict[str, int]]
    """label → place → packets whose flow detail was lost there."""
    held: int
    """Packets (of label 0 until decided) in rows that wait for their workload to be known."""
    outbox: list[PendingMessage]
