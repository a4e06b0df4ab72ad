"""The tap: it writes what was on the wire, each packet once, each with its options, each loss named."""

import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eastwest.errors import RefusedError
from eastwest.kernel.netns import inside
from eastwest.tap.filter import Filter, Programs, Wanted, compiled
from eastwest.tap.pcapng import RAW_IP
from eastwest.tap.reading import Hook
from eastwest.tap.taps import CAPTURE, Point, Taps
from tests.conftest import Workload, run
from tests.kernel.frames import ethernet, ipv4, udp
from tests.kernel.tapping import LABEL, SERVICE, Tool, balanced, packet_socket, tap_port, until

INBOUND, OUTBOUND, UNICAST, MULTICAST, BROADCAST = 1, 2, 1 << 2, 2 << 2, 3 << 2
CHECKSUM_NOT_READY, SEGMENTATION_OFFLOADED = 1 << 9, 1 << 11
SUPER_PACKET, UNFINISHED, CUT, TAG_RESTORED = 1, 2, 4, 8
IPV4 = 0x0800
LARGEST_FRAME = 65535 + 14


@pytest.fixture(autouse=True)
def one_cpu() -> Iterator[None]:
    """All frames are in one ring, which holds as many as a test reckons with."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


@pytest.fixture
def workload(netns: Path) -> Iterator[Workload]:
    """A port that takes frames of any length."""
    with Workload(netns) as workload:
        for space, device in ((netns.name, workload.port), (workload.name, "eth0")):
            run("ip", "-n", space, "link", "set", device, "mtu", "65535")
        yield workload


def frame(number: int, size: int, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    """UDP, of `size` bytes in all, its content from its number."""
    content = random.Random(number).randbytes(size - 42 - 4 * len(tags))
    return ethernet(ipv4(udp(content), 17), IPV4, tags)


def seen(taps: Taps) -> int:
    count = taps.count(5)
    return count["matched"] + count["not_matched"]


def send(taps: Taps, netns: Path, device: str, frames: list[bytes]) -> None:
    """Send frames, and wait until the tap of stream 5 has seen them all."""
    before = seen(taps)
    with packet_socket(netns, device) as s:
        for one in frames:
            assert s.send(one) == len(one)
    until(lambda: seen(taps) == before + len(frames))


def test_frames_are_copied_byte_by_byte_in_both_directions(
    taps: Taps, workload: Workload, netns: Path
) -> None:
    """64 bytes to the longest that IP has, odd lengths too: frame, length, and the workload's direction."""
    tool = Tool(taps)
    tap_port(taps, workload.ifindex, tool.order(5))
    sizes = [*range(64, 90), 1514, 4097, 9001, 30000, 65000, LARGEST_FRAME]
    sent = [frame(number, size) for number, size in enumerate(sizes)]
    for space, device, direction in ((workload.netns, "eth0", OUTBOUND), (netns, workload.port, INBOUND)):
        tool.stream.clear()
        tool.reader.start(tool.take)
        for one in sent:  # one at a time: the buffer is small
            send(taps, space, device, [one])
            tool.sections()
        packets = tool.packets()
        assert [packet.data for packet in packets] == sent
        assert {packet.flags for packet in packets} == {direction | UNICAST}
        assert [(packet.captured, packet.original) for packet in packets] == [(size, size) for size in sizes]
        assert {packet.custom for packet in packets} == {(LABEL, SERVICE, 0, 0, 0, 1)}
        assert {(packet.enterprise, packet.dropped) for packet in packets} == {(32473, 0)}
    count = taps.count(5)
    assert count["matched"] == count["written"] == 2 * len(sizes)
    assert count["written_bytes"] == 2 * sum(sizes)


def test_a_tag_beside_the_frame_is_put_back(taps: Taps, workload: Workload) -> None:
    """The kernel keeps the outer tag of what it receives beside the frame; the copy is as it was sent."""
    tool = Tool(taps)
    tap_port(taps, workload.ifindex, tool.order(5))
    tags: list[tuple[tuple[int, int], ...]] = [
        ((0x8100, 7),),
        ((0x8100, 0xEFFE),),
        ((0x88A8, 100), (0x8100, 200)),
        ((0x8100, 1), (0x8100, 2), (0x8100, 3)),
    ]
    sent = [frame(number, 64 + number, one) for number, one in enumerate(tags)]
    send(taps, workload.netns, "eth0", sent)
    packets = tool.packets()
    assert [packet.data for packet in packets] == sent
    assert [packet.original for packet in packets] == [len(one) for one in sent]
    assert {packet.custom[2] for packet in packets} == {TAG_RESTORED}


