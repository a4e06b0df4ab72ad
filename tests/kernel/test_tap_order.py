"""A stream is in the order of its times, whatever CPUs its packets are copied on."""

import os
import random
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from eastwest.kernel import merge, trial
from eastwest.kernel.netns import inside
from eastwest.tap import reader
from eastwest.tap.reader import Left
from eastwest.tap.taps import Taps
from tests.kernel.blocks import Packet, parse
from tests.kernel.frames import ethernet, ipv4, udp
from tests.kernel.tapping import LO, SMALL, Tool, balanced, by_pieces, tap_port, tapping

HOUR = 3600 * 10**9
LONG_HOLD = 50_000_000
"""A busy machine stops a CPU in the middle of a copy for longer than a reader waits for it; in ns."""


@pytest.fixture
def cpus() -> Iterator[list[int]]:
    """That this thread may be on; afterwards it may be on each of them again."""
    cpus = sorted(os.sched_getaffinity(0))
    yield cpus
    os.sched_setaffinity(0, cpus)


def put(taps: Taps, cpu: int, numbers: Sequence[int], size: int = 100) -> None:
    os.sched_setaffinity(0, {cpu})
    for one in numbers:
        data = struct.pack("=I", one).ljust(size - 42, b"x")
        trial.run(taps.program("tap_port_ingress"), ethernet(ipv4(udp(data), 17), 0x0800), ifindex=LO)


def number(packet: Packet, at: int = 42) -> int:
    (found,) = struct.unpack_from("=I", packet.data, at)
    return int(found)


def in_order(packets: Sequence[Packet]) -> bool:
    return all(one.time <= after.time for one, after in pairwise(packets))


class Far:
    """The end of a socket that takes by fits and starts, and keeps what it got."""

    def __init__(self, seed: int) -> None:
        self.near, self._far = socket.socketpair()
        self.near.setblocking(False)
        self._far.setblocking(False)
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self._random = random.Random(seed)
        self.got = bytearray()

    def take(self) -> None:
        with suppress(BlockingIOError):
            self.got += self._far.recv(self._random.randrange(1, 9000))

    def close(self) -> bytes:
        """What was under way is taken, too."""
        self.near.close()
        self._far.setblocking(True)
        while more := self._far.recv(1 << 16):
            self.got += more
        self._far.close()
        return bytes(self.got)


def numbered(taps: Taps, cpus: Sequence[int], pump: Callable[[], object]) -> int:
    """Packets of many sizes, now on this CPU, now on that; how many. Each ring goes round several times."""
    chance, count = random.Random(7), 0
    for _ in range(1500):
        batch = chance.randrange(1, 6)
        put(taps, chance.choice(cpus), range(count, count + batch), chance.randrange(64, 1400))
        count += batch
        if chance.random() < 0.1:
            pump()
    return count


@pytest.mark.parametrize("way", ["socket", "pieces"])
def test_runs_of_all_cpus_are_one_row(taps: Taps, tool: Tool, cpus: list[int], way: str) -> None:
    """From where they lie, or in pieces as TLS takes them: each packet once, in the order that it was put."""
    far, got = Far(1), bytearray()
    if way == "socket":
        tool.reader.start(far.near.send, far.near.fileno())
    else:
        tool.reader.start(by_pieces(2, got))

    def pump() -> None:
        while tool.reader.pump() is not Left.NOTHING:
            far.take()

    count = numbered(taps, cpus, pump)
    pump()
    (section,) = parse(far.close() or bytes(got))
    assert [number(packet) for packet in section.packets] == list(range(count))
    assert in_order(section.packets)
    assert taps.count(5)["written"] == tool.reader.sent_packets == count
    assert tool.rings.pending() == 0


def test_a_connection_that_breaks_between_runs_loses_and_repeats_none(
    taps: Taps, tool: Tool, cpus: list[int]
) -> None:
    """Now and then a new socket: what the old one took whole is not sent again, all else is, in order."""
    ends = [Far(1)]
    tool.reader.start(ends[0].near.send, ends[0].near.fileno())
    taken: list[int] = []
    streams: list[bytes] = []
    chance = random.Random(3)

    def move() -> None:
        while tool.reader.pump() is not Left.NOTHING:
            ends[-1].take()
            if chance.random() < 0.2:
                streams.append(ends[-1].close())
                taken.append(tool.reader.sent_packets)
                ends.append(Far(len(ends)))
                tool.reader.start(ends[-1].near.send, ends[-1].near.fileno())

    count = numbered(taps, cpus, move)
    move()
    streams.append(ends[-1].close())
    taken.append(tool.reader.sent_packets)
    assert len(streams) > 10
    begun = 0
    for stream, sent in zip(streams, taken, strict=True):
        sections = parse(stream, whole=False)
        packets = [packet for section in sections for packet in section.packets]
        assert [number(packet) for packet in packets] == list(range(begun, sent))
        begun = sent
    assert begun == count == taps.count(5)["written"]


