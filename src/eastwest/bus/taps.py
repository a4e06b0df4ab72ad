"""What the roles say to each other about taps: orders to copy packets, and what became of them."""

from typing import Literal

import msgspec

TAPS_BUCKET = "eastwest-taps"
"""name → `TapOrder`, written by the manager, watched by the probes and the collectors."""

ENDPOINTS_BUCKET = "eastwest-endpoints"
"""who listens → JSON list of `address:port` (`[address]:port` for IPv6; no names, no wildcards): eastwest's
own ends of TCP, whose packets no tap copies."""


Direction = Literal["ingress", "egress", "both"]
"""As the workload sees it: egress is sent by it."""


def taps_subject(host: str) -> str:
    """Request subject on which the probe of `host` answers with a `TapsAnswer`."""
    return f"eastwest.probe.{host}.taps"


class TapOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A standing order to copy packets of selected workloads; times: unix ns."""

    name: str
    """Lower-case letters, digits and hyphens, at most 63."""
    selector: str
    to: str
    """host:port that the probe connects to."""
    receiver: Literal["collector", "application"]
    """A collector is shown `key` and confirms what it got; an application is sent pcapng, nothing else."""
    key: str = ""
    """Secret of this tap. Never logged, never in an answer of the API."""
    tls: bool = False
    filter: str = ""
    """pcap-filter(7); empty takes every packet."""
    direction: Direction = "both"
    payload: str = ""
    """Bytes that the payload holds (see `tap.payload.parse`); empty: any."""
    snaplen: int = 0
    """Bytes copied of a packet at most; 0: all."""
    segment: bool = False
    """Copies as on the wire: super-packets cut into segments, checksums finished. At ports only."""
    service_id: int | None = None
    """What copies carry; None: their workload's."""
    store: bool = True
    """Whether the collector keeps files, or only hands the stream on to who reads it now."""
    added: int
    expires: int
    """0: never."""


class TapPoint(msgspec.Struct, frozen=True):
    """One tap at a workload's port, or at all its cgroups, since the probe attached it.

    Packets offered = matched + not_matched; matched = written + every loss. With `segment` a super-packet
    counts as what it is cut into; what is being cut at this moment is among the losses (`relay`).
    """

    tap: str
    label: int
    port: str
    """The host-side interface, empty for a workload's cgroups."""
    matched: int
    not_matched: int
    written: int
    lost: dict[str, int]
    """place → packets that never came into a buffer."""
    own: int = 0
    """Packets of eastwest's own connections (`ENDPOINTS_BUCKET`), which no tap is offered."""
    problem: str = ""
    """Why nothing is copied here, with the remedy."""


class TapStream(msgspec.Struct, frozen=True):
    """One tap's delivery from one host: written = pending + unanswered + confirmed + every loss here."""

    tap: str
    connected: bool
    pending: int
    """Packets in the buffers."""
    unanswered: int
    """Packets sent on this connection that a collector has not said yet that it has."""
    confirmed: int
    """Packets that a collector said it has; of an application, those that its connection took."""
    lost: dict[str, int]
    """place → packets: `undelivered`, still in the buffers when the tap ended; `unconfirmed`, sent and not
    confirmed when a connection broke; `probe_killed`, copied and not confirmed when a probe was killed. The
    last two are upper bounds, since the other end may have got some of them."""
    sent_bytes: int
    reconnects: int
    problem: str = ""


class TapsAnswer(msgspec.Struct, frozen=True):
    """What a probe copies now. What ended is summed up by tap in `past` (points that are gone, also of taps
    that go on) and `past_streams` (taps that are over, the last of them), so that no packet goes unaccounted.
    """

    host: str
    points: list[TapPoint]
    streams: list[TapStream]
    past: list[TapPoint] = []
    past_streams: list[TapStream] = []
    taps: list[str] = []
    """The orders that the probe follows."""
