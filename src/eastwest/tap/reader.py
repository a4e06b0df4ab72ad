"""Moves a destination's packets from its rings to whoever takes them: whole segments, no packet looked at.

The rings of all CPUs become one pcapng section. Each has its own order in time; between them it is as rough
as segments are long.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum, auto

from eastwest.kernel.rings import Rings, Segment
from eastwest.tap import pcapng
from eastwest.tap.pcapng import Interface

Write = Callable[[memoryview], int]
"""Takes bytes as far as it can, without waiting, and says how many. Raises BlockingIOError: none."""

CHUNK = 1 << 20
"""Bytes offered at a time, so that memory is given back before a long segment is through."""

BUDGET = 8 << 20
"""Bytes moved before others of the same loop have their turn."""

LINGER_SECONDS = 0.01
"""How long packets gather before they are moved: the price of a wake-up is shared by all of them."""


class Left(Enum):
    """What a pump left behind of what there was when it looked."""

    NOTHING = auto()
    MORE = auto()
    BLOCKED = auto()


class Reader:
    """Reads one destination. `section`: the block that every stream begins with; interfaces keep their
    numbers for good."""

    def __init__(self, rings: Rings, section: bytes) -> None:
        self._rings = rings
        self._section = section
        self._interfaces: list[bytes] = []
        self._told = 0
        self._words = b""
        self._segment: Segment | None = None
        self._at = 0
        self._turn = 0
        self._left = rings.cpus
        self._write: Write | None = None
        self._woken = asyncio.Event()
        self._ending = False
        self.sent_packets = 0
        self.sent_bytes = 0

    def add_interface(self, interface: Interface) -> int:
        """Its number in the section; to be asked for before the kernel is told to copy for it."""
        self._interfaces.append(pcapng.interface(interface))
        return len(self._interfaces) - 1

    def start(self, write: Write) -> None:
        """Begin a stream that is whole by itself; what was sent of a block to the last one is sent again."""
        self._write = write
        self._words = self._section
        self._told = 0
        self._announce()
        if self._segment:
            self._at = self._segment.start

    def _announce(self) -> None:
        new = len(self._interfaces)
        self._words += b"".join(self._interfaces[self._told : new])
        self._told = new

    def _take(self) -> Segment | None:
        """What is there of the next CPU that has anything; None once each has had its turn."""
        while self._left:
            self._left -= 1
            self._turn = (self._turn + 1) % self._rings.cpus
            segment = self._rings.segment(self._turn)
            if segment:
                self._at = segment.start
                return segment
        return None

    def pump(self) -> Left:
        """Move what is there of each CPU, once. Raises OSError where nobody takes it: then `start` again."""
        assert self._write
        moved = 0
        try:
            while moved < BUDGET:
                if self._segment is None:
                    self._segment = self._take()
                    self._announce()  # after the look at the ring: what is in the segment is known by now
                if self._words:
                    sent = self._write(memoryview(self._words))
                    self._words = self._words[sent:]
                elif self._segment:
                    sent = self._send(self._segment)
                else:
                    self._left = self._rings.cpus
                    return Left.NOTHING
                if not sent:
                    return Left.BLOCKED
                moved += sent
                self.sent_bytes += sent
        except BlockingIOError:
            return Left.BLOCKED
        return Left.MORE

    def _send(self, segment: Segment) -> int:
        assert self._write
        with self._rings.view(segment, self._at, CHUNK) as view:
            sent = self._write(view)
        self._at += sent
        read, packets = self._rings.boundary(segment, self._at)
        self.sent_packets += packets
        self._segment = self._rings.free(segment, read)
        return sent

    # -- asleep ----------------------------------------------------------------------------------------------

    async def run(self, writable: Callable[[], Awaitable[None]], each_time: Callable[[], None]) -> None:
        """Move packets as they come, asleep while there are none, until `end` was called and none are left.

        Raises OSError where nobody takes them.

        `writable` waits until `write` takes something again; `each_time` is called before packets are moved.
        """
        before = 0
        while True:
            each_time()
            left = self.pump()
            if left is Left.BLOCKED:
                await writable()
            elif left is Left.MORE:
                await asyncio.sleep(0)
            elif self._ending and not self._rings.pending():
                return
            elif self.sent_bytes > before:
                before = self.sent_bytes
                await self._until(self._rings.size // 4, LINGER_SECONDS)
            else:
                await self._until(0, None)

    async def _until(self, backlog: int, seconds: float | None) -> None:
        """Until a ring holds more than this, or the time is over."""
        self._woken.clear()
        try:
            if self._rings.arm(backlog):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
        except TimeoutError:
            pass
        finally:
            self._rings.disarm()

    def end(self) -> None:
        """Nothing is written any more: `run` is over once everything is moved."""
        self._ending = True
        self.wake()

    def wake(self) -> None:
        """The kernel wrote to a ring of a reader that sleeps."""
        self._woken.set()