def test_a_copy_is_cut_and_says_so(taps: Taps, workload: Workload) -> None:
    """snaplen bytes, the tag among them, and the packet's own length; a shorter packet is not cut."""
    tool = Tool(taps)
    tap_port(taps, workload.ifindex, tool.order(5, snaplen=97))
    sent = [frame(1, 97), frame(2, 98), frame(3, 98, ((0x8100, 7),)), frame(4, 9000)]
    send(taps, workload.netns, "eth0", sent)
    packets = tool.packets()
    assert [packet.data for packet in packets] == [one[:97] for one in sent]
    assert [packet.original for packet in packets] == [97, 98, 98, 9000]
    assert [packet.custom[2] for packet in packets] == [0, CUT, CUT | TAG_RESTORED, CUT]


def test_to_whom_a_frame_goes_is_told(taps: Taps, workload: Workload) -> None:
    """One, a group, or all: from the address, as it is to the workload in either direction."""
    tool = Tool(taps)
    tap_port(taps, workload.ifindex, tool.order(5))
    body = frame(1, 64)[6:]
    send(
        taps,
        workload.netns,
        "eth0",
        [bytes.fromhex(to) + body for to in ("020000000002", "01005e000001", "ff" * 6)],
    )
    assert [packet.flags - OUTBOUND for packet in tool.packets()] == [UNICAST, MULTICAST, BROADCAST]


def test_times_are_utc_and_lie_between_the_senders(taps: Taps, workload: Workload) -> None:
    """Nanoseconds since 1970, each between the sender's clock before and after, or a millisecond off."""
    tool = Tool(taps)
    tap_port(taps, workload.ifindex, tool.order(5))
    stamps = []
    with packet_socket(workload.netns, "eth0") as s:
        for number in range(50):
            before = time.time_ns()
            s.send(frame(number, 64))
            until(lambda seen_by_now=number + 1: seen(taps) == seen_by_now)
            stamps.append((before, time.time_ns()))
    packets = tool.packets()
    assert len(packets) == 50
    for packet, (before, after) in zip(packets, stamps, strict=True):
        assert before - 1_000_000 <= packet.time <= after + 1_000_000


def test_super_packets_and_unfinished_checksums_of_tcp_are_marked(
    taps: Taps, workload: Workload, netns: Path
) -> None:
    """What a packet socket sees of a TCP transfer, in order, byte by byte; marked as what it is."""
    for space, device in ((netns.name, workload.port), (workload.name, "eth0")):
        run("ip", "-n", space, "link", "set", device, "mtu", "1500")
    run("ip", "-n", netns.name, "link", "set", workload.port, "address", "02:00:00:00:00:02")
    run("ip", "-n", netns.name, "address", "add", "10.1.0.2/24", "dev", workload.port)
    tool = Tool(taps)
    tap_port(taps, workload.ifindex, tool.order(5))
    content = random.Random(1).randbytes(300_000)
    with packet_socket(netns, workload.port) as sniffer:
        with inside(netns):
            sniffer.bind((workload.port, 3))  # ETH_P_ALL
            sniffer.setblocking(False)
            server = socket.create_server(("10.1.0.2", 0))
        with inside(workload.netns):
            client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        with server, peer, client:
            sender = threading.Thread(target=client.sendall, args=(content,))
            sender.start()
            received = bytearray()
            while len(received) < len(content):
                received += peer.recv(65536)
                tool.sections()
            sender.join()
        seen = []
        try:
            while True:
                data, address = sniffer.recvfrom(1 << 17)
                if address[2] != 4:  # PACKET_OUTGOING
                    seen.append(data)
        except BlockingIOError:
            pass
    sent = [packet for packet in tool.packets() if packet.flags & OUTBOUND]
    assert received == content
    assert taps.count(5)["written"] == taps.count(5)["matched"]
    assert [packet.data for packet in sent][: len(seen)] == seen
    large = [packet for packet in sent if packet.custom[2] & SUPER_PACKET]
    assert large
    assert max(packet.original for packet in large) > 1514
    for packet in large:
        _, _, flags, size, segments, _ = packet.custom
        headers = 14 + 20 + (packet.data[46] >> 4) * 4
        assert segments == -(-(packet.original - headers) // size)
        assert packet.flags & SEGMENTATION_OFFLOADED
        assert flags & UNFINISHED
    assert all(
        bool(packet.flags & CHECKSUM_NOT_READY) == bool(packet.custom[2] & UNFINISHED) for packet in sent
    )


_EXCHANGE = """
import os, socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', int(sys.argv[2])))
print('ready', flush=True)
sys.stdin.readline()
for i in range(int(sys.argv[4])):
    s.sendto(b'%s %d' % (sys.argv[2].encode(), i), ('127.0.0.1', int(sys.argv[3])))
print('sent', flush=True)
sys.stdin.readline()
"""


def test_a_process_group_is_tapped_and_another_is_not(taps: Taps, cgroup: Path, netns: Path) -> None:
    """Two groups that talk over lo: what one sends and gets is copied, as raw IP; the other's is not."""
    groups = [cgroup / "a", cgroup / "b"]
    for group in groups:
        group.mkdir()
    tool = Tool(taps)
    order = tool.order(5, name="a", link_type=RAW_IP)
    taps.set_cgroup(groups[0].stat().st_ino, Point(LABEL, [order]))
    taps.attach_cgroup(cgroup)
    with inside(netns):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _EXCHANGE, str(group), mine, theirs, count],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for group, mine, theirs, count in zip(
                groups, ("4001", "4002"), ("4002", "4001"), ("30", "20"), strict=True
            )
        ]
    for word in ("ready\n", "sent\n"):
        for process in processes:
            assert process.stdout and process.stdin
            assert process.stdout.readline() == word
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
    for process in processes:
        process.communicate()
    (section,) = tool.sections()
    assert [interface.link_type for interface in section.interfaces] == [RAW_IP]
    told = {(packet.flags & 3, packet.data[28:]) for packet in section.packets}
    assert told == {(OUTBOUND, b"4001 %d" % i) for i in range(30)} | {
        (INBOUND, b"4002 %d" % i) for i in range(20)
    }
    assert len(section.packets) == 50
    assert {packet.data[0] for packet in section.packets} == {0x45}
    assert all(packet.original == len(packet.data) for packet in section.packets)


