"""The collector's streams: probes connect and show a tap's key; packets go to files and to who reads them.

Needs no privileges. `taps` says which orders there are; a stream whose order is gone has some time to end.
"""

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Self

import msgspec

from eastwest.bus.background import Background
from eastwest.bus.client import Bus
from eastwest.collector.endpoints import Endpoints
from eastwest.collector.files import Files
from eastwest.collector.hub import Hub, Subscription
from eastwest.collector.intake import REFUSED, Counts, Intake, Shared, Unknown, check, opening
from eastwest.collector.outlets import Outlets
from eastwest.collector.streamconfig import StreamsConfig, address, shown
from eastwest.collector.taporders import TapOrders
from eastwest.collector.wire import Wire, listen
from eastwest.errors import ConfigError
from eastwest.kernel.blocks import Malformed

log = logging.getLogger(__name__)

MOST_UNKNOWN = 64
"""Connections that have not shown a key yet; with one more, the oldest of them goes."""
MOST_COUNTS = 4096
"""Taps and hosts whose counts are kept after their streams have ended."""
OPENING_SECONDS = 10.0
"""From the connection to a whole section header."""
ENDING_SECONDS = 30.0
"""What a stream may still send after its order is gone."""
_TURN_SECONDS = 0.5
_LIMITS_SECONDS = 10.0
_LISTEN_SECONDS = 2.0
_FINISH_SECONDS = 5.0
_ORDER_SECONDS = 3.0
_THREADS = 4


class StreamStatus(msgspec.Struct, frozen=True):
    """What came of one tap from one host since the collector started."""

    tap: str
    host: str
    connected: bool
    packets: int
    bytes: int
    """As on the wire, link header included."""
    files: int
    """How many were begun."""
    lost: dict[str, int]
    """place → packets of these: `disk`, handed on but not stored."""


class ReaderStatus(msgspec.Struct, frozen=True):
    """One who reads a tap now, or to whom it is handed on."""

    tap: str
    kind: str
    packets: int
    lost: int
    """Packets that came while as many waited for this reader as may."""


class StreamsTotals(msgspec.Struct, frozen=True):
    """What the collector did with streams since it started; counters never fall."""

    connected: int
    readers: int
    packets: int
    bytes: int
    files: int
    lost: dict[str, int]
    """place → packets: `disk`, or a kind of reader who had no room."""
    refused: dict[str, int]
    up: bool
    """Whether there is no problem."""


