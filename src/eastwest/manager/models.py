"""What the API answers, field by field; the keys are a contract (scripts rely on them).

Counters are integers since the label exists. Times are RFC 3339 UTC; null where nothing was seen.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

_SHORT = "text of at most 255 characters"

TrafficClass = Literal["normal", "suspect"]
Direction = Literal["ingress", "egress"]


class Label(BaseModel):
    """A label and everything counted under it. Directions are the workload's: egress = sent by it."""

    label: int
    name: str
    kind: str
    tenant: str
    network: str
    service: str
    service_id: int
    host: str
    ports: list[str]
    ingress_packets: int = 0
    ingress_bytes: int = 0
    egress_packets: int = 0
    egress_bytes: int = 0
    suspect_ingress_packets: int = 0
    suspect_ingress_bytes: int = 0
    suspect_egress_packets: int = 0
    suspect_egress_bytes: int = 0
    enforced_drops: int = 0
    first_seen: str | None
    last_seen: str | None


class Workload(BaseModel):
    """A workload and what is known of it; `ports` are host-side interfaces (see /ports)."""

    model_config = ConfigDict(populate_by_name=True)

    label: int
    name: str
    kind: str
    tenant: str
    network: str
    service: str
    service_id: int
    host: str
    ports: list[str]
    addresses: list[str]
    traffic_class: TrafficClass = Field(alias="class")
    cgroup: str
    present: bool
    first_seen: str | None
    last_seen: str | None
    past_ports: list[str]
    past_addresses: list[str]


class Port(BaseModel):
    """A workload's port; or an interface of the host's own, which has a null label and counters."""

    port: str
    host: str
    ifindex: int | None
    mac: str | None
    label: int | None
    name: str | None
    tenant: str | None
    network: str | None
    ingress_packets: int | None = None
    egress_packets: int | None = None
    ingress_not_seen_by_cgroup: int | None = None
    egress_not_seen_by_cgroup: int | None = None


class Flow(BaseModel):
    """One flow of one label over one drain. `protocol`: IP protocol, or the EtherType (> 255) of a frame
    that is not IP, whose `src` and `dst` are MAC addresses."""

    model_config = ConfigDict(populate_by_name=True)

    start: str
    end: str
    host: str
    port: str
    label: int
    traffic_class: TrafficClass = Field(alias="class")
    direction: Direction
    src: str
    dst: str
    src_port: int
    dst_port: int
    protocol: int
    packets: int
    bytes: int
    tcp_flags: int
    community_id: str = Field(description="version 1; empty for what is not IP")


class Talker(BaseModel):
    """What a label's flows from one address to another sum to. Of frames that are not IP, `src` and `dst` are
    MAC addresses."""

    label: int
    src: str
    dst: str
    packets: int
    bytes: int


class Minute(BaseModel):
    """A label's traffic of one minute, which begins at `minute`."""

    model_config = ConfigDict(populate_by_name=True)

    minute: str
    label: int
    direction: Direction
    traffic_class: TrafficClass = Field(alias="class")
    packets: int
    bytes: int


class LedgerEntry(BaseModel):
    """Where the packets of a label are. `balanced`: seen = stored + pending + lost on every host and boot;
    each term is counted where it lies, none is computed from the others."""

    label: int
    seen_packets: int
    stored_packets: int
    pending_packets: int
    lost: dict[str, int]
    balanced: bool


class Program(BaseModel):
    """What one kernel program costs."""

    program: str
    runs: int
    ns_per_packet: float


class Cost(BaseModel):
    """What a probe takes; `programs` as of one second at `sampled_at`."""

    cpu_percent: float
    memory_bytes: int
    programs: list[Program]
    sampled_at: str | None


class Hook(BaseModel):
    """What one hook counted since the boot, whoever it belonged to."""

    hook: Literal["port", "cgroup"]
    ingress_packets: int
    ingress_bytes: int
    egress_packets: int
    egress_bytes: int


class Interface(BaseModel):
    """An interface of the host's own, and what of its traffic no cgroup hook saw."""

    name: str
    ingress_packets: int
    egress_packets: int
    ingress_not_seen_by_cgroup: int
    egress_not_seen_by_cgroup: int


