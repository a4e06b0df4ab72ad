"""What the API says of alerts, watches and silences; the keys are a contract (scripts rely on them)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from eastwest.bus.messages import Condition, Severity
from eastwest.manager.models import Flow

_SELECTOR = "a selector of at most 1000 characters"
_NAME = "up to 64 letters, digits, - and _"
_ID = "of at most 64 characters"


class Evidence(BaseModel):
    """A packet of suspect traffic; `packet`: its first bytes from the IP header on, base64."""

    time: str | None
    label: int
    port: str
    direction: Literal["ingress", "egress"]
    entry: str
    src: str
    dst: str
    src_port: int
    dst_port: int
    protocol: int
    dropped: bool
    length: int
    packet: str


class Alert(BaseModel):
    """An alert. `figure` and `threshold` are in `unit`; `flows`: the largest behind it when it was raised."""

    id: str
    kind: str
    state: Literal["firing", "silenced", "resolved"]
    severity: Severity
    watch: str
    subject: str
    label: int
    name: str
    tenant: str
    network: str
    service: str
    host: str
    figure: float
    threshold: float
    unit: str
    text: str
    first_seen: str | None
    last_seen: str | None
    resolved_at: str | None
    flows: list[Flow]
    evidence: list[Evidence]


class WatchBody(BaseModel):
    """A watch to add, or to put in the place of one of its name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=64, description=_NAME)
    match: str = Field(max_length=1000, description=_SELECTOR)
    condition: Condition = Field(description="rate_above, rate_below, new_peer, silence or suspect_share")
    threshold: float = Field(0.0, ge=0, allow_inf_nan=False, description="a number, 0 or more")
    unit: Literal["packets", "bytes"] = Field("packets", description="packets or bytes")
    direction: Literal["ingress", "egress", "both"] = Field("both", description="ingress, egress or both")
    window_seconds: int = Field(60, ge=1, le=30 * 86400, description="a number of seconds")
    for_seconds: int = Field(0, ge=0, le=86400, description="0 to 86400")
    learn_seconds: int = Field(86400, ge=60, le=90 * 86400, description="60 to 7776000")
    severity: Severity = Field("warning", description="info, warning or critical")


class Watch(WatchBody):
    """A watch and how it stands. `unknown`: labels that it cannot judge now, and why."""

    source: Literal["file", "api"]
    state: Literal["ok", "firing", "unknown"]
    workloads: int
    alerts: int
    unknown: dict[str, str]


class SilenceBody(BaseModel):
    """Which alerts nobody is to be told of: `alert` (an id) or `match` (a selector), for `duration`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    alert: str = Field("", max_length=64, description=_ID)
    match: str | None = Field(None, max_length=1000, description=_SELECTOR)
    duration: str = Field(max_length=16, description="how long, like 30m, 1h, 2d")
    comment: str = Field("", max_length=255, description="text of at most 255 characters")


class Silence(BaseModel):
    """A silence that holds."""

    id: str
    alert: str
    match: str | None
    until: str | None
    comment: str


class Removed(BaseModel):
    """What was removed."""

    removed: str
