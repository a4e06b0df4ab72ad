"""One stream from a probe: who sends it, its packets to files and readers, and word of how many have come.

What comes is from the network. Until it has shown a tap's key, a connection may send one block; what comes
then is checked block by block (kernel/blocks.py). The first thing that cannot be read ends the connection,
with all before it kept.
"""

import asyncio
import hmac
import os
import struct
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec

from eastwest.bus.taps import TapOrder
from eastwest.collector import section
from eastwest.collector.files import Files
from eastwest.collector.hub import Hub, Numbers
from eastwest.collector.section import Header
from eastwest.collector.wire import Wire
from eastwest.errors import RefusedError
from eastwest.kernel.blocks import Malformed, Stop, Walk, Walker
from eastwest.kernel.pour import pour

T = TypeVar("T")

BUFFER_BYTES = 1 << 20
REFUSED = struct.pack("<Q", (1 << 64) - 1)
"""What a probe is told whose tap or key is unknown."""

DISK = "disk"
"""Where packets are lost that were handed on, but not stored."""

_BUFFERS = 8
_MOST_OTHERS = 1024
"""Blocks of other kinds than ours in one stream: each costs some Python."""
_LITTLE = 1 << 15
"""Bytes of a turn. Whoever has filled the window that a connection begins with, 64 KiB, waits for us."""

_POUR_SECONDS = 0.02
"""How long a thread keeps a stream for itself; readers and cancellations wait that long at most."""

_LINGER_SECONDS = 0.1
"""How long packets gather where they are few: the price of a turn is shared by all of them."""


class Unknown(RefusedError):
    """Nobody may send this: the tap is unknown, or the key is wrong."""


class Counts(msgspec.Struct):
    """What came of one tap from one host since the collector started."""

    packets: int = 0
    bytes: int = 0
    """As on the wire, link header included."""
    files: int = 0
    lost: dict[str, int] = msgspec.field(default_factory=dict)
    """place → packets of these: `disk`, handed on but not stored."""

    def add(self, other: "Counts") -> None:
        self.packets += other.packets
        self.bytes += other.bytes
        self.files += other.files
        for place, lost in other.lost.items():
            self.lost[place] = self.lost.get(place, 0) + lost


