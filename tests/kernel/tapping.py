"""Taps of a test's own, and what it takes to look at what they copied."""

import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

from eastwest.kernel.netns import inside
from eastwest.tap.config import TapConfig
from eastwest.tap.pcapng import ETHERNET, Interface, section
from eastwest.tap.reader import Left, Reader, Write
from eastwest.tap.taps import CAPTURE, Order, Point, Taps
from tests.kernel.blocks import Packet, Section, parse

LOSSES = ("buffer_full", "busy", "load_failed", "no_buffer")
LABEL, SERVICE = 77, 9001
LO = 1
"""Whose index trial runs say; every namespace has it."""

SMALL = 1 << 20
"""Bytes of buffers: the smallest that a machine of two CPUs takes, and some more."""


class Tool:
    """A destination with its reader, and a taker of what it sends."""

    def __init__(self, taps: Taps, number: int = 0, host: str = "host-1") -> None:
        self.taps, self.number = taps, number
        self.rings = taps.open_destination(number, self.woken)
        self.reader = Reader(self.rings, section(host))
        self.wakes = 0
        self.stream = bytearray()
        self.reader.start(self.take)

    def woken(self) -> None:
        self.wakes += 1
        self.reader.wake()

    def take(self, data: memoryview) -> int:
        self.stream += data
        return len(data)

    def order(
        self,
        stream: int,
        *,
        name: str = "port-1",
        link_type: int = ETHERNET,
        snaplen: int = CAPTURE,
        filtered: bool = False,
    ) -> Order:
        number = self.reader.add_interface(
            Interface(name, "host-1", "web", "blue", "lan-7", LABEL, link_type, "veth", snaplen=snaplen)
        )
        return Order(self.number, number, stream, snaplen, SERVICE, filtered)

    def sections(self) -> list[Section]:
        """All that is there by now."""
        self.drain()
        return parse(bytes(self.stream))

    def drain(self) -> None:
        """Move until nothing is left; the taker may be one that takes by fits and starts."""
        while self.reader.pump() is not Left.NOTHING or self.rings.pending():
            pass

    def packets(self) -> list[Packet]:
        (section,) = self.sections()
        return section.packets


def tap_port(taps: Taps, ifindex: int, *orders: Order, place: int = 0) -> None:
    taps.set_port(ifindex, Point(LABEL, orders, place))
    taps.attach_port(ifindex)


def tapping(netns: Path, memory: int = SMALL) -> Taps:
    return Taps(TapConfig(memory=memory), netns)


def balanced(count: dict[str, int]) -> bool:
    return count["matched"] == count["written"] + sum(count[loss] for loss in LOSSES)


def packet_socket(netns: Path, device: str) -> socket.socket:
    """Sends and receives whole frames; nothing is left out for want of room."""
    with inside(netns):
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        s.setsockopt(socket.SOL_SOCKET, 32, 64 << 20)  # SO_SNDBUFFORCE
        s.bind((device, 0))
        return s


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for it; packets are handed on by the kernel's own threads where the machine is busy."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.001)


def by_pieces(seed: int, got: bytearray) -> Write:
    """Takes any number of bytes at a time, or none."""
    chance = random.Random(seed)

    def take(data: memoryview) -> int:
        if chance.random() < 0.3:
            raise BlockingIOError
        size = chance.randrange(1, min(len(data), 4000) + 1)
        got.extend(data[:size])
        return size

    return take
