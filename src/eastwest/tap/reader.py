"""Moves a destination's packets from its rings to whoever takes them: long rows, no packet looked at.

The rings of all CPUs become one pcapng section, in the order of time. A packet has its time before it is in
its ring; so the youngest wait a moment for those that are older and not there yet.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto

from eastwest.kernel.merge import Merge
from eastwest.kernel.rings import Rings
from eastwest.tap import pcapng
from eastwest.tap.pcapng import Interface

Write = Callable[[memoryview], int]
"""Takes bytes as far as it can, without waiting, and says how many. Raises BlockingIOError: none."""

BUDGET = 8 << 20
"""Bytes moved before others of the same loop have their turn."""

LINGER_SECONDS = 0.1
"""How long packets gather before they are moved: the price of a wake-up is shared by all of them."""

HOLD_SECONDS = 0.001
"""How old a packet is before it is moved, unless its ring fills up: by then the older ones are there."""

_HOLD = round(HOLD_SECONDS * 1e9)
_NONE = -1


class Left(Enum):
    """What a pump left behind of what there was when it looked."""

    NOTHING = auto()
    YOUNG = auto()
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
        self._merge = Merge(rings)
        self._backlog = rings.size // 4
        self._write: Write | None = None
        self._socket = _NONE
        self._woken = asyncio.Event()
        self._ending = False
        self.sent_packets = 0
        self.sent_bytes = 0

    def add_interface(self, interface: Interface) -> int:
        """Its number in the section; to be asked for before the kernel is told to copy for it."""
        self._interfaces.append(pcapng.interface(interface))
        return len(self._interfaces) - 1

    def start(self, write: Write, socket: int = _NONE) -> None:
        """Begin a stream that is whole by itself; what was sent of a packet to the last one is sent again.

        `socket`: the number of one that takes packets from many places at once; `write` takes them otherwise.
        """
        self._write, self._socket = write, socket
        self._words = self._section
        self._told = 0
        self._announce()
        self._merge.drop()

    def _announce(self) -> None:
        new = len(self._interfaces)
        self._words += b"".join(self._interfaces[self._told : new])
        self._told = new

    def pump(self) -> Left:
        """Move what is there, once. Raises OSError where nobody takes it: then `start` again."""
        assert self._write
        moved, old, young = 0, time.time_ns() - _HOLD, False
        try:
            while moved < BUDGET:
                if not self._merge.left:
                    young = self._look(old, first=not moved)
                    self._announce()  # after the look at the rings: what is in them is known by now
                if self._words:
                    sent = self._write(memoryview(self._words))
                    self._words = self._words[sent:]
                elif self._merge.left:
                    sent = self._send(self._write)
                else:
                    return Left.YOUNG if young else Left.NOTHING
                if not sent:
                    return Left.BLOCKED
                moved += sent
                self.sent_bytes += sent
        except BlockingIOError:
            return Left.BLOCKED
        return Left.MORE

    def _look(self, old: int, *, first: bool) -> bool:
        """Find what is to be moved next; says whether something is too young."""
        young = self._merge.look() if self._ending else self._merge.look(old)
        if first and young and not self._merge.left and self._rings.crowded(self._backlog):
            return self._merge.look()
        return young

    def _send(self, write: Write) -> int:
        if self._socket == _NONE:
            with self._merge.piece() as piece:
                sent = write(piece)
        else:
            sent = self._merge.send(self._socket)
        self.sent_packets += self._merge.sent(sent)
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
                await self._until(self._backlog, LINGER_SECONDS)
            else:
                if left is Left.NOTHING:
                    await self._until(0, None)
                await self._until(self._backlog, HOLD_SECONDS)

    async def _until(self, backlog: int, seconds: float | None) -> None:
        """Until a ring holds more than this, or the time is over."""
        self._woken.clear()
        # Not asyncio.timeout, which takes three turns of the loop to end.
        timer = asyncio.get_running_loop().call_later(seconds, self.wake) if seconds is not None else None
        try:
            if self._rings.arm(backlog):
                await self._woken.wait()
        finally:
            if timer:
                timer.cancel()
            self._rings.disarm()

    def end(self) -> None:
        """Nothing is written any more: `run` is over once everything is moved."""
        self._ending = True
        self.wake()

    def wake(self) -> None:
        """Sleep no longer: the kernel wrote to a ring, or it was long enough."""
        self._woken.set()