class Shared:
    """What all streams of a collector use: its files, the threads that write them, and memory to read into.

    Who writes borrows a buffer, of which there are few, so that streams which wait for the disk hold no more
    memory; who does not is done with the common one before anybody else runs.
    """

    def __init__(self, files: Files, disk: Executor) -> None:
        self.files = files
        self.common = bytearray(BUFFER_BYTES)
        self._disk = disk
        self._free: list[bytearray] = []
        self._room = asyncio.Semaphore(_BUFFERS)

    @asynccontextmanager
    async def buffer(self) -> AsyncIterator[bytearray]:
        async with self._room:
            buffer = self._free.pop() if self._free else bytearray(BUFFER_BYTES)
            try:
                yield buffer
            finally:
                self._free.append(buffer)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do it in a thread; whoever is cancelled meanwhile waits for its end: the buffer is in use."""
        doing = asyncio.get_running_loop().run_in_executor(self._disk, work)
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            while not doing.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((doing,))
            raise


class Opening(NamedTuple):
    """What a connection began with."""

    header: Header
    walker: Walker
    rest: bytes
    """What came behind the header already."""


async def opening(wire: Wire) -> Opening:
    """The section header that comes first. Raises Malformed, OSError; says nothing of the key."""
    buffer = bytearray(section.LONGEST_SECTION)
    view, end, walker = memoryview(buffer), 0, Walker()
    while end < len(buffer):
        received = await wire.receive(view[end:])
        if not received:
            raise Malformed("an end before its section header does")
        end += received
        found = walker.walk(buffer, 0, end)
        if found.stop is Stop.SECTION:
            told = section.header(view[: found.length])
            return Opening(told, walker, bytes(view[found.length : end]))
    raise Malformed("a section header that is too long")


def check(header: Header, order: TapOrder | None) -> TapOrder:
    """The order that this stream follows. Raises Unknown, in the same way whatever is wrong."""
    key = order.key.encode() if order and order.receiver == "collector" else b""
    if not hmac.compare_digest(header.key, key) or not key or order is None:
        raise Unknown("a stream of an unknown tap, or with a wrong key", "add the tap again")
    return order


class Intake:
    """A stream that has shown its tap's key. `order` may change while it runs, but for its key."""

    def __init__(
        self, wire: Wire, opening: Opening, order: TapOrder, hub: Hub, *, counts: Counts, shared: Shared
    ) -> None:
        self._wire = wire
        self.header = opening.header
        self.order = order
        self._hub = hub
        self.counts = counts
        self._shared = shared
        self._walker = opening.walker
        self._rest = opening.rest
        self._interfaces: list[bytes] = []
        self._numbers = Numbers(hub)
        self._recording = shared.files.recording(order.name, self.header.host)
        self._others = self._bytes = 0
        self._received = self._told = self._came = 0
        self._ending = False

    async def run(self) -> None:
        """Take what comes, to its end. Raises Malformed, OSError."""
        try:
            if self._rest:
                self._rest = await self._take(memoryview(bytearray(self._rest)), len(self._rest))
            while await self._turn():
                pass
        finally:
            self._ending = True
            if self._recording.open:  # else nothing waits for a disk
                await self._shared.in_thread(self._recording.close)

    async def answer(self) -> None:
        """Say for the last time how many packets came. Raises OSError."""
        await self._wire.send(struct.pack("<Q", self._received))

    def answer_now(self) -> None:
        """The same, if there is room for it; else never."""
        self._wire.offer(struct.pack("<Q", self._received))

    def confirm(self) -> None:
        """Say how many packets came so far, if there is anything new and room to say it."""
        if not self._ending and self._told != self._received:
            received = self._received
            if self._wire.offer(struct.pack("<Q", received)):
                self._told = received

    async def _turn(self) -> bool:
        """Take what has come, False at the end; no memory is held while there is nothing."""
        while True:
            if self.order.store:
                async with self._shared.buffer() as buffer:
                    received = await self._read(buffer)
            else:
                received = await self._read(self._shared.common)
            if received is None:
                await self._wire.readable()
                continue
            # Few: wait for more. Many: let others have their turn.
            await asyncio.sleep(_LINGER_SECONDS if self._came < _LITTLE else 0)
            return received > 0

    async def _read(self, buffer: bytearray) -> int | None:
        view, held = memoryview(buffer), len(self._rest)
        received = self._wire.receive_now(view[held:])
        self._came = received or 0
        if received:
            view[:held] = self._rest
            self._rest = await self._take(view, held + received)
        return received

    async def _take(self, view: memoryview, end: int) -> bytes:
        """Deal with all that is whole in view[:end]; what is left. Raises Malformed, OSError."""
        at = 0
        while True:
            if self._pours:
                at, end, found = await self._shared.in_thread(partial(self._pour, view, at, end))
                self._hand_on(view[at : found.end], found)
            else:
                found = self._walker.walk(view, at, end)
                if found.end > at:
                    await self._packets(view[at : found.end], found)
            at = found.end
            if found.stop is Stop.INCOMPLETE:
                return bytes(view[at:end])
            if found.stop is not Stop.BROKEN:
                self._words(found.stop, view[at : at + found.length])
                at += found.length

    @property
    def _pours(self) -> bool:
        """Whether packets go to the file and nowhere else. OpenSSL's connections are for one thread only."""
        return self.order.store and self._wire.plain and not self._hub.readers

    def _pour(self, view: memoryview, at: int, end: int) -> tuple[int, int, Walk]:
        """In a thread: packets of view[at:end] to the file, and those that come behind them, for a while.

        To have a thread do something costs as much as to read and write half a mebibyte. Returns where the
        last packets begin, where the view's content ends, and what was found in between. Raises Malformed,
        OSError.
        """
        until = time.monotonic() + _POUR_SECONDS
        while True:
            found = self._walker.walk(view, at, end)
            if found.end > at:
                self._keep(view[at : found.end], found)
            left = until - time.monotonic()
            if found.stop is not Stop.INCOMPLETE or not self._pours or left <= 0:
                return at, end, found
            rest = bytes(view[found.end : end])
            view[: len(rest)] = rest
            at, (end, more) = 0, self._stream(view, len(rest), left)
            if not more:
                return at, end, Walk(at, 0, 0, Stop.INCOMPLETE, 0)

    def _stream(self, view: memoryview, held: int, seconds: float) -> tuple[int, bool]:
        """Packets behind view[:held] straight to the file. Where the view's content ends then, and whether
        there may be more to be had now. Raises OSError."""
        file, most = self._recording.direct(len(self._interfaces))
        poured = pour(
            self._walker,
            self._wire.descriptor,
            file,
            most=most,
            seconds=seconds,
            stop=self._hub.watched,
            buffer=view,
            held=held,
        )
        self._came += poured.received
        self._recording.written(poured.written, poured.write_error)
        self._count(poured.packets, poured.bytes, poured.unwritten)
        if poured.read_error:
            raise OSError(poured.read_error, os.strerror(poured.read_error))
        return poured.held, not poured.empty

    def _words(self, kind: Stop, block: memoryview) -> None:
        if kind is Stop.SECTION:
            raise Malformed("a second section")
        if kind is Stop.OTHER:
            self._others += 1
            if self._others > _MOST_OTHERS:
                raise Malformed("too many blocks of unknown kinds")
            return
        self._bytes += len(block)
        if len(self._interfaces) == section.MOST_INTERFACES or self._bytes > section.INTERFACES_BYTES:
            raise Malformed("too many interfaces")
        self._interfaces.append(section.interface(block))
        self._numbers.learn(self._interfaces)

    async def _packets(self, packets: memoryview, found: Walk) -> None:
        try:
            if self.order.store:
                await self._shared.in_thread(partial(self._keep, packets, found))
            else:
                self._count(found.packets, found.bytes, 0)
        finally:  # who is cancelled meanwhile has written all the same
            self._hand_on(packets, found)

    def _hand_on(self, packets: memoryview, found: Walk) -> None:
        if found.packets and self._hub.readers:
            self._numbers.learn(self._interfaces)
            self._numbers.put(packets)
            self._hub.hand_on(packets, found.packets, self.header.enterprise)

    def _keep(self, packets: memoryview, found: Walk) -> None:
        """In a thread: to the file, and counted there, so that nobody who is cancelled leaves it out."""
        stored = self._recording.write(self.header.section, self._interfaces, packets)
        self.counts.files += self._recording.take_new()
        self._count(found.packets, found.bytes, 0 if stored else found.packets)

    def _count(self, packets: int, wire_bytes: int, not_stored: int) -> None:
        self.counts.packets += packets
        self.counts.bytes += wire_bytes
        self._received += packets
        if not_stored:
            self.counts.lost[DISK] = self.counts.lost.get(DISK, 0) + not_stored
