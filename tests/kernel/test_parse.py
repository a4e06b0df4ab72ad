"""Every branch of the parser: what a frame is counted as."""

import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eastwest.kernel import trial
from eastwest.kernel.netns import inside
from eastwest.meter.drain import Drain
from eastwest.meter.meter import Meter, Source
from tests.kernel.frames import DST_MAC, SRC_MAC, ethernet, extension, ipv4, ipv6, tcp, udp

IP, IP6, VLAN, QINQ = 0x0800, 0x86DD, 0x8100, 0x88A8
TCP, UDP, ICMP, ICMP6, SCTP, GRE, FRAGMENT = 6, 17, 1, 58, 132, 47, 44
MAPPED = bytes(10) + b"\xff\xff"
V4 = (MAPPED + bytes((10, 0, 0, 1)), MAPPED + bytes((10, 0, 0, 2)))
V6 = (bytes.fromhex("fd00" + "0" * 27 + "1"), bytes.fromhex("fd00" + "0" * 27 + "2"))
MACS = (bytes(10) + SRC_MAC, bytes(10) + DST_MAC)
NONE = (bytes(16), bytes(16))

# name, frame, addresses, protocol, source port, destination port, bytes, malformed
CASES: list[tuple[str, bytes, tuple[bytes, bytes], int, int, int, int, str]] = [
    ("udp", ethernet(ipv4(udp(bytes(50)), UDP), IP), V4, UDP, 1000, 2000, 78, ""),
    ("tcp", ethernet(ipv4(tcp(bytes(50)), TCP), IP), V4, TCP, 1000, 2000, 90, ""),
    ("padded", ethernet(ipv4(udp(b"x"), UDP), IP) + bytes(17), V4, UDP, 1000, 2000, 29, ""),
    ("options", ethernet(ipv4(udp(), UDP, options=bytes(8)), IP), V4, UDP, 1000, 2000, 36, ""),
    ("vlan", ethernet(ipv4(udp(), UDP), IP, ((VLAN, 5),)), V4, UDP, 1000, 2000, 28, ""),
    ("qinq", ethernet(ipv4(udp(), UDP), IP, ((QINQ, 9), (VLAN, 5))), V4, UDP, 1000, 2000, 28, ""),
    ("three tags", ethernet(bytes(30), IP, ((QINQ, 9), (VLAN, 5), (VLAN, 6))), MACS, VLAN, 0, 0, 34, ""),
    ("first fragment", ethernet(ipv4(udp(bytes(8)), UDP, fragment=0x2000), IP), V4, UDP, 1000, 2000, 36, ""),
    ("later fragment", ethernet(ipv4(udp(bytes(8)), UDP, fragment=4), IP), V4, UDP, 0, 0, 36, ""),
    ("icmp", ethernet(ipv4(b"\x08\x00" + bytes(6), ICMP), IP), V4, ICMP, 0, 0x0800, 28, ""),
    ("sctp", ethernet(ipv4(struct.pack("!HH", 7, 8) + bytes(8), SCTP), IP), V4, SCTP, 7, 8, 32, ""),
    ("gre", ethernet(ipv4(bytes(10), GRE), IP), V4, GRE, 0, 0, 30, ""),
    ("udp6", ethernet(ipv6(udp(bytes(10)), UDP), IP6), V6, UDP, 1000, 2000, 58, ""),
    ("icmp6", ethernet(ipv6(b"\x80\x00" + bytes(6), ICMP6), IP6), V6, ICMP6, 0, 0x8000, 48, ""),
    ("hop-by-hop", ethernet(ipv6(extension(UDP) + udp(), 0), IP6), V6, UDP, 1000, 2000, 56, ""),
    ("long routing", ethernet(ipv6(extension(UDP, 2) + udp(), 43), IP6), V6, UDP, 1000, 2000, 72, ""),
    (
        "authentication",
        ethernet(ipv6(bytes((UDP, 4)) + bytes(22) + udp(), 51), IP6),
        V6,
        UDP,
        1000,
        2000,
        72,
        "",
    ),
    (
        "later fragment 6",
        ethernet(ipv6(extension(UDP, body=b"\x00\x08" + bytes(4)) + udp(), FRAGMENT), IP6),
        *(V6, UDP, 0, 0, 56, ""),
    ),
    (
        "first fragment 6",
        ethernet(ipv6(extension(UDP, body=b"\x00\x01" + bytes(4)) + udp(), FRAGMENT), IP6),
        *(V6, UDP, 1000, 2000, 56, ""),
    ),
    ("no next header", ethernet(ipv6(bytes(4), 59), IP6), V6, 59, 0, 0, 44, ""),
    ("arp", ethernet(bytes(28), 0x0806), MACS, 0x0806, 0, 0, 28, ""),
    ("llc", ethernet(bytes(38), 38), MACS, 1500, 0, 0, 38, ""),
    ("cut tag", DST_MAC + SRC_MAC + b"\x81\x00" + b"\x00", MACS, VLAN, 0, 0, 1, "ethernet"),
    ("short header", ethernet(b"\x44" + ipv4(udp(), UDP)[1:], IP), V4, UDP, 0, 0, 28, "ipv4"),
    ("not version 4", ethernet(b"\x55" + ipv4(udp(), UDP)[1:], IP), V4, UDP, 0, 0, 28, "ipv4"),
    ("not version 6", ethernet(b"\x40" + ipv6(udp(), UDP)[1:], IP6), NONE, IP6, 0, 0, 48, "ipv6"),
    ("cut extension", ethernet(ipv6(b"\x11\x00", 0), IP6), V6, 0, 0, 0, 42, "ipv6"),
    ("cut udp", ethernet(ipv4(b"\x00\x01", UDP), IP), V4, UDP, 0, 0, 22, "transport"),
    ("cut tcp", ethernet(ipv4(tcp()[:13], TCP), IP), V4, TCP, 0, 0, 33, "transport"),
    ("cut icmp", ethernet(ipv4(b"\x08", ICMP), IP), V4, ICMP, 0, 0, 21, "transport"),
    ("claims more", ethernet(ipv4(udp(), UDP, total=500), IP), V4, UDP, 1000, 2000, 28, "length"),
    ("claims less", ethernet(ipv4(udp(), UDP, total=10), IP), V4, UDP, 1000, 2000, 28, "length"),
    ("claims more 6", ethernet(ipv6(udp(), UDP, total=99), IP6), V6, UDP, 1000, 2000, 48, "length"),
    (
        "too many extensions",
        ethernet(ipv6(extension(60) * 9, 60), IP6),
        *(V6, 60, 0, 0, 112, "ipv6_extensions"),
    ),
]

