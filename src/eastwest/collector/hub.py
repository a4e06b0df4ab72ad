"""One tap's packets for those who read them now: the streams of all hosts as one section of pcapng.

Who reads slowly loses packets of their own, counted, and keeps nobody waiting: neither the stream nor others.
"""

import asyncio
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

from eastwest.collector import section
from eastwest.errors import RefusedError
from eastwest.kernel.blocks import Chooser, renumber
from eastwest.kernel.pour import Flag

MOST_READERS = 16
"""Of one tap, besides those of the settings."""
RELAY = "relay"
"""The kind of these."""
_MOST_INTERFACES = 1 << 16
_MOST_BYTES = 32 << 20


class _Chunk(NamedTuple):
    data: bytes
    packets: int


class Section:
    """What readers are told before packets. With the next generation interfaces are numbered anew."""

    def __init__(self, tap: str) -> None:
        self.block = section.section({"tap": tap})
        self.interfaces: list[bytes] = []
        self.generation = 0

    def renew(self) -> None:
        self.interfaces = []
        self.generation += 1


class _Share:
    """What there is for readers of one service: its packets, and no interface but those they came through."""

    def __init__(self, tap: str, service: int, of: Section) -> None:
        self.section = Section(tap)
        self._service = service
        self._of = of
        self._generation = of.generation
        self._chooser = Chooser(service)

    def choose(self, packets: memoryview, enterprise: int) -> _Chunk:
        if self._generation != self._of.generation:
            self._generation, self._chooser = self._of.generation, Chooser(self._service)
            self.section.renew()
        interfaces = self._of.interfaces
        data, count, new = self._chooser.choose(packets, 0, len(packets), enterprise, len(interfaces))
        self.section.interfaces += [interfaces[number] for number in new]
        return _Chunk(data, count)


class Hub:
    """Gives the interfaces of all streams of a tap numbers in one section, and packets to every reader."""

    def __init__(self, tap: str, reader_bytes: int, lost: Counter[str]) -> None:
        self.tap = tap
        self.lost = lost
        """kind of reader → packets, of all taps."""
        self.section = Section(tap)
        self._numbers: dict[bytes, int] = {}
        self._bytes = 0
        self._reader_bytes = reader_bytes
        self._readers: set[Subscription] = set()
        self._shares: dict[int, _Share] = {}
        self.watched = Flag()
        """Set while anybody reads."""
        self._ended = False

    @property
    def readers(self) -> "Sequence[Subscription]":
        return tuple(self._readers)

    def number(self, block: bytes) -> int:
        """The number of an interface in the section; the same for the same block."""
        known = self._numbers.get(block)
        if known is not None:
            return known
        interfaces = self.section.interfaces
        if len(interfaces) >= _MOST_INTERFACES or self._bytes + len(block) > _MOST_BYTES:
            # Mostly of streams that are gone.
            self.section.renew()
            interfaces, self._numbers, self._bytes = self.section.interfaces, {}, 0
        self._numbers[block] = len(interfaces)
        interfaces.append(block)
        self._bytes += len(block)
        return self._numbers[block]

    def hand_on(self, packets: memoryview, count: int, enterprise: int) -> None:
        """Whole packet blocks whose interfaces have their numbers here; `enterprise`: see `Chooser`."""
        parts: dict[int | None, _Chunk] = {}
        for reader in self._readers:
            service = reader.service
            if service not in parts:
                parts[service] = (
                    _Chunk(bytes(packets), count)
                    if service is None
                    else self._shares[service].choose(packets, enterprise)
                )
            if parts[service].packets:
                reader.offer(parts[service])

    def subscribe(self, kind: str, service: int | None = None) -> "Subscription":
        """A new reader, who gets what comes from now on, of one service or of all.

        Raises RefusedError where there are too many.
        """
        if kind != RELAY and len(self._readers) >= MOST_READERS:
            raise RefusedError(f"{MOST_READERS} read tap {self.tap} already", "end one of them")
        told = self.section
        if service is not None:
            told = self._shares.setdefault(service, _Share(self.tap, service, self.section)).section
        made = Subscription(self, told, self._reader_bytes, kind, service)
        self._readers.add(made)
        self.watched.set(True)
        if self._ended:
            made.end()
        return made

    def leave(self, reader: "Subscription") -> None:
        self._readers.discard(reader)
        self.watched.set(bool(self._readers))
        if reader.service is not None and all(one.service != reader.service for one in self._readers):
            self._shares.pop(reader.service, None)

    def end(self) -> None:
        """No more packets will come: readers get what waits for them, and then the end."""
        self._ended = True
        for reader in self._readers:
            reader.end()


