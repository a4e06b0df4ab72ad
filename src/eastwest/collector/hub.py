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
from eastwest.kernel.blocks import of_service, renumber

MOST_READERS = 16
"""Of one tap, besides those of the settings."""
RELAY = "relay"
"""The kind of these."""
_MOST_INTERFACES = 1 << 16
_MOST_BYTES = 32 << 20


class _Chunk(NamedTuple):
    data: bytes
    packets: int


class Hub:
    """Gives the interfaces of all streams of a tap numbers in one section, and packets to every reader."""

    def __init__(self, tap: str, reader_bytes: int, lost: Counter[str]) -> None:
        self.tap = tap
        self.lost = lost
        """kind of reader → packets, of all taps."""
        self.generation = 0
        """Numbers given are good for one section; with the next, all are given anew."""
        self.interfaces: list[bytes] = []
        self.section = section.section({"tap": tap})
        self._numbers: dict[bytes, int] = {}
        self._bytes = 0
        self._reader_bytes = reader_bytes
        self._readers: set[Subscription] = set()
        self._ended = False

    @property
    def readers(self) -> "Sequence[Subscription]":
        return tuple(self._readers)

    def number(self, block: bytes) -> int:
        """The number of an interface in the section; the same for the same block."""
        known = self._numbers.get(block)
        if known is not None:
            return known
        if len(self.interfaces) >= _MOST_INTERFACES or self._bytes + len(block) > _MOST_BYTES:
            # Mostly of streams that are gone.
            self.generation += 1
            self.interfaces, self._numbers, self._bytes = [], {}, 0
        self._numbers[block] = len(self.interfaces)
        self.interfaces.append(block)
        self._bytes += len(block)
        return self._numbers[block]

    def hand_on(self, packets: memoryview, count: int, enterprise: int) -> None:
        """Whole packet blocks whose interfaces have their numbers here; `enterprise`: see `of_service`."""
        parts: dict[int | None, tuple[bytes, int]] = {}
        for reader in self._readers:
            service = reader.service
            if service not in parts:
                parts[service] = (
                    (bytes(packets), count)
                    if service is None
                    else of_service(packets, 0, len(packets), enterprise, service)
                )
            if parts[service][1]:
                reader.offer(*parts[service])

    def subscribe(self, kind: str, service: int | None = None) -> "Subscription":
        """A new reader, who gets what comes from now on, of one service or of all.

        Raises RefusedError where there are too many.
        """
        if kind != RELAY and len(self._readers) >= MOST_READERS:
            raise RefusedError(f"{MOST_READERS} read tap {self.tap} already", "end one of them")
        made = Subscription(self, self._reader_bytes, kind, service)
        self._readers.add(made)
        if self._ended:
            made.end()
        return made

    def leave(self, reader: "Subscription") -> None:
        self._readers.discard(reader)

    def end(self) -> None:
        """No more packets will come: readers get what waits for them, and then the end."""
        self._ended = True
        for reader in self._readers:
            reader.end()


class Numbers:
    """The interfaces of one stream under their numbers in the hub's section."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._generation = hub.generation
        self._numbers: array[int] = array("I")

    def learn(self, interfaces: Sequence[bytes]) -> None:
        """Have a number for each of the stream's interfaces, in their order."""
        while self._generation != self._hub.generation or len(self._numbers) < len(interfaces):
            if self._generation != self._hub.generation:
                self._generation, self._numbers = self._hub.generation, array("I")
            number = self._hub.number(interfaces[len(self._numbers)])
            if self._generation == self._hub.generation:
                self._numbers.append(number)

    def put(self, packets: memoryview) -> None:
        """Change the packets, in place."""
        if self._numbers != array("I", range(len(self._numbers))):
            renumber(packets, 0, len(packets), self._numbers)


class Subscription:
    """Iterates over the bytes of one pcapng stream: section, interfaces, then blocks as they come.

    Ends when the tap has. Leave it by `close`, or by `async with`.
    """

    def __init__(self, hub: Hub, room: int, kind: str, service: int | None) -> None:
        self._hub = hub
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
        if self._generation != self._hub.generation:
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
        hub = self._hub
        words = b""
        if self._generation != hub.generation:
            words, self._generation, self._told = hub.section, hub.generation, 0
        if self._told < len(hub.interfaces):
            words += b"".join(hub.interfaces[self._told :])
            self._told = len(hub.interfaces)
        if words:
            self._put(_Chunk(words, 0))

    def _put(self, chunk: _Chunk) -> None:
        self._queue.append(chunk)
        self._queued += len(chunk.data)
        self._more.set()

    def offer(self, data: bytes, packets: int) -> None:
        """Take it if there is room."""
        if self._queued + len(data) > self._room:
            self._lose(packets)
            return
        self._announce()
        self._put(_Chunk(data, packets))

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