def test_what_is_young_waits(
    tool: Tool, taps: Taps, cpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is old enough; or its ring has filled by a quarter, or the tap ends."""
    monkeypatch.setattr(reader, "_HOLD", HOUR)
    monkeypatch.setattr(merge, "_SET_BACK", 2 * HOUR)
    put(taps, cpus[0], range(10))
    assert tool.reader.pump() is Left.YOUNG
    assert (tool.reader.sent_packets, tool.rings.pending()) == (0, 10)
    put(taps, cpus[-1], range(10, 10 + tool.rings.size // 4 // 180))
    assert tool.reader.pump() is Left.YOUNG
    put(taps, cpus[-1], [10 + tool.rings.size // 4 // 180])
    assert tool.reader.pump() is Left.NOTHING
    packets = tool.packets()
    assert [number(packet) for packet in packets] == list(range(len(packets)))
    put(taps, cpus[0], [0])
    assert tool.reader.pump() is Left.YOUNG
    tool.reader.end()
    assert tool.reader.pump() is Left.NOTHING
    assert tool.rings.pending() == 0


def test_a_clock_that_is_set_back_holds_up_nothing(tool: Tool, taps: Taps, cpus: list[int]) -> None:
    """Packets with times of an hour ahead go at once."""
    offset = taps.map("tai_offset")
    (ahead,) = struct.unpack("=q", offset.lookup(bytes(4)) or b"")
    offset.update(bytes(4), struct.pack("=q", ahead - HOUR))
    put(taps, cpus[0], range(5))
    assert tool.reader.pump() is Left.NOTHING
    assert tool.reader.sent_packets == 5


_SENDER = """
import os, socket, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(('127.0.0.1', 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(receiver.getsockname())
sys.stdin.read(1)
for i in range(int(sys.argv[2])):
    sender.send(i.to_bytes(4, 'little') + int(sys.argv[1]).to_bytes(4, 'little') + bytes(i % 100))
    receiver.recv(3000)
"""


def test_senders_on_all_cpus_at_once_are_in_one_order(
    netns: Path, cpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both directions of what each sends, read meanwhile: times never go back, each packet is there once."""
    monkeypatch.setattr(reader, "_HOLD", LONG_HOLD)
    each = 20_000  # fit into the rings
    with tapping(netns, 64 * SMALL) as taps:
        tool = Tool(taps)
        near, far = socket.socketpair()
        near.setblocking(False)
        got = bytearray()
        thread = threading.Thread(target=lambda: receive(far, got))
        thread.start()
        tool.reader.start(near.send, near.fileno())
        tap_port(taps, LO, tool.order(5))
        with inside(netns):
            senders = [
                subprocess.Popen([sys.executable, "-c", _SENDER, str(cpu), str(each)], stdin=subprocess.PIPE)
                for cpu in cpus
            ]
        for sender in senders:
            assert sender.stdin
            sender.stdin.write(b".")
            sender.stdin.close()
        while any(sender.poll() is None for sender in senders):
            tool.reader.pump()
        tool.drain()
        near.close()
        thread.join()
        count = taps.count(5)
    assert [sender.wait() for sender in senders] == [0] * len(cpus)
    (section,) = parse(bytes(got))
    assert in_order(section.packets)
    assert count["matched"] == count["written"] == len(section.packets) == 2 * each * len(cpus)
    assert balanced(count)
    for cpu in cpus:
        for way in (1, 2):
            mine = [one for one in section.packets if number(one, 46) == cpu and one.flags & 3 == way]
            assert [number(one) for one in mine] == list(range(each))
            assert [len(one.data) for one in mine] == [50 + i % 100 for i in range(each)]


def receive(source: socket.socket, got: bytearray) -> None:
    while more := source.recv(1 << 20):
        got += more
    source.close()