class Numbers:
    """The interfaces of one stream under their numbers in the hub's section."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._generation = hub.section.generation
        self._numbers: array[int] = array("I")

    def learn(self, interfaces: Sequence[bytes]) -> None:
        """Have a number for each of the stream's interfaces, in their order."""
        while self._generation != self._hub.section.generation or len(self._numbers) < len(interfaces):
            if self._generation != self._hub.section.generation:
                self._generation, self._numbers = self._hub.section.generation, array("I")
            number = self._hub.number(interfaces[len(self._numbers)])
            if self._generation == self._hub.section.generation:
                self._numbers.append(number)

    def put(self, packets: memoryview) -> None:
        """Change the packets, in place."""
        if self._numbers != array("I", range(len(self._numbers))):
            renumber(packets, 0, len(packets), self._numbers)


class Subscription:
    """Iterates over the bytes of one pcapng stream: section, interfaces, then blocks as they come.

    Ends when the tap has. Leave it by `close`, or by `async with`.
    """

    def __init__(self, hub: Hub, told: Section, room: int, kind: str, service: int | None) -> None:
        self._hub = hub
        self._section = told
        self._room = room
        self.kind = kind
        self.service = service
        """Whose packets it gets; None: those of all services."""
        self.packets = 0
        """Handed to whoever reads."""
        self.lost = 0
        """Packets that came while as much waited as may."""
        self._queue: deque[_Chunk] = deque()
        self._queued = 0
        self._last = 0
        self._more = asyncio.Event()
        self._over = asyncio.Event()
        self._ended = False
        self._generation = -1
        self._told = 0
        self.begin()

    @property
    def tap(self) -> str:
        return self._hub.tap

    def begin(self) -> None:
        """Begin anew, with a section; what waits follows, if it is still of that section, or else is lost."""
        waiting = [chunk for chunk in self._queue if chunk.packets]
        if self._generation != self._section.generation:
            self._lose(sum(chunk.packets for chunk in waiting))
            waiting = []
        self._queue.clear()
        self._queued = self._told = 0
        self._generation = -1
        self._announce()
        for chunk in waiting:
            self._put(chunk)

    def _announce(self) -> None:
        """What has to be known before the next packet; it always has room, since there is little of it."""
        told, words = self._section, b""
        if self._generation != told.generation:
            words, self._generation, self._told = told.block, told.generation, 0
        if self._told < len(told.interfaces):
            words += b"".join(told.interfaces[self._told :])
            self._told = len(told.interfaces)
        if words:
            self._put(_Chunk(words, 0))

    def _put(self, chunk: _Chunk) -> None:
        self._queue.append(chunk)
        self._queued += len(chunk.data)
        self._more.set()

    def offer(self, chunk: _Chunk) -> None:
        """Take it if there is room."""
        if self._queued + len(chunk.data) > self._room:
            self._lose(chunk.packets)
            return
        self._announce()
        self._put(chunk)

    def _lose(self, packets: int) -> None:
        self.lost += packets
        self._hub.lost[self.kind] += packets

    def end(self) -> None:
        self._ended = True
        self._more.set()
        self._over.set()

    def close(self) -> None:
        """Read no more."""
        self._hub.leave(self)
        self._queue.clear()
        self.end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            self._more.clear()
            await self._more.wait()
        chunk = self._queue.popleft()
        self._queued -= len(chunk.data)
        self._last = chunk.packets
        self.packets += chunk.packets
        return chunk.data

    async def ended(self, seconds: float) -> bool:
        """Wait so long, or until the tap has ended; whether it has."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()
        return self._ended

    def give_back(self) -> None:
        """What was handed out last did not get through whole: its packets are lost."""
        self.packets -= self._last
        self._lose(self._last)
        self._last = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