class Streams:
    """Takes streams while it is entered."""

    def __init__(self, config: StreamsConfig, bus: Bus) -> None:
        self._config = config
        self._address = address("streams.listen", config.listen)
        self._tls = _context(config)
        self._files = Files(config)
        self._orders = TapOrders(bus)
        self._endpoints = Endpoints(bus)
        self._outlets = Outlets(config, self.subscribe, self._endpoints)
        self._listener: socket.socket | None = None
        self._problem = ""
        self._unknown: dict[asyncio.Task[None], None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[tuple[str, str], tuple[Intake, asyncio.Task[None]]] = {}
        self._counts: dict[tuple[str, str], Counts] = {}
        self._hubs: dict[str, tuple[Hub, float]] = {}
        """With the time until which they need no order."""
        self._over: dict[asyncio.Task[None], float] = {}
        self._refused: Counter[str] = Counter()
        self._not_read: Counter[str] = Counter()
        self._past = Counts()
        """What came of taps and hosts that nothing more is kept of."""
        self._work = Background()
        self._entered = AsyncExitStack()
        self._disk = ThreadPoolExecutor(_THREADS, "captures")
        self._shared = Shared(self._files, self._disk)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            await asyncio.to_thread(self._files.prepare)
            entered.callback(self._disk.shutdown)
            entered.push_async_callback(self._end)
            self._listen()
            await entered.enter_async_context(self._orders)
            await entered.enter_async_context(self._endpoints)
            await self._work.start(self._run(), "streams")
            entered.push_async_exit(self._work.stop)
            self._entered = entered.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._entered.__aexit__(kind, error, trace)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for hub, _ in self._hubs.values():
            hub.end()
        if self._listener:
            self._listener.close()

    # -- for others ------------------------------------------------------------------------------------------

    @property
    def to(self) -> str:
        """HOST:PORT by which probes reach this collector."""
        return self._config.advertise or shown(*self._address)

    @property
    def tls(self) -> bool:
        """Whether they have to speak TLS."""
        return self._tls is not None

    def subscribe(self, tap: str, kind: str = "api", service: int | None = None) -> Subscription:
        """What comes of a tap from now on, of all hosts, as one pcapng stream in whole blocks.

        It begins with section and interfaces, and ends when the tap has ended. Close it, or enter it.
        `service`: only packets with this service ID. Raises RefusedError where too many read already.
        """
        return self._hub(tap).subscribe(kind, service)

    def removed(self, tap: str) -> None:
        """Its order is gone, perhaps before it was seen here: who reads it waits for no first stream."""
        if tap in self._hubs:
            self._hubs[tap] = self._hubs[tap][0], 0.0

    def own(self, name: str, place: tuple[str, int]) -> None:
        """Tell the probes of another place, host and port, where packets that were copied go through."""
        self._endpoints.set(name, place)

    def status(self) -> list[StreamStatus]:
        """Every tap and host of which something came since the collector started."""
        return [
            StreamStatus(tap, host, (tap, host) in self._running, c.packets, c.bytes, c.files, dict(c.lost))
            for (tap, host), c in sorted(self._counts.items())
        ]

    def readers(self) -> list[ReaderStatus]:
        """Everybody who reads now."""
        return [
            ReaderStatus(tap, reader.kind, reader.packets, reader.lost)
            for tap, (hub, _) in sorted(self._hubs.items())
            for reader in hub.readers
        ]

    def pcap_over_ip(self) -> dict[str, str]:
        """tap → ADDRESS:PORT where its packets are for whoever connects, if that is switched on."""
        return self._outlets.addresses()

    def totals(self) -> StreamsTotals:
        """Of everything since the collector started."""
        sums = Counts()
        for counts in (self._past, *self._counts.values()):
            sums.add(counts)
        return StreamsTotals(
            connected=len(self._running),
            readers=sum(len(hub.readers) for hub, _ in self._hubs.values()),
            packets=sums.packets,
            bytes=sums.bytes,
            files=sums.files,
            lost=sums.lost | self._not_read,
            refused=dict(self._refused),
            up=not self.problems(),
        )

    def refused(self) -> dict[str, int]:
        """why → connections that were refused, or ended, by the collector."""
        return dict(self._refused)

    def problems(self) -> list[str]:
        """What the collector cannot do now, each with its remedy."""
        own = [problem for problem in (self._problem, self._files.problem) if problem]
        return own + self._outlets.problems()

    # -- connections -----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            self._listener = listen(self._address)
        except OSError as error:
            if not self._problem:
                self._problem = (
                    f"no streams of packets are taken: cannot listen on {shown(*self._address)} "
                    f"({error.strerror}); stop what uses the port, or set [streams] listen"
                )
                log.warning("%s", self._problem)
            return
        self._problem = ""
        self._address = self._listener.getsockname()[:2]
        self._endpoints.set("streams", self._address)
        log.info("streams of packets are taken at %s", shown(*self._address))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._accept())
            group.create_task(self._look_after())
            group.create_task(self._keep_limits())
            group.create_task(self._outlets.run(lambda: self._orders.names))

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while self._listener is None:
            await asyncio.sleep(_LISTEN_SECONDS)
            self._listen()
        while True:
            try:
                connected, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                # Out of descriptors: what is open goes on.
                self._refuse("not accepted", str(error))
                await asyncio.sleep(_TURN_SECONDS)
                continue
            if len(self._unknown) >= MOST_UNKNOWN:
                self._refuse("too many at once", "the oldest of those that have not shown a key goes")
                next(iter(self._unknown)).cancel()
            task = asyncio.create_task(self._connection(connected))
            self._unknown[task] = None
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._unknown.pop(task, None)
        self._over.pop(task, None)
        if not task.cancelled() and (error := task.exception()):
            log.error("a stream has failed", exc_info=error)

    def _refuse(self, reason: str, detail: str) -> None:
        if not self._refused[reason]:
            log.warning("a stream was refused (%s): %s", reason, detail)
        self._refused[reason] += 1

    async def _connection(self, connected: socket.socket) -> None:
        wire = Wire(connected)
        try:
            intake = await self._open(wire)
            await self._take(wire, intake)
        except TimeoutError:
            self._refuse("slow", f"no section header within {OPENING_SECONDS:g} s")
        except Unknown as error:
            self._refuse("unknown", str(error))
            await _last(wire, wire.send(REFUSED))
        except Malformed as error:
            self._refuse("malformed", str(error))
        except OSError as error:
            log.debug("a stream has ended: %s", error)
        finally:
            wire.close()

    async def _open(self, wire: Wire) -> Intake:
        """A stream that has shown its key. Raises TimeoutError, Malformed, Unknown, OSError."""
        async with asyncio.timeout(OPENING_SECONDS):
            if self._tls:
                await wire.secure(self._tls)
            began = await opening(wire)
            # A probe may know of a tap before we do.
            order = check(began.header, await self._orders.soon(began.header.tap, _ORDER_SECONDS))
        place = order.name, began.header.host
        if place not in self._running and len(self._running) >= self._config.connections:
            self._refuse("too many", f"raise [streams] connections, which is {self._config.connections}")
            raise ConnectionRefusedError("there are too many streams")
        self._outlets.see_to(self._orders.names)
        counts = self._counts.setdefault(place, Counts())
        return Intake(wire, began, order, self._hub(order.name), counts=counts, shared=self._shared)

    async def _take(self, wire: Wire, intake: Intake) -> None:
        task = asyncio.current_task()
        assert task
        self._unknown.pop(task, None)
        place = intake.order.name, intake.header.host
        before = self._running.get(place)
        if before:
            before[1].cancel()  # its probe has given it up
        self._running[place] = intake, task
        try:
            try:
                await intake.run()
            except Malformed as error:
                self._refuse("malformed", f"{intake.header.host}, tap {intake.order.name}: {error}")
            await _last(wire, intake.answer())
        except asyncio.CancelledError:
            intake.answer_now()
            raise
        finally:
            if self._running.get(place, before) == (intake, task):
                del self._running[place]

    # -- what goes on all the time ---------------------------------------------------------------------------

    def _hub(self, tap: str) -> Hub:
        known = self._orders.get(tap) is not None
        hub = self._hubs[tap][0] if tap in self._hubs else Hub(tap, self._config.reader_bytes, self._not_read)
        # A reader may know of a tap before we do.
        self._hubs[tap] = hub, time.monotonic() + (0 if known else OPENING_SECONDS)
        return hub

    async def _look_after(self) -> None:
        """Confirm what came, and see that nothing outlives its order for long."""
        while True:
            await asyncio.sleep(_TURN_SECONDS)
            now = time.monotonic()
            for intake, task in self._running.values():
                intake.confirm()
                self._heed_order(intake, task, now)
            active = {tap for tap, _ in self._running}
            for tap, (hub, until) in list(self._hubs.items()):
                if self._orders.get(tap):
                    self._hubs[tap] = hub, now
                elif tap not in active and now > until:
                    hub.end()
                    del self._hubs[tap]
            for place in [place for place in self._counts if place not in self._running]:
                if len(self._counts) <= MOST_COUNTS:
                    break
                self._past.add(self._counts.pop(place))

    def _heed_order(self, intake: Intake, task: asyncio.Task[None], now: float) -> None:
        order = self._orders.get(intake.order.name)
        if order and order.key == intake.order.key:
            intake.order = order
            self._over.pop(task, None)
        elif now > self._over.setdefault(task, now + ENDING_SECONDS):
            task.cancel()

    async def _keep_limits(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._disk, self._files.mend)
        while True:
            await loop.run_in_executor(self._disk, self._files.keep_limits)
            await asyncio.sleep(_LIMITS_SECONDS)


async def _last(wire: Wire, word: Awaitable[None]) -> None:
    """The last that the other end is told."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_FINISH_SECONDS):
            await word
    await wire.finish(_FINISH_SECONDS)


def _context(config: StreamsConfig) -> ssl.SSLContext | None:
    """What TLS needs. Raises ConfigError."""
    if config.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
    except OSError as error:  # which those of TLS are too
        raise ConfigError(
            f"cannot use {config.tls_certificate} with {config.tls_key}: {error.strerror or error}",
            "give [streams] a certificate and its key as PEM files that this user can read",
        ) from None
    return context
