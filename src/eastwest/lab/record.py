"""The record of the truth: what each workload sent and received, to the packet and byte.

For UDP it is what the sending code counted. For TCP it is `TCP_INFO` of the two ends of a connection that is
still open, and the arithmetic of its headers. Both ends speak for what they sent; the receiver only confirms
the number of segments, since its own byte count leaves out what came twice.

What the kernel counts was found by capture (`tests/system/test_lab.py`): `tcpi_segs_out` of the connecting
end has its SYN, that of the accepting end lacks the SYN-ACK (it was sent before the socket existed), and
`tcpi_segs_in` of both is complete.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

TCP, UDP = 6, 17
IPV4_HEADER, TCP_HEADER = 20, 20
TIMESTAMPS, SACK, WINDOW_SCALE = 1, 2, 4
"""TCPI_OPT_*: what the two ends agreed on."""
DSACK_OPTION = 12
"""NOP, NOP, kind, length and one block (RFC 2883): on the acknowledgement of what came twice."""
LINK_HEADER = 14

Address = tuple[str, int]


class TcpFacts(msgspec.Struct, frozen=True):
    """Of `struct tcp_info`, and what the process has not yet written or read."""

    options: int
    unacked: int
    segs_out: int
    segs_in: int
    notsent: int
    bytes_sent: int
    bytes_received: int
    bytes_retrans: int
    dsack_dups: int
    rcv_ooopack: int
    unread: int
    unwritten: int


class Ends(msgspec.Struct, frozen=True):
    """What one actor reports of one flow. `udp`: packets and bytes sent, packets and bytes received."""

    kind: str
    protocol: int
    local: Address
    peer: Address
    active: bool = False
    tcp: TcpFacts | None = None
    udp: tuple[int, int, int, int] | None = None


class InterfaceCounters(msgspec.Struct, frozen=True):
    """The guest's own interface; bytes with the Ethernet header."""

    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_dropped: int


class ActorReport(msgspec.Struct, frozen=True):
    """All that one actor reports. `busy`: rounds that have begun and not ended."""

    busy: int
    interface: InterfaceCounters | None
    flows: list[Ends]


class FlowRecord(msgspec.Struct, frozen=True):
    """One direction of one flow as its workload sees it; bytes: octetDeltaCount (IPFIX IE 1)."""

    src: str
    dst: str
    src_port: int
    dst_port: int
    protocol: int
    direction: Literal["ingress", "egress"]
    packets: int
    bytes: int


class WorkloadRecord(msgspec.Struct, frozen=True):
    """What one workload sent and received, in all and by flow; `name` as eastwest calls it."""

    name: str
    ingress_packets: int
    ingress_bytes: int
    egress_packets: int
    egress_bytes: int
    flows: list[FlowRecord]


class Record(msgspec.Struct, frozen=True):
    """The truth of a lab since its first packet. Final while the lab is paused."""

    lab: str
    workloads: list[WorkloadRecord]


class Unsettled(Exception):
    """The reports do not agree yet: packets are in flight, or were lost. The message says which."""


def sent(end: Ends, peer: Ends) -> tuple[int, int]:
    """Packets and bytes that `end` sent; `peer` is the other end of the same flow."""
    if end.udp is not None:
        return end.udp[0], end.udp[1]
    if end.tcp is None or peer.tcp is None:
        raise ValueError(f"a flow of protocol {end.protocol} with no counters")
    options = end.tcp.options
    timestamps = 12 if options & TIMESTAMPS else 0
    # SACK-permitted fills the two bytes that would pad the timestamps, and is padded itself without them.
    sack = 4 if options & SACK and not timestamps else 0
    first = 4 + timestamps + sack + (4 if options & WINDOW_SCALE else 0)
    segments = end.tcp.segs_out + (0 if end.active else 1)
    headers = segments * (IPV4_HEADER + TCP_HEADER + timestamps) + first - timestamps
    return segments, headers + end.tcp.bytes_sent + DSACK_OPTION * peer.tcp.dsack_dups