# BPF_PROG_TEST_RUN refuses an IP frame shorter than its header; a wire does not.
# A frame cut within its tag is dropped when the kernel takes the tag off, before any hook; and of three tags
# that leaves two, which are followed.
LIVE_CASES = [
    *(case for case in CASES if case[0] not in ("cut tag", "three tags")),
    ("cut ipv4", ethernet(ipv4(b"", UDP)[:19], IP), NONE, IP, 0, 0, 19, "ipv4"),
    ("cut ipv6", ethernet(ipv6(b"", UDP)[:39], IP6), NONE, IP6, 0, 0, 39, "ipv6"),
    ("empty ipv4", ethernet(b"", IP), NONE, IP, 0, 0, 0, "ipv4"),
]


def counted(meter: Meter, drain: Drain) -> list[tuple[Any, Any]]:
    cut = drain.cut()
    drain.clear(cut.flows)
    return list(zip(cut.flows.keys, cut.flows.counters, strict=True))


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_frame_becomes_the_flow_it_is(meter: Meter, case: tuple[Any, ...]) -> None:
    """Addresses, protocol, ports and IPFIX bytes are as sent; what cannot be read has its reason counted."""
    _, frame, (src, dst), protocol, src_port, dst_port, octets, reason = case
    drain = Drain(meter)
    assert trial.run(meter.program("port_ingress"), frame).verdict == 0xFFFFFFFF
    ((key, counters),) = counted(meter, drain)
    assert (bytes(key["src"]), bytes(key["dst"])) == (src, dst)
    assert (key["protocol"], key["src_port"], key["dst_port"]) == (protocol, src_port, dst_port)
    assert (counters["packets"], counters["bytes"]) == (1, octets)
    assert {name: n for name, n in drain.malformed().items() if n} == ({reason: 1} if reason else {})


