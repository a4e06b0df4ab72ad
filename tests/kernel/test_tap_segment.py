"""Copies as on the wire: what the kernel would have a network card cut and finish is cut and finished."""

import json
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from eastwest.kernel.netns import inside
from eastwest.tap import relay
from eastwest.tap.config import TapConfig
from eastwest.tap.segments import Segments
from eastwest.tap.taps import Taps
from tests.conftest import Workload, run
from tests.kernel.blocks import Packet
from tests.kernel.frames import ethernet, ipv4, ipv6, tcp, udp
from tests.kernel.tapping import LABEL, SERVICE, SMALL, Tool, packet_socket, tap_port, until

OUTBOUND, UNICAST = 2, 1 << 2
SUPER_PACKET, UNFINISHED, CUT, TAG_RESTORED, MADE = 1, 2, 4, 8, 16
IPV4, IPV6 = 0x0800, 0x86DD
MSS = 1000
ADDRESSES = {socket.AF_INET: ("10.1.0.1", "10.1.0.2"), socket.AF_INET6: ("fd01::1", "fd01::2")}


@pytest.fixture
def taps(netns: Path) -> Iterator[Taps]:
    with Taps(TapConfig(memory=8 * SMALL), netns) as taps:
        yield taps


@pytest.fixture
def segments(taps: Taps) -> Iterator[Segments]:
    """A relay, and what is on its way through it."""
    segments = Segments(taps)
    segments.open()
    try:
        yield segments
    finally:
        segments.close()


@pytest.fixture
def workload(netns: Path) -> Iterator[Workload]:
    """A port that carries what the test sends, and nothing else."""
    with Workload(netns) as workload:
        yield workload


def address(workload: Workload, netns: Path) -> None:
    """Give both ends addresses, so that the host is whom the workload talks to. IPv6 adds some of its own."""
    run("ip", "-n", netns.name, "link", "set", workload.port, "address", "02:00:00:00:00:02")
    for space, device, end in ((workload.name, "eth0", 0), (netns.name, workload.port, 1)):
        with inside(Path("/run/netns") / space):
            Path(f"/proc/sys/net/ipv6/conf/{device}/accept_dad").write_text("0")
            Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("0")
        run("ip", "-n", space, "address", "add", f"{ADDRESSES[socket.AF_INET6][end]}/64", "dev", device)
    run("ip", "-n", netns.name, "address", "add", "10.1.0.2/24", "dev", workload.port)


