"""Sends stored flows to an IPFIX collector, each at most once, and never in the way of storing.

What the collector of this process has stored is offered here as it is, decoded and in memory: nothing is read
from the store for it. It waits in a queue of bounded size; where that is full the records are counted and
forgotten. For the records offered: offered = sent + pending + lost at each place, and what is pending when
the server is killed goes with it.
"""

import asyncio
import logging
import time
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec
from numpy.typing import NDArray

from eastwest.bus.background import Background
from eastwest.errors import StoreError
from eastwest.export import ipfix
from eastwest.export.config import IpfixConfig
from eastwest.export.services import Services
from eastwest.export.session import Session, connect, parse
from eastwest.store.batch import Batch
from eastwest.store.store import Store

log = logging.getLogger(__name__)

PLACES = ("queue_full", "unacknowledged", "stopped")
"""Where a record is lost: no room in the queue; in a connection that broke; at the server's end."""

_STREAM_MESSAGE_BYTES = 65_000
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 8.0
_STOP_SECONDS = 3.0
_SETTLE_SECONDS = 0.1
# A burst is less than what a socket's buffer holds by default (208 KiB); the pause lets its owner read.
_BURST, _PAUSE_SECONDS = 32, 0.002


class ExporterStatus(msgspec.Struct, frozen=True):
    """What became of the flow records offered since the server started."""

    records: int
    """Sent: acknowledged by the collector's host (TCP), or handed to the network (UDP)."""
    messages: int
    bytes: int
    pending: int
    lost: dict[str, int]
    refused_datagrams: int
    """Answers that nobody listens; of datagrams counted as sent, at least so many were not read."""
    problem: str | None


@dataclass
class _Waiting:
    """Rows that are not sent yet, or not to their end; encoded when their turn comes."""

    host: str
    rows: NDArray[Any]
    pieces: deque[tuple[int, NDArray[Any]]] = field(default_factory=deque)
    encoded: bool = False


@dataclass
class _Domain:
    """One host within one session."""

    number: int
    sequence: int = 0
    described: float | None = None