def test_interfaces_name_where_packets_are_from(taps: Taps, workload: Workload, netns: Path) -> None:
    """Host, port, workload, tenant, network; one that comes later is told of before its first packet."""
    tool = Tool(taps)
    tap_port(taps, workload.ifindex, tool.order(5, name="tap-1"))
    send(taps, workload.netns, "eth0", [frame(1, 64)])
    tool.sections()
    with Workload(netns) as other:
        tap_port(taps, other.ifindex, tool.order(5, name="tap-2", snaplen=100))
        send(taps, other.netns, "eth0", [frame(2, 64)])
        (section,) = tool.sections()
        taps.detach_port(other.ifindex)
    assert [interface.name for interface in section.interfaces] == ["tap-1", "tap-2"]
    assert [packet.interface for packet in section.packets] == [0, 1]
    second = section.interfaces[1]
    assert (second.link_type, second.snaplen) == (1, 100)
    assert second.options[3] == b"web (tenant blue, network lan-7, host host-1)"
    assert second.options[9] == b"\x09"
    assert second.options[15] == b"veth"
    assert json.loads(second.options[1]) == {
        "host": "host-1",
        "port": "tap-2",
        "workload": "web",
        "tenant": "blue",
        "network": "lan-7",
        "label": LABEL,
    }
    assert json.loads(section.options[1]) == {"host": "host-1"}


def test_a_reader_that_reads_nothing_loses_named_packets_of_its_own(taps: Taps, workload: Workload) -> None:
    """The other tool has all of it, in order; matched = written + buffer_full, and drops are told."""
    lazy, eager = Tool(taps, 0), Tool(taps, 1)
    tap_port(taps, workload.ifindex, lazy.order(5), eager.order(6))
    sent = [frame(number, 1000) for number in range(3000)]
    for start in range(0, len(sent), 100):
        send(taps, workload.netns, "eth0", sent[start : start + 100])
        eager.sections()
    count = taps.count(5)
    kept = count["written"]
    assert [packet.data for packet in eager.packets()] == sent
    assert count["matched"] == 3000
    assert count["buffer_full"] == count["unreported"] == 3000 - kept
    assert 0 < kept < 3000
    assert lazy.rings.pending() == kept
    assert [packet.data for packet in lazy.packets()] == sent[:kept]
    assert lazy.reader.sent_packets == kept
    send(taps, workload.netns, "eth0", [frame(1, 64), frame(2, 64)])
    assert [packet.dropped for packet in lazy.packets()] == [0] * kept + [3000 - kept, 0]
    assert taps.count(5)["unreported"] == 0
    assert balanced(taps.count(5))