def checksum(data: bytes) -> int:
    """RFC 1071; 0 over what holds a right one."""
    total = sum(struct.unpack(f"!{len(data + bytes(len(data) % 2)) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Wire(NamedTuple):
    """A TCP or UDP packet as a receiver reads it from a wire."""

    protocol: int
    sequence: int
    payload: bytes


def read(frame: bytes) -> Wire:
    """A frame's content; the lengths and checksums of TCP and UDP are right, or this fails."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    packet = frame[at + 2 :]
    if frame[at : at + 2] not in (b"\x08\x00", b"\x86\xdd"):
        return Wire(0, 0, b"")
    if packet[0] >> 4 == 4:
        header = (packet[0] & 15) * 4
        assert checksum(packet[:header]) == 0
        assert struct.unpack_from("!H", packet, 2)[0] == len(packet)
        protocol, addresses = packet[9], packet[12:20]
    else:
        header = 40
        assert struct.unpack_from("!H", packet, 4)[0] == len(packet) - header
        protocol, addresses = packet[6], packet[8:40]
    segment = packet[header:]
    if protocol not in (6, 17):
        return Wire(protocol, 0, b"")
    assert checksum(addresses + struct.pack("!II", len(segment), protocol) + segment) == 0
    if protocol == 17:
        assert struct.unpack_from("!H", segment, 4)[0] == len(segment)
        return Wire(protocol, 0, segment[8:])
    return Wire(protocol, struct.unpack_from("!I", segment, 4)[0], segment[(segment[12] >> 4) * 4 :])


def settled(taps: Taps, segments: Segments) -> dict[str, int]:
    segments.wait()
    return taps.count(5)


def segmenting(taps: Taps, segments: Segments, workload: Workload, snaplen: int | None = None) -> Tool:
    """A tool with an order for copies as on the wire, stream 5."""
    tool = Tool(taps)
    order = tool.order(5) if snaplen is None else tool.order(5, snaplen=snaplen)
    tap_port(taps, workload.ifindex, order._replace(segment=segments.begin(5)))
    return tool


@pytest.mark.parametrize("family", ADDRESSES)
def test_tcp_is_copied_as_it_is_on_the_wire(
    taps: Taps, segments: Segments, workload: Workload, netns: Path, family: socket.AddressFamily
) -> None:
    """A bulk transfer: no copy longer than the MTU, each checksum right, every byte there once."""
    address(workload, netns)
    tool = segmenting(taps, segments, workload)
    content = random.Random(1).randbytes(400_000)
    client_address, server_address = ADDRESSES[family]
    with inside(netns):
        server = socket.create_server((server_address, 0), family=family)
    with inside(workload.netns):
        client = socket.socket(family)
        client.bind((client_address, 0))
    with server, client:
        client.connect(server.getsockname())
        peer, _ = server.accept()
        sender = threading.Thread(target=client.sendall, args=(content,))
        sender.start()
        received = bytearray()
        with peer:
            while len(received) < len(content):
                received += peer.recv(65536)
                tool.sections()
            sender.join()
    assert received == content
    taps.detach_port(workload.ifindex)  # a late ACK, or a question for an address, is not counted then
    taps.settle(anyway=True)
    count = settled(taps, segments)
    packets = tool.packets()
    assert count["relayed"] == count["arrived"] > 200
    assert count["matched"] == count["written"] == len(packets)
    assert max(packet.original for packet in packets) == 1514
    assert not any(packet.custom[2] & (SUPER_PACKET | UNFINISHED) for packet in packets)
    assert not any(packet.flags >> 9 for packet in packets)
    assert {packet.custom[:2] for packet in packets} == {(LABEL, SERVICE)}
    sent = [read(packet.data) for packet in packets if packet.flags & 3 == OUTBOUND]
    for packet in packets:
        read(packet.data)
    data = {wire.sequence: wire.payload for wire in sent if wire.payload}
    first = min(data)
    assert b"".join(data[at] for at in sorted(data)) == content
    assert all(content[at - first : at - first + len(part)] == part for at, part in data.items())


@pytest.mark.parametrize("family", ADDRESSES)
def test_udp_segments_are_the_datagrams(
    taps: Taps, segments: Segments, workload: Workload, netns: Path, family: socket.AddressFamily
) -> None:
    """Ten datagrams in one super-packet (UDP_SEGMENT), and one alone: eleven copies, in order."""
    address(workload, netns)
    tool = segmenting(taps, segments, workload)
    datagrams = [random.Random(number).randbytes(700) for number in range(9)] + [b"the last", b"alone"]
    with inside(netns):
        receiver = socket.socket(family, socket.SOCK_DGRAM)
        receiver.bind((ADDRESSES[family][1], 0))
    with inside(workload.netns):
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with receiver, sender:
        sender.connect(receiver.getsockname())
        sender.sendmsg([b"".join(datagrams[:-1])], [(socket.IPPROTO_UDP, 103, struct.pack("=H", 700))])
        sender.send(datagrams[-1])
        assert [receiver.recv(65536) for _ in datagrams] == datagrams
    until(lambda: settled(taps, segments)["written"] >= 11)
    copies = [packet for packet in tool.packets() if packet.flags & 3 == OUTBOUND]
    wires = [read(packet.data) for packet in copies if packet.custom[2] & MADE]
    assert [wire.payload for wire in wires if wire.protocol == 17] == datagrams
    count = settled(taps, segments)
    assert count["relayed"] == count["arrived"] == 11
    assert count["matched"] == count["written"]


def unfinished(payload: bytes, protocol: int, version: int) -> tuple[bytes, int]:
    """An IP packet whose transport checksum is that of the pseudo-header alone, and where it is."""
    wrap = ipv4 if version == 4 else ipv6
    packet = bytearray(wrap(payload, protocol))
    header = 20 if version == 4 else 40
    if version == 4:
        packet[10:12] = struct.pack("!H", checksum(bytes(packet[:20])))
    addresses = bytes(packet[12:20] if version == 4 else packet[8:40])
    at = header + (16 if protocol == 6 else 6)
    packet[at : at + 2] = struct.pack(
        "!H", ~checksum(addresses + struct.pack("!II", len(payload), protocol)) & 0xFFFF
    )
    return bytes(packet), at - header


class Offer(NamedTuple):
    """A frame, and what a packet socket tells the kernel of it (struct virtio_net_hdr)."""

    frame: bytes
    header: bytes

    @classmethod
    def of(
        cls, payload: bytes, protocol: int, version: int, tags: tuple[tuple[int, int], ...] = ()
    ) -> "Offer":
        """Of MSS bytes of payload a segment, if it has more."""
        transport = tcp(payload) if protocol == 6 else udp(payload)
        packet, offset = unfinished(transport, protocol, version)
        start = 14 + 4 * len(tags) + len(packet) - len(transport)
        kind = (1 if version == 4 else 4) if len(payload) > MSS else 0
        headers = start + len(transport) - len(payload)
        header = struct.pack("=BBHHHH", 1, kind, headers, MSS if kind else 0, start, offset)
        return cls(ethernet(packet, IPV4 if version == 4 else IPV6, tags), header)


def offer(workload: Workload, offers: list[Offer]) -> None:
    with packet_socket(workload.netns, "eth0") as s:
        s.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        for one in offers:
            assert s.send(one.header + one.frame) == len(one.header + one.frame)


def copied(taps: Taps, segments: Segments, tool: Tool, packets: int) -> list[Packet]:
    until(lambda: taps.count(5)["matched"] >= packets)
    segments.wait()
    return tool.packets()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tags", [(), ((0x8100, 7),), ((0x88A8, 9), (0x8100, 7))])
def test_a_guests_super_packet_keeps_its_tags(
    taps: Taps, segments: Segments, workload: Workload, version: int, tags: tuple[tuple[int, int], ...]
) -> None:
    """As a virtual machine sends them, uncounted: 5 segments, each with the tags, its length and checksum."""
    tool = segmenting(taps, segments, workload)
    content = random.Random(version).randbytes(4 * MSS + 1)
    offer(workload, [Offer.of(content, 6, version, tags), Offer.of(b"x" * 9, 17, version, tags)])
    packets = copied(taps, segments, tool, 6)
    wires = [read(packet.data) for packet in packets]
    assert [len(wire.payload) for wire in wires] == [MSS] * 4 + [1, 9]
    assert b"".join(wire.payload for wire in wires[:5]) == content
    chain = b"".join(struct.pack("!HH", *tag) for tag in tags)
    assert {packet.data[12 : 12 + len(chain)] for packet in packets} == {chain}
    assert [packet.original for packet in packets] == [len(packet.data) for packet in packets]
    assert {packet.custom[2] for packet in packets} == {MADE | (TAG_RESTORED if tags else 0)}
    assert {packet.flags for packet in packets} == {OUTBOUND | UNICAST}
    count = taps.count(5)
    assert (count["matched"], count["written"], count["relayed"], count["arrived"]) == (6, 6, 6, 6)


def test_a_snaplen_cuts_the_copy_and_not_the_length(
    taps: Taps, segments: Segments, workload: Workload
) -> None:
    """Each segment has its own length on the wire; of its bytes only the first are there."""
    tool = segmenting(taps, segments, workload, snaplen=60)
    offer(workload, [Offer.of(bytes(2 * MSS + 100), 6, 4)])
    packets = copied(taps, segments, tool, 3)
    assert [(packet.captured, packet.original) for packet in packets] == [(60, 1054), (60, 1054), (60, 154)]
    assert {packet.custom[2] for packet in packets} == {MADE | CUT}


def test_originals_are_untouched_and_other_orders_see_them_as_they_are(
    taps: Taps, segments: Segments, workload: Workload, netns: Path
) -> None:
    """Behind the tap: every byte and the mark of before; an order without segment beside one with it."""
    tool = Tool(taps)
    cut = tool.order(5)._replace(segment=segments.begin(5))
    tap_port(taps, workload.ifindex, cut, tool.order(6, name="as seen"))
    offers = [Offer.of(random.Random(1).randbytes(3000), 6, 4), Offer.of(b"y" * 20, 17, 4)]
    plain = ethernet(ipv4(udp(bytes(50)), 17), IPV4)
    offers.append(Offer(plain, bytes(10)))
    with packet_socket(netns, workload.port) as sniffer:
        sniffer.bind((workload.port, 3))  # ETH_P_ALL
        offer(workload, offers)
        behind = [sniffer.recv(1 << 17) for _ in offers]
    packets = copied(taps, segments, tool, 5)
    assert behind == [one.frame for one in offers]
    as_seen = [packet for packet in packets if packet.interface == 1]
    assert [packet.data for packet in as_seen] == behind
    assert [packet.custom[2] for packet in as_seen] == [SUPER_PACKET | UNFINISHED, UNFINISHED, 0]
    made = [packet for packet in packets if packet.interface == 0]
    assert sorted(packet.original for packet in made) == [62, 92, 1054, 1054, 1054]
    assert {packet.time for packet in made} == {packet.time for packet in as_seen}
    assert [packet.data for packet in made if not packet.custom[2]] == [plain]
    assert taps.count(6)["matched"] == 3


def test_what_the_relay_cannot_take_is_lost_by_name(
    taps: Taps, segments: Segments, workload: Workload
) -> None:
    """More segments than may wait; then one where the relay is gone: what did not arrive is counted."""
    tool = segmenting(taps, segments, workload)
    into, most = struct.unpack("=II", taps.map("relay_device").lookup(bytes(4)) or b"")
    assert most == relay.most_waiting()
    taps.map("relay_device").update(bytes(4), struct.pack("=II", into, 4))
    offer(workload, [Offer.of(bytes(5 * MSS), 6, 4), Offer.of(bytes(3 * MSS), 6, 4)])
    assert len(copied(taps, segments, tool, 8)) == 3
    count = taps.count(5)
    assert (count["relayed"], count["arrived"], count["written"]) == (8, 3, 3)
    segments.close()
    offer(workload, [Offer.of(bytes(2 * MSS), 6, 4)])
    until(lambda: taps.count(5)["matched"] >= 10)
    count = taps.count(5)
    assert (count["matched"], count["relayed"], count["arrived"]) == (10, 10, 3)
    segments.open()
    offer(workload, [Offer.of(bytes(2 * MSS), 6, 4)])
    assert len(copied(taps, segments, tool, 12)) == 5


def test_what_is_on_its_way_for_an_order_before_is_not_the_next_ones(
    taps: Taps, segments: Segments, workload: Workload
) -> None:
    """Whoever has the stream now gets no segment of a packet that was taken for another."""
    tool = segmenting(taps, segments, workload)
    segments.begin(5)
    offer(workload, [Offer.of(bytes(3 * MSS), 6, 4)])
    assert copied(taps, segments, tool, 3) == []
    count = taps.count(5)
    assert (count["relayed"], count["arrived"], count["written"]) == (3, 0, 0)


def links(netns: Path) -> set[str]:
    return {
        line.split(":")[1].split("@")[0] for line in run("ip", "-n", netns.name, "-o", "link").splitlines()
    }


def test_no_relay_is_left(netns: Path, tmp_path: Path) -> None:
    """Not by a tap that ends, nor, once the next one looks, by one that was killed."""
    before, note = links(netns), relay.note(tmp_path)
    with Taps(TapConfig(memory=SMALL), netns) as taps:
        segments = Segments(taps, note)
        segments.open()
        segments.open()
        assert len(links(netns) - before) == 2
        segments.close()
        assert (links(netns), note.exists()) == (before, False)
        segments.open()
    assert len(links(netns) - before) == 2  # as after kill -9
    assert relay.remove_leftover(note)
    assert (links(netns), note.exists()) == (before, False)
    assert not relay.remove_leftover(note)


def test_a_note_of_somebody_elses_interface_removes_nothing(
    netns: Path, tmp_path: Path, workload: Workload
) -> None:
    """Whatever is written there: only what has a relay's name is taken away."""
    before, note = links(netns), relay.note(tmp_path)
    note.write_text(json.dumps({"netns": str(netns), "name": workload.port}))
    assert not relay.remove_leftover(note)
    assert links(netns) == before
    note.write_text('{"netns": ')
    assert not relay.remove_leftover(note)


def test_a_relay_that_somebody_took_away_is_made_again(
    taps: Taps, segments: Segments, workload: Workload, netns: Path
) -> None:
    """At the next look at what is wanted."""
    tool = segmenting(taps, segments, workload)
    (name, _) = sorted(links(netns) - {" lo", f" {workload.port}"})
    run("ip", "-n", netns.name, "link", "del", name.strip())
    segments.open()
    offer(workload, [Offer.of(bytes(2 * MSS), 6, 4)])
    assert len(copied(taps, segments, tool, 2)) == 2