class Exporter:
    """Sends while it is entered, if it is configured to."""

    def __init__(self, config: IpfixConfig, store: Store) -> None:
        self._config = config
        self._target = None if config.collector is None else parse(config.collector)
        self._store = store
        self._services = Services()
        self._numbers: dict[str, int] = {}
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._filled = asyncio.Event()
        self._offered = 0
        self._counts: Counter[str] = Counter()
        self._lost: Counter[str] = Counter(dict.fromkeys(PLACES, 0))
        self._delay = _FIRST_DELAY
        self._problem: str | None = None
        self._work = Background()

    async def __aenter__(self) -> Self:
        if self._target is not None:
            await self._work.start(self._run(), "ipfix")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._problem is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._drained()
        await self._work.stop(kind, error, trace)
        if left := self._pending:
            self._lost["stopped"] += left
            log.warning("%d flow records were not sent to %s before the end", left, self._config.collector)

    @property
    def status(self) -> ExporterStatus | None:
        """None where nothing is to be exported."""
        if self._target is None:
            return None
        counts = self._counts
        return ExporterStatus(
            records=counts["records"],
            messages=counts["messages"],
            bytes=counts["bytes"],
            pending=self._pending,
            lost=dict(self._lost),
            refused_datagrams=counts["refused"],
            problem=self._problem,
        )

    @property
    def _pending(self) -> int:
        return self._offered - self._counts["records"] - self._lost.total()

    async def _drained(self) -> None:
        while self._pending:  # noqa: ASYNC110 - what TCP has acknowledged is only told when asked
            await asyncio.sleep(_SETTLE_SECONDS)

    def problems(self) -> list[str]:
        """What cannot be done now, each with its remedy."""
        return [self._problem] if self._problem else []

    def offer(self, batches: Sequence[Batch]) -> None:
        """Take over what has been stored; returns at once."""
        if self._target is None:
            return
        for batch in batches:
            if batch.workloads:
                self._services.learn(batch.workloads)
            if batch.kind == "flows" and batch.rows is not None and len(batch.rows):
                self._enqueue(batch.host, batch.rows)

    def _enqueue(self, host: str, rows: NDArray[Any]) -> None:
        self._offered += len(rows)
        if self._queued_bytes + rows.nbytes > self._config.queue_bytes:
            if not self._lost["queue_full"]:
                log.warning("the queue to %s is full; flow records are not sent", self._config.collector)
            self._lost["queue_full"] += len(rows)
            return
        self._queued_bytes += rows.nbytes
        self._queue.append(_Waiting(host, rows))
        self._filled.set()

    async def _run(self) -> None:
        await self._learn()
        assert self._target is not None
        while True:
            try:
                session = Session(await connect(*self._target))
            except OSError as error:
                self._away(error)
            else:
                try:
                    await self._feed(session)
                except OSError as error:
                    self._counts["refused"] += session.used and isinstance(error, ConnectionRefusedError)
                    self._away(error)
                finally:
                    self._close(session)
            await asyncio.sleep(self._delay)
            self._delay = min(2 * self._delay, _LONGEST_DELAY)

    async def _learn(self) -> None:
        try:
            self._services.learn(await self._store.workloads())
        except StoreError as error:
            log.warning("service IDs go out as 0 until workloads are heard of again: %s", error)

    async def _feed(self, session: Session) -> None:
        """Send what comes, until the session breaks. Raises OSError."""
        domains: dict[str, _Domain] = {}
        while True:
            await self._something(session)
            waiting = self._queue[0]
            if not waiting.encoded:
                # Apart from the loop: a message's worth of rows takes tens of milliseconds.
                ids = self._services.of(waiting.rows["label"])
                waiting.pieces.extend(await asyncio.to_thread(ipfix.records, waiting.rows, ids))
                waiting.encoded = True
            domain = domains.setdefault(waiting.host, _Domain(self._number(waiting.host)))
            while waiting.pieces:
                await self._describe(session, domain, waiting.host)
                await self._send(session, domain, waiting.pieces)
            self._queued_bytes -= waiting.rows.nbytes
            self._queue.popleft()

    async def _something(self, session: Session) -> None:
        """Until there is something to send."""
        while not self._queue:
            self._filled.clear()
            self._settle(session)
            session.check()
            try:
                async with asyncio.timeout(_SETTLE_SECONDS if session.flying else None):
                    await self._filled.wait()
            except TimeoutError:
                continue

    async def _describe(self, session: Session, domain: _Domain, host: str) -> None:
        """Send the templates if the collector has not got them, or may have forgotten them."""
        now = time.monotonic()
        if domain.described is not None and (
            session.stream or now - domain.described < self._config.template_seconds
        ):
            return
        message, records = ipfix.description(
            host,
            self._config.enterprise,
            domain=domain.number,
            sequence=domain.sequence,
            time=int(time.time()),
        )
        await session.send(message, 0)
        if await session.refused():
            raise ConnectionRefusedError("nobody listens there")
        domain.sequence += records
        domain.described = now

    async def _send(self, session: Session, domain: _Domain, pieces: deque[tuple[int, NDArray[Any]]]) -> None:
        template, found = pieces[0]
        limit = _STREAM_MESSAGE_BYTES if session.stream else self._config.datagram_bytes
        told = {
            "domain": domain.number,
            "sequence": domain.sequence,
            "time": int(time.time()),
            "limit": limit,
        }
        done = 0
        try:
            for group in ipfix.messages(template, found, **told):
                for number, start in enumerate(range(0, len(group.data), group.size)):
                    await session.send(group.data[start : start + group.size], group.each)
                    done += group.each
                    self._counts["messages"] += 1
                    self._counts["bytes"] += group.size
                    if not session.stream and number % _BURST == _BURST - 1:
                        await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            # What is left goes into the next session, with its own numbers.
            domain.sequence += done
            pieces.popleft()
            if done < len(found):
                pieces.appendleft((template, found[done:]))
        self._settle(session)
        self._report(None)
        self._delay = _FIRST_DELAY

    def _settle(self, session: Session) -> None:
        self._counts["records"] += session.arrived()

    def _close(self, session: Session) -> None:
        self._settle(session)
        self._lost["unacknowledged"] += session.flying
        session.close()

    def _number(self, host: str) -> int:
        """The observation domain of a host: the same after a restart, unless two hosts' would be equal."""
        if host not in self._numbers:
            number, taken = zlib.crc32(host.encode()), set(self._numbers.values())
            while number in taken or number == 0:  # 0: no particular domain
                number = (number + 1) & 0xFFFFFFFF
            self._numbers[host] = number
        return self._numbers[host]

    def _away(self, error: OSError) -> None:
        why = error.strerror or str(error) or "no answer in time"
        self._report(
            f"no flow records can be sent to {self._config.collector} ({why}); start that collector, "
            "or correct collector in [export.ipfix]"
        )

    def _report(self, problem: str | None) -> None:
        if problem is not None and self._problem is None:
            log.warning("%s", problem)
        elif problem is None and self._problem is not None:
            log.info("flow records are sent again")
        self._problem = problem