def test_odd_sizes_go_round_many_laps(taps: Taps, workload: Workload) -> None:
    """A hundred laps, blocks that end beyond the ring: all there, in order."""
    tool = Tool(taps)
    tap_port(taps, workload.ifindex, tool.order(5))
    sizes = random.Random(7)
    laps, number = 0, 0
    while laps < 100 * tool.rings.size:
        sent = []
        while sum(map(len, sent)) < tool.rings.size * 2 // 3:
            length = sizes.choice((sizes.randrange(64, 2000), sizes.randrange(64, 60000)))
            sent.append(
                frame(number, length) if length < 300 else frame(1, length)[:-4] + struct.pack("=I", number)
            )
            number += 1
        send(taps, workload.netns, "eth0", sent)
        tool.stream.clear()
        tool.reader.start(tool.take)
        assert [packet.data for packet in tool.packets()] == sent
        laps += sum(map(len, sent))
    count = taps.count(5)
    assert (count["matched"], count["written"]) == (number, number)
    assert tool.reader.sent_packets == number


def test_no_order_may_ask_for_more_than_a_block_holds(taps: Taps) -> None:
    """Nor for less than the headers that are put together."""
    tool = Tool(taps)
    for snaplen in (31, CAPTURE + 1):
        with pytest.raises(RefusedError, match=f"choose 32 to {CAPTURE}"):
            taps.set_port(1, Point(LABEL, [tool.order(5, snaplen=snaplen)]))
    with pytest.raises(RefusedError, match="at most 16"):
        taps.set_port(1, Point(LABEL, [tool.order(5)] * 17))


def test_filters_decide_what_is_copied(taps: Taps, workload: Workload) -> None:
    """Sent = matched + not matched, for each order, and each has its own packets and no other."""
    wanted = [Wanted("udp dst port 53"), Wanted("greater 200"), Wanted("vlan 7")]
    filters = [one for one in compiled(wanted, Hook.PORT) if isinstance(one, Filter)]
    Programs(taps.map("port_filters"), Hook.PORT).put(3, filters)
    tool = Tool(taps)
    orders = [tool.order(stream, filtered=True) for stream in (5, 6, 7)]
    tap_port(taps, workload.ifindex, *orders, place=3)
    dns = ethernet(ipv4(udp(bytes(50), dst=53), 17), IPV4)
    sent = [dns] * 4 + [frame(1, 300)] * 3 + [frame(2, 100, ((0x8100, 7),))] * 2 + [frame(3, 64)]
    send(taps, workload.netns, "eth0", sent)
    packets = tool.packets()
    assert [(packet.interface, packet.data) for packet in packets] == [(0, dns)] * 4 + [(1, sent[4])] * 3 + [
        (2, sent[7])
    ] * 2
    for stream, taken in ((5, 4), (6, 3), (7, 2)):
        count = taps.count(stream)
        assert (count["matched"], count["not_matched"], count["written"]) == (taken, 10 - taken, taken)


def test_no_filter_in_its_place_takes_nothing(taps: Taps, workload: Workload) -> None:
    """An order that is filtered, with no filter there, copies nothing: all is counted as not matched."""
    tool = Tool(taps)
    tap_port(taps, workload.ifindex, tool.order(5, filtered=True), tool.order(6))
    send(taps, workload.netns, "eth0", [frame(number, 64) for number in range(7)])
    assert len(tool.packets()) == 7
    assert (taps.count(5)["matched"], taps.count(5)["not_matched"]) == (0, 7)
    assert (taps.count(6)["matched"], taps.count(6)["not_matched"]) == (7, 0)


def test_a_destination_that_is_gone_is_a_named_loss(taps: Taps, workload: Workload) -> None:
    """Closed while its port is still tapped: nothing is written anywhere, and it can be opened again."""
    tool = Tool(taps)
    tap_port(taps, workload.ifindex, tool.order(5))
    send(taps, workload.netns, "eth0", [frame(1, 64)])
    taps.close_destination(0)
    send(taps, workload.netns, "eth0", [frame(2, 64)])
    count = taps.count(5)
    assert (count["written"], count["no_buffer"]) == (1, 1)
    again = Tool(taps)
    again.order(5)
    send(taps, workload.netns, "eth0", [frame(3, 64)])
    assert [(packet.data, packet.dropped) for packet in again.packets()] == [(frame(3, 64), 1)]
