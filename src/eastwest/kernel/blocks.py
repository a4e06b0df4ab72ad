"""Reads a pcapng stream without a Python statement per packet: packets are checked and counted in C.

Needs no privilege and no libbpf: the collector and the command line read streams too. What it is given may
be hostile; nothing that it passes makes a reader of pcapng give up the file.
"""

from array import array
from enum import Enum
from typing import Any, NamedTuple

from eastwest.errors import RefusedError
from eastwest.kernel._blocks import ffi, lib

Buffer = bytes | bytearray | memoryview

LONGEST_PACKET = 1 << 17
"""Bytes of a packet's block that are taken: more than a tap writes."""

LONGEST_WORDS = int(lib.BLOCKS_WORDS)
"""Bytes of any other block that are taken."""

ALL = (1 << 64) - 1


class Stop(Enum):
    """Why a walk ended where it did."""

    INCOMPLETE = lib.BLOCKS_INCOMPLETE
    """What follows is not all there: more bytes are to come."""
    ENOUGH = lib.BLOCKS_ENOUGH
    """So many packets were asked for."""
    SECTION = lib.BLOCKS_SECTION
    """A whole Section Header Block, from which on interfaces are numbered anew."""
    INTERFACE = lib.BLOCKS_INTERFACE
    """A whole Interface Description Block, the section's next."""
    OTHER = lib.BLOCKS_OTHER
    """A whole block of a kind that a reader passes over."""
    BROKEN = -1
    """What follows cannot be read: the next walk says why."""


_BROKEN = {
    lib.BLOCKS_BAD_LENGTH: "a block of an impossible length",
    lib.BLOCKS_BAD_TRAILER: "a block whose two lengths differ",
    lib.BLOCKS_BAD_CAPTURED: "a packet that is longer than its block",
    lib.BLOCKS_BAD_INTERFACE: "a packet of an interface that it does not tell of",
    lib.BLOCKS_BAD_OPTIONS: "a packet with broken options",
    lib.BLOCKS_BAD_PACKET: "a packet without interface or time",
    lib.BLOCKS_BAD_VERSION: "a version that is not 1",
    lib.BLOCKS_FOREIGN_ORDER: "the other byte order than this host's",
    lib.BLOCKS_NO_SECTION: "no section header",
}


class Malformed(RefusedError):
    """A stream that is no pcapng, or none that is taken; nothing after this place can be read."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stream has {reason}", "see who sends it")
        self.reason = reason


class Walk(NamedTuple):
    """What a walk found: packets up to `end`, and there `stop`."""

    end: int
    packets: int
    bytes: int
    """Of these packets as they were on the wire, link header included."""
    stop: Stop
    length: int
    """Bytes of the whole block at `end`: of SECTION, INTERFACE and OTHER; else without meaning."""


class Walker:
    """Follows one stream. `longest`: bytes of the longest packet block that is taken."""

    def __init__(self, longest: int = LONGEST_PACKET) -> None:
        self.state: Any = ffi.new("struct blocks *", {"longest": longest})
        self._stop = ffi.new("int *")

    @property
    def interfaces(self) -> int:
        """How many the section has told of so far."""
        return int(self.state.interfaces)

    def walk(self, buffer: Buffer, start: int, end: int, most: int = ALL) -> Walk:
        """Pass over at most `most` packets that are whole in buffer[start:end], up to another kind of block.

        Having dealt with that block, go on behind it. Raises Malformed where buffer[start] cannot be read.
        """
        if not 0 <= start <= end <= len(buffer):
            raise ValueError(f"{start}:{end} is not within {len(buffer)} bytes")
        known = self.state
        place = int(lib.east_blocks_walk(known, ffi.from_buffer(buffer), start, end, most, self._stop))
        reason = _BROKEN.get(self._stop[0])
        if reason and place == start:
            raise Malformed(reason)
        stop = Stop.BROKEN if reason else Stop(self._stop[0])
        if stop is Stop.SECTION:
            known.in_section, known.interfaces = 1, 0
        elif stop is Stop.INTERFACE:
            known.interfaces += 1
        return Walk(place, int(known.packets), int(known.bytes), stop, int(known.length))

    def pass_over(self, buffer: Buffer, start: int, end: int, most: int = ALL) -> Walk:
        """The same over blocks of any kind: to the end of what is whole, or until packets are enough."""
        packets = wire = 0
        at = start
        while True:
            try:
                found = self.walk(buffer, at, end, most - packets)
            except Malformed:
                if at == start:
                    raise
                return Walk(at, packets, wire, Stop.BROKEN, 0)
            packets, wire = packets + found.packets, wire + found.bytes
            if found.stop in (Stop.INCOMPLETE, Stop.ENOUGH, Stop.BROKEN):
                return Walk(found.end, packets, wire, found.stop, 0)
            at = found.end + found.length


class Chooser:
    """Picks the packets of one service out of a stream, and numbers the interfaces that they came through."""

    def __init__(self, service: int) -> None:
        self._service = service
        self._numbers = array("I")
        self._told, self._packets = ffi.new("uint32_t *"), ffi.new("uint64_t *")

    def choose(
        self, buffer: Buffer, start: int, end: int, enterprise: int, interfaces: int
    ) -> tuple[bytes, int, list[int]]:
        """A copy of those packets whose own option says this service, how many they are, and the interfaces
        that have their number here since now, by the one in the stream, in order.

        buffer[start:end] must be packets that a walk passed, with no more than so many `interfaces` known;
        `enterprise`: the number that their options have.
        """
        self._numbers.extend([lib.BLOCKS_UNTOLD] * (interfaces - len(self._numbers)))
        found, told = bytearray(end - start), int(self._told[0])
        size = int(
            lib.east_blocks_choose(
                *(ffi.from_buffer(buffer), start, end, enterprise, self._service),
                *(ffi.from_buffer(found), self._packets),
                *(ffi.from_buffer("uint32_t[]", self._numbers), self._told),
            )
        )
        new = [self._numbers.index(number) for number in range(told, self._told[0])]
        return bytes(memoryview(found)[:size]), int(self._packets[0]), new


def renumber(buffer: bytearray | memoryview, start: int, end: int, numbers: "array[int]") -> None:
    """Give packets other interface numbers, in place: of `numbers` (type "I"), the one at the old's index.

    buffer[start:end] must be packets that a walk passed, with as many interfaces known as there are numbers.
    """
    memory = ffi.from_buffer(buffer, require_writable=True)
    lib.east_blocks_renumber(memory, start, end, ffi.from_buffer("uint32_t[]", numbers))
