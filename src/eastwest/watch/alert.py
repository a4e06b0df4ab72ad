"""What an alert is, and what makes one."""

from typing import Any, Literal, NamedTuple

import msgspec

from eastwest.bus.messages import Severity, Workload
from eastwest.store.watching import FlowFilter

State = Literal["firing", "silenced", "resolved"]


class Key(NamedTuple):
    """Of one key there is one open alert at most."""

    kind: str
    watch: str
    label: int
    subject: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that holds now and should not."""

    key: Key
    severity: Severity
    figure: float
    threshold: float
    unit: str
    text: str
    """One line, without the workload's name."""
    workload: Workload | None = None
    flows: FlowFilter | None = None
    hold_seconds: int = 0
    """How long it must hold before it is an alert."""
    evidence: list[dict[str, Any]] = msgspec.field(default_factory=list)
    watermark: int = 0


class Alert(msgspec.Struct, kw_only=True):
    """An alert from its first moment to its last, and afterwards. Times: unix ns by the server's clock."""

    id: str
    kind: str
    watch: str
    subject: str
    state: State
    severity: Severity
    label: int
    name: str = ""
    tenant: str = ""
    network: str = ""
    service: str = ""
    host: str = ""
    figure: float
    threshold: float
    unit: str
    text: str
    first_seen: int
    last_seen: int
    resolved_at: int = 0
    flows: list[dict[str, Any]] = msgspec.field(default_factory=list)
    evidence: list[dict[str, Any]] = msgspec.field(default_factory=list)
    watermark: int = 0
    """suspect: up to which evidence (as received, unix ns) it has been told of."""
    told: dict[str, str] = msgspec.field(default_factory=dict)
    """Output → which state it was last told."""

    @property
    def key(self) -> Key:
        return Key(self.kind, self.watch, self.label, self.subject)

    def take(self, finding: Finding, now: int) -> None:
        """What is found now; whose it is stays as it was where that is not known any more."""
        self.figure, self.threshold, self.unit = finding.figure, finding.threshold, finding.unit
        self.severity, self.last_seen = finding.severity, now
        self.watermark = max(self.watermark, finding.watermark)
        self.evidence = (self.evidence + finding.evidence)[:MAX_EVIDENCE]
        if (workload := finding.workload) is not None:
            self.name, self.tenant, self.network = workload.name, workload.tenant, workload.network
            self.service, self.host = workload.service, workload.host
        self.text = f"{self.who}: {finding.text}"

    @property
    def who(self) -> str:
        return f"{self.name} (label {self.label})" if self.name else f"label {self.label}"


MAX_EVIDENCE = 16
"""Packets kept with an alert: the first."""