def check_settled(end: Ends, peer: Ends) -> None:
    """Raise `Unsettled` unless all that `end` sent has arrived and been acknowledged."""
    name = f"{end.kind} {end.local[0]}:{end.local[1]} → {end.peer[0]}:{end.peer[1]}"
    if end.udp is not None and peer.udp is not None:
        if end.udp[:2] != peer.udp[2:]:
            raise Unsettled(f"{name}: {end.udp[0]} packets sent, {peer.udp[2]} received")
        return
    if end.tcp is None or peer.tcp is None:
        raise Unsettled(f"{name}: one end is missing")
    if end.tcp.unacked or end.tcp.notsent or end.tcp.unread or end.tcp.unwritten:
        raise Unsettled(f"{name}: {end.tcp.unacked} segments not acknowledged, {end.tcp.unread} bytes unread")
    segments, _ = sent(end, peer)
    if segments != peer.tcp.segs_in:
        raise Unsettled(f"{name}: {segments} segments sent, {peer.tcp.segs_in} received")
    # Data out of order is answered with SACK blocks, whose size nobody counts.
    if end.tcp.options & SACK and end.tcp.rcv_ooopack:
        raise Unsettled(
            f"{name}: {end.tcp.rcv_ooopack} segments came out of order; the headers' size is unknown"
        )


def flow_record(end: Ends, direction: Literal["ingress", "egress"], counts: tuple[int, int]) -> FlowRecord:
    """One entry of the record, in the place of `end`'s workload."""
    src, dst = (end.local, end.peer) if direction == "egress" else (end.peer, end.local)
    return FlowRecord(src[0], dst[0], src[1], dst[1], end.protocol, direction, counts[0], counts[1])


def workload_record(name: str, flows: list[FlowRecord]) -> WorkloadRecord:
    """The sums of `flows`; a flow on which nothing was sent is left out."""
    flows = [flow for flow in flows if flow.packets]

    def total(direction: str, field: str) -> int:
        return sum(getattr(flow, field) for flow in flows if flow.direction == direction)

    return WorkloadRecord(
        name,
        total("ingress", "packets"),
        total("ingress", "bytes"),
        total("egress", "packets"),
        total("egress", "bytes"),
        flows,
    )


def check_interface(record: WorkloadRecord, counters: InterfaceCounters) -> None:
    """Raise `Unsettled` unless the guest's interface counted what its flows say."""
    counted = (
        counters.rx_packets,
        counters.rx_bytes - LINK_HEADER * counters.rx_packets,
        counters.tx_packets,
        counters.tx_bytes - LINK_HEADER * counters.tx_packets,
    )
    recorded = (record.ingress_packets, record.ingress_bytes, record.egress_packets, record.egress_bytes)
    if counted != recorded:
        raise Unsettled(f"{record.name}: its interface counted {counted}, its senders {recorded}")


def seen_outside(inside: ActorReport, outside: ActorReport) -> ActorReport:
    """A report from behind user-mode networking, with the addresses that its peer and the host see.

    What was sent and received is the sender's own count; only the peer knows from where it came.
    """
    flows = []
    for end in inside.flows:
        others = [other for other in outside.flows if other.kind == end.kind]
        if len(others) != 1:
            raise Unsettled(f"{end.kind} from {end.local}: its peer hears it from {len(others)} addresses")
        flows.append(msgspec.structs.replace(end, local=others[0].peer, peer=others[0].local))
    return msgspec.structs.replace(inside, flows=flows)


def pair_record(names: Iterable[str], reports: tuple[ActorReport, ActorReport]) -> list[WorkloadRecord]:
    """The records of two workloads that talk only with each other. Unsettled: they do not agree (yet)."""
    mine, theirs = reports
    if mine.busy or theirs.busy:
        raise Unsettled("rounds of traffic are still going on")
    others = {(end.protocol, end.peer, end.local): end for end in theirs.flows}
    sides: tuple[list[FlowRecord], list[FlowRecord]] = ([], [])
    for end in mine.flows:
        peer = others.pop((end.protocol, end.local, end.peer), None)
        if peer is None:
            raise Unsettled(f"{end.kind} from {end.local} to {end.peer}: nothing has arrived")
        for here, there, near, far in ((end, peer, 0, 1), (peer, end, 1, 0)):
            check_settled(here, there)
            counts = sent(here, there)
            sides[near].append(flow_record(here, "egress", counts))
            sides[far].append(flow_record(there, "ingress", counts))
    if others:
        raise Unsettled(f"flows known at one end only: {sorted(others)}")
    records = [workload_record(name, flows) for name, flows in zip(names, sides, strict=True)]
    for record, report in zip(records, reports, strict=True):
        if report.interface is not None:
            check_interface(record, report.interface)
    return records