def test_an_ip_frame_cut_to_its_link_header_is_refused_by_the_kernel_not_by_us(meter: Meter) -> None:
    """BPF_PROG_TEST_RUN cannot build such an skb; a runt arrives with fewer than 14 bytes or not at all."""
    drain = Drain(meter)
    trial.run(meter.program("port_egress"), ethernet(b"", 0x88CC))
    ((key, counters),) = counted(meter, drain)
    assert (key["protocol"], counters["packets"], counters["bytes"]) == (0x88CC, 1, 0)


def test_live_frames_are_what_they_are_too(meter: Meter, port: tuple[Path, int]) -> None:
    """The same frames over a real port, where a tag arrives in the metadata of the skb, in one go."""
    netns, ifindex = port
    drain = Drain(meter)
    for _, frame, *_ in LIVE_CASES:
        account = meter.open_account()
        meter.set_port(ifindex, Source(0, account))  # tells the frames apart
        with inside(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
            s.sendto(frame, ("eth0", 0))
    flows = sorted(counted(meter, drain), key=lambda flow: flow[0]["account"])
    assert len(flows) == len(LIVE_CASES)
    for (key, counters), (name, _, (src, dst), protocol, src_port, dst_port, octets, _) in zip(
        flows, LIVE_CASES, strict=True
    ):
        assert (name, bytes(key["src"]), bytes(key["dst"])) == (name, src, dst)
        assert (name, key["protocol"], key["src_port"], key["dst_port"]) == (
            name,
            protocol,
            src_port,
            dst_port,
        )
        assert (name, counters["packets"], counters["bytes"]) == (name, 1, octets)
    reasons = Counter(case[-1] for case in LIVE_CASES)
    assert drain.malformed() == {name: reasons[name] for name in drain.malformed()}


@pytest.mark.parametrize("segs", [3, 0])
def test_a_super_packet_counts_as_its_segments(meter: Meter, segs: int) -> None:
    """Three segments of 1000 bytes: three packets, three headers; also where a guest did not count."""
    drain = Drain(meter)
    frame = ethernet(ipv4(tcp(bytes(2500)), TCP), IP)
    trial.run(meter.program("port_ingress"), frame, gso_segs=segs, gso_size=1000)
    ((_, counters),) = counted(meter, drain)
    assert (counters["packets"], counters["bytes"]) == (3, 2500 + 3 * 40)


def test_tcp_flags_of_all_packets_are_ored(meter: Meter) -> None:
    drain = Drain(meter)
    for flags in (0x02, 0x10, 0x101):
        trial.run(meter.program("port_ingress"), ethernet(ipv4(tcp(flags=flags), TCP), IP))
    ((_, counters),) = counted(meter, drain)
    assert (counters["packets"], counters["tcp_flags"]) == (3, 0x113)


def test_directions_and_classes_are_the_workloads(meter: Meter) -> None:
    """What the host's end of a port receives was sent by the workload; suspect is counted apart as well."""
    drain = Drain(meter)
    account = meter.open_account()
    meter.set_port(1, Source(7, account, suspect=True))
    frame = ethernet(ipv4(udp(), UDP), IP)
    trial.run(meter.program("port_ingress"), frame, repeat=2, ifindex=1)
    trial.run(meter.program("port_egress"), frame, repeat=3, ifindex=1)
    cut = drain.cut()
    assert sorted(cut.flows.keys[["direction", "class", "account"]].tolist()) == [
        (0, 1, account),
        (1, 1, account),
    ]
    assert cut.accounts[account].tolist() == [3, 84, 2, 56, 3, 84, 2, 56, 0, 0, 0, 0]
    assert cut.accounts.sum(axis=0, dtype=np.uint64).tolist() == cut.accounts[account].tolist()
    assert cut.hooks[0].tolist() == [3, 84, 2, 56]
