"""What the API is told and answers about taps; the keys are a contract, as in `models`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from eastwest.bus.taps import Direction

_COUNT = (1 << 32) - 1
LONGEST_FILTER = 32768
LARGEST_SNAPLEN = 122_880
NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"

Receiver = Literal["collector", "application"]


class TapWanted(BaseModel):
    """A standing order to copy packets of workloads, those there are and those to come."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, strict=True)

    name: str = Field(
        pattern=NAME,
        max_length=63,
        description="1 to 63 lower-case letters, digits and hyphens, no hyphen at either end",
    )
    selector: str = Field(max_length=1000, description="a selector of at most 1000 characters")
    filter: str = Field(
        "", max_length=LONGEST_FILTER, description=f"a pcap-filter of at most {LONGEST_FILTER} characters"
    )
    direction: Direction = Field(
        "both", description="ingress (received by the workload), egress (sent by it) or both"
    )
    payload: str = Field(
        "", max_length=80, description="bytes in hexadecimal, like 474554, 474554@0 or 474554<64"
    )
    snaplen: int = Field(0, ge=0, le=LARGEST_SNAPLEN, description=f"0 (all) or 32 to {LARGEST_SNAPLEN}")
    segment: bool = Field(
        False,
        description="true or false: whether copies are as on the wire, cut and finished by the host's CPU",
    )
    service_id: int | None = Field(None, ge=0, le=_COUNT, description=f"0 to {_COUNT}")
    to: str | None = Field(
        None, max_length=270, description="HOST:PORT of an application; without it, this server collects"
    )
    tls: bool = Field(False, description="true or false: whether to speak TLS to the application")
    store: bool = Field(True, description="true or false: whether files are kept")
    lasts: str = Field(
        "1h", alias="for", max_length=64, description="a duration like 30s, 5m, 2h or 1d, or forever"
    )


class TapHost(BaseModel):
    """What became of a tap on a host, its points that are gone included.

    `refused`: where nothing is copied, and why; `problem`: why nothing is delivered.

    matched = written + lost; written = pending + confirmed + lost: `lost` has the places of both.
    """

    host: str
    points: int = 0
    """Ports and cgroups that are tapped now."""
    connected: bool = False
    matched: int = 0
    not_matched: int = 0
    own: int = 0
    """Packets of eastwest's own connections, which are never copied."""
    written: int = 0
    pending: int = 0
    confirmed: int = 0
    sent_bytes: int = 0
    reconnects: int = 0
    lost: dict[str, int] = {}
    refused: list[str] = []
    problem: str = ""


class Tap(BaseModel):
    """A standing order, and what became of it on every host. `workloads`: how many it selects now.

    `pcap_over_ip`: where its packets can be read, if anywhere.
    """

    name: str
    selector: str
    filter: str
    direction: Direction
    payload: str
    snaplen: int
    segment: bool
    service_id: int | None
    to: str
    receiver: Receiver
    tls: bool
    store: bool
    added: str | None
    expires: str | None
    pcap_over_ip: str = ""
    workloads: int = 0
    matched: int = 0
    delivered: int = 0
    lost: dict[str, int] = {}
    hosts: list[TapHost] = []


class TapLedgerEntry(BaseModel):
    """Where the packets that a tap matched (`seen_packets`) are; its filter did not take the others.

    `balanced`: on every host seen = written + lost, and written = pending + delivered + lost; each term is
    counted where it lies, none is computed from the others. Of what was delivered, `unstored_packets` are in
    no file, for want of room on the disk; for `missed_packets` a reader at this server's API was too slow.
    """

    tap: str
    seen_packets: int
    not_matched_packets: int
    delivered_packets: int
    pending_packets: int
    lost: dict[str, int]
    unstored_packets: int
    missed_packets: int
    balanced: bool