class Host(BaseModel):
    """A host as its probe last reported it. `alive`: the report is recent; `age_seconds`: how recent."""

    host: str
    alive: bool
    age_seconds: float
    boot: int
    cut: int
    time: str | None
    started_at: str | None
    version: str
    interval_seconds: float
    hooks: list[Hook]
    interfaces: list[Interface]
    malformed: dict[str, int]
    evidence_lost: int = 0
    cost: Cost
    problems: list[str]


class Facts(BaseModel):
    """What a user says of a workload; what is absent or null stays as it was."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, strict=True)

    tenant: str | None = Field(None, max_length=255, description=_SHORT)
    network: str | None = Field(None, max_length=255, description=_SHORT)
    service: str | None = Field(None, max_length=255, description=_SHORT)
    service_id: int | None = Field(None, ge=0, lt=1 << 32, description=f"0 to {(1 << 32) - 1}")
    traffic_class: TrafficClass | None = Field(None, alias="class", description="normal or suspect")


class LabelFacts(BaseModel):
    """All that users have said of a label's workload."""

    label: int
    name: str
    facts: Facts


class SuspectOrder(BaseModel):
    """A prefix or a flow to be declared suspect: 10.0.0.0/8, or tcp 10.0.0.1:1234 10.0.0.2:80."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, strict=True)

    what: str = Field(max_length=200, description="a prefix or a flow of at most 200 characters")
    why: str = Field("", max_length=255, description=_SHORT)
    lasts: str | None = Field(
        None, alias="for", max_length=64, description="a duration like 30s, 5m, 2h or 1d"
    )


class Suspect(BaseModel):
    """A prefix or flow that is suspect, and what it met on all hosts since. `hosts`: where it is in effect;
    `pending`: where it is not yet, since what was counted before could not be written to the disk.

    Each hook that saw a packet counts it: one between two workloads of a host is met twice.
    """

    what: str
    why: str
    sources: list[str]
    added: str | None
    expires: str | None
    hosts: list[str]
    pending: list[str]
    packets: int
    bytes: int
    last_hit: str | None


class Suspects(BaseModel):
    """What users declared, then what was met most. `left_out`: how many more entries of files there are, at
    most on one host; `unanswered`: hosts that did not say."""

    entries: list[Suspect]
    left_out: int
    unanswered: list[str]


class EnforceOrder(BaseModel):
    """Whose suspect packets are to be dropped: a selector."""

    model_config = ConfigDict(extra="forbid", strict=True)

    selector: str = Field(max_length=1000, description="a selector of at most 1000 characters")


class EnforceTarget(BaseModel):
    """A present workload that an order is about. Where its `class` is suspect, all of its packets are."""

    model_config = ConfigDict(populate_by_name=True)

    label: int
    name: str
    host: str
    traffic_class: TrafficClass = Field(alias="class")


class EnforceOrdered(BaseModel):
    """An order as it stands."""

    selector: str
    workloads: list[EnforceTarget]


class EnforcedSource(BaseModel):
    """A port or cgroup of an enforced workload; where it is refused, `reason` says why, and nothing of it is
    dropped."""

    label: int
    name: str
    host: str
    port: str
    hook: Literal["port", "cgroup"]
    state: Literal["enforced", "refused"]
    reason: str


class Enforcement(BaseModel):
    """The orders, and what became of them; `unanswered`: hosts that did not say.

    `stale`: selectors that probes follow though the bus has no such order any more.
    """

    selectors: list[str]
    stale: list[str]
    sources: list[EnforcedSource]
    unanswered: list[str]


class CollectorHealth(BaseModel):
    """What the collector has done since the server started."""

    messages: int
    stored_messages: int
    stored_rows: int
    stored_packets: int
    repeats: int
    malformed: dict[str, int]
    problem: str | None


class ServerCost(BaseModel):
    """What the server itself takes; `cpu_percent` of one core since the last question."""

    cpu_percent: float
    memory_bytes: int
    uptime_seconds: float


class Health(BaseModel):
    """`status` is `ok` where `problems` is empty."""

    status: Literal["ok", "degraded"]
    version: str
    problems: list[str]
    collector: CollectorHealth | None
    server: ServerCost


class Error(BaseModel):
    """What happened, and what to do about it."""

    error: str
    remedy: str
