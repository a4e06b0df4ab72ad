"""Brings one tap's copies from its rings to its receiver, over as many connections as that takes.

Every packet is in one place: pending in the rings, unanswered on a connection, confirmed, or lost by name. A
collector says how many packets of a connection it has; what an application's connection took counts as
confirmed, since an application is asked for nothing.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from eastwest.bus.taps import TapStream
from eastwest.errors import EastwestError, RefusedError
from eastwest.kernel.rings import Rings
from eastwest.tap.connection import Connection, Dialler, Peer
from eastwest.tap.reader import Reader
from eastwest.tap.taps import Note

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
_STEADY_SECONDS = 10.0
"""A connection that lasted so long was a good one: the next attempt follows at once."""

_SILENCE_SECONDS = 30.0
"""A collector answers every second while there is something to answer for."""

_CLOSE_SECONDS = 3.0
_COUNT = 8
_REFUSED = (1 << 64) - 1


class Delivery:
    """The delivery of one tap.

    `each_time` is called before packets are moved, `note` when more is confirmed or lost, `ahead` with each
    address before it is connected to.
    `after`: what of the same tap has to be over before, since a receiver takes one stream of it from a host.
    """

    def __init__(
        self,
        tap: str,
        rings: Rings,
        section: bytes,
        peer: Peer,
        *,
        confirms: bool,
        ahead: Callable[[str, int], None],
        each_time: Callable[[], None],
        note: Callable[[Note], None],
        after: Sequence[asyncio.Event] = (),
    ) -> None:
        self._tap = tap
        self._rings = rings
        self._peer = peer
        self._confirms = confirms
        self._each_time = each_time
        self._note = note
        self._after = after
        self._dialler = Dialler(peer, ahead)
        self.reader = Reader(rings, section)
        self._ending = asyncio.Event()
        self.over = asyncio.Event()
        """Nothing is delivered any more, and the rings may be given back."""
        self._connected = False
        self._begun = 0
        """Packets sent before this connection."""
        self._answered = 0
        """Packets that the collector said it has of this connection."""
        self._confirmed = self._unconfirmed = self._undelivered = 0
        """Of the connections before."""
        self._connections = 0
        self.problem = ""
        """Why nothing is delivered now."""

    # -- what became of the packets --------------------------------------------------------------------------

    @property
    def _sent(self) -> int:
        return self.reader.sent_packets - self._begun

    def status(self) -> TapStream:
        """As of now: written = pending + unanswered + confirmed + lost."""
        here = self._answered if self._confirms else self._sent
        lost = {"unconfirmed": self._unconfirmed, "undelivered": self._undelivered}
        return TapStream(
            tap=self._tap,
            connected=self._connected,
            pending=0 if self.over.is_set() else self._rings.pending(),
            unanswered=self._sent - here,
            confirmed=self._confirmed + here,
            lost={place: packets for place, packets in lost.items() if packets},
            sent_bytes=self.reader.sent_bytes,
            reconnects=max(0, self._connections - 1),
            problem=self.problem,
        )

    def _settle(self) -> None:
        """The connection is over: what it has not confirmed is lost."""
        here = self._answered if self._confirms else self._sent
        self._confirmed += here
        self._unconfirmed += self._sent - here
        self._begun, self._answered = self.reader.sent_packets, 0
        self._connected = False
        self._write_down()

    def _write_down(self) -> None:
        here = self._answered if self._confirms else self._sent
        again, sent_bytes = max(0, self._connections - 1), self.reader.sent_bytes
        self._note(Note(self._tap, self._confirmed + here, self._unconfirmed, sent_bytes, again))

    def _before_moving(self) -> None:
        self._each_time()
        if not self._confirms:
            self._write_down()

    # -- its work --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver until `end` was called and all is delivered, or its receiver cannot be had then."""
        pause = _FIRST_PAUSE
        self._write_down()
        try:
            for before in self._after:
                await before.wait()
            while True:
                begun, last = time.monotonic(), self._ending.is_set()
                try:
                    await self._converse()
                    return
                except (OSError, TimeoutError, EastwestError) as error:
                    self._say(error)
                if last:
                    return
                pause = _FIRST_PAUSE if time.monotonic() - begun > _STEADY_SECONDS else pause
                await self._rest(pause * random.uniform(0.75, 1.25))
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._settle()
            self._undelivered = self._rings.pending()
            self.over.set()

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    def end(self) -> None:
        """Nothing is written for this tap any more: deliver what there is, and be `over`."""
        self._ending.set()
        self.reader.end()

    async def _converse(self) -> None:
        """One connection. Returns when all is delivered; raises OSError, EastwestError where it broke."""
        connection = await self._dialler.connect()
        tasks = []
        try:
            self._connections += 1
            self._connected, self.problem = True, ""
            self.reader.start(connection.send, connection.descriptor)
            listening = asyncio.create_task(self._listen(connection), name=f"answers of {self._tap}")
            moving = self.reader.run(connection.writable, self._before_moving)
            tasks = [listening, asyncio.create_task(moving, name=f"copies of {self._tap}")]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                await listening
            await tasks[1]
            await self._close(connection, listening)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            connection.close()
            self._settle()

    async def _close(self, connection: Connection, listening: "asyncio.Task[None]") -> None:
        """All is sent: say so, and wait for the last answer, as long as whoever ends the tap waits."""
        if not connection.secure:
            connection.finish()
        if self._confirms or not connection.secure:
            await asyncio.wait((listening,), timeout=None if self._confirms else _CLOSE_SECONDS)
        if connection.secure:
            connection.finish()

    # -- answers ---------------------------------------------------------------------------------------------

    async def _listen(self, connection: Connection) -> None:
        """Take answers. Returns when there will be none that matters; raises OSError, RefusedError."""
        rest = b""
        while said := await self._heard(connection):
            if not self._confirms:
                continue
            rest += said
            whole = len(rest) // _COUNT * _COUNT
            if whole:
                self._answer(int.from_bytes(rest[whole - _COUNT : whole], "little"))
                rest = rest[whole:]
            if self._all_confirmed():
                return
        # An application may have closed its own direction alone; else sending will tell.
        if self._confirms:
            raise ConnectionResetError("it has closed the connection")

    async def _heard(self, connection: Connection) -> bytes:
        while True:
            try:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    before = self._sent
                    return await connection.receive()
            except TimeoutError:
                if self._confirms and before > self._answered:
                    raise TimeoutError("it says nothing of what it was sent") from None

    def _all_confirmed(self) -> bool:
        return self._ending.is_set() and not self._rings.pending() and self._answered == self._sent

    def _answer(self, count: int) -> None:
        if count == _REFUSED:
            raise RefusedError("it refuses this tap", "is it the collector that the order is for?")
        if not self._answered <= count <= self._sent:
            raise RefusedError(f"it says that it has {count} packets of {self._sent}", "is it a collector?")
        self._answered = count
        self._write_down()

    def _say(self, error: Exception) -> None:
        """Once for each reason: a receiver may be away for days."""
        reason = str(error) or type(error).__name__
        peer = self._peer
        problem = f"tap '{self._tap}' is not delivered to {peer.host} port {peer.port}: {reason}"
        if problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem
