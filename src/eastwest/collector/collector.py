"""The collector: takes messages from the stream, stores each once, and only then lets it go."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec

from eastwest.bus.background import Background
from eastwest.bus.client import Bus
from eastwest.bus.stream import Message, Puller
from eastwest.collector.decode import Malformed, decode
from eastwest.errors import BusError, StoreError
from eastwest.store.batch import Batch
from eastwest.store.store import Store
from eastwest.store.writes import Written

log = logging.getLogger(__name__)

_FETCH_SECONDS = 2.0
_KEEP_SECONDS = 5.0
"""A message that is still being stored is claimed anew this often, well before it would be sent again."""


class CollectorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`name`: the durable consumer, shared by all collectors of a fleet. The rest bounds one insert."""

    name: str = "collector"
    insert_messages: int = 256
    insert_bytes: int = 32 << 20
    max_retry_seconds: float = 30.0


class CollectorStatus(msgspec.Struct, frozen=True):
    """What the collector has done since it started."""

    messages: int
    stored_messages: int
    stored_rows: int
    stored_packets: int
    repeats: int
    malformed: dict[str, int]
    problem: str | None
    """Why nothing is stored now, with the remedy."""


class Collector:
    """Moves messages from the stream into the store while it is entered; `stored` is told of what is stored,
    once, and must return at once."""

    def __init__(
        self,
        config: CollectorConfig,
        bus: Bus,
        store: Store,
        stored: Callable[[Sequence[Batch]], None] | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._stored = stored
        self._puller = Puller(bus, config.name)
        self._counts: Counter[str] = Counter()
        self._malformed: Counter[str] = Counter()
        self._problem: str | None = None
        self._work = Background()

    async def __aenter__(self) -> Self:
        await self._puller.__aenter__()
        await self._work.start(self._run(), "collector")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._work.stop(kind, error, trace)
        finally:
            await self._puller.__aexit__(kind, error, trace)

    @property
    def status(self) -> CollectorStatus:
        counts = self._counts
        return CollectorStatus(
            messages=counts["messages"],
            stored_messages=counts["stored"],
            stored_rows=counts["rows"],
            stored_packets=counts["packets"],
            repeats=counts["repeats"],
            malformed=dict(self._malformed),
            problem=self._problem,
        )

    async def _run(self) -> None:
        """Fetch the next group while one is being stored; store and acknowledge in the stream's order."""
        following = asyncio.create_task(self._fetch())
        try:
            while True:
                # It was fetched as soon as the last group was, perhaps a single message: what has come since
                # is stored with it, as an insert of many costs little more than one of few.
                messages = await following
                messages += await self._fetch(messages)
                following = asyncio.create_task(self._fetch())
                await self._take(messages)
        finally:
            following.cancel()

    async def _fetch(self, before: Sequence[Message] = ()) -> list[Message]:
        """The next group; with those `before` it, what is there already and fits in one insert with them."""
        count = self._config.insert_messages - len(before)
        size = self._config.insert_bytes - sum(len(message.payload) for message in before)
        if before and (count <= 0 or size <= 0):
            return []
        while True:
            try:
                return await self._puller.fetch(count, size, 0.0 if before else _FETCH_SECONDS)
            except BusError as error:
                if before:
                    return []
                self._report(str(error))
                await asyncio.sleep(1.0)

    async def _take(self, messages: list[Message]) -> None:
        good, bad = self._decode(messages)
        try:
            await self._puller.refuse(bad)
            if good:
                self._count(await self._write([batch for _, batch in good], [m for m, _ in good]))
                await self._puller.done([message for message, _ in good])
            self._report(None)
        except BusError as error:
            # Not acknowledged, so they come again; what is stored by then is refused as a repeat.
            self._report(str(error))

    def _decode(self, messages: list[Message]) -> tuple[list[tuple[Message, Batch]], list[Message]]:
        good, bad = [], []
        for message in messages:
            try:
                good.append((message, decode(message)))
            except Malformed as error:
                bad.append(message)
                if not self._malformed[error.reason]:
                    log.warning("refused a message on %s (%s): %s", message.subject, error.reason, error)
                self._malformed[error.reason] += 1
        self._counts["messages"] += len(messages)
        return good, bad

    async def _write(self, batches: list[Batch], messages: list[Message]) -> Written:
        """Store, trying again for as long as it takes, with the messages kept from being sent again."""
        delay = 0.5
        while True:
            try:
                return await self._while_claiming(messages, batches)
            except StoreError as error:
                self._report(str(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, self._config.max_retry_seconds, _KEEP_SECONDS)
                with suppress(BusError):
                    await self._puller.working(messages)

    async def _while_claiming(self, messages: list[Message], batches: list[Batch]) -> Written:
        writing = asyncio.ensure_future(self._store.write(batches))
        try:
            while not (await asyncio.wait((writing,), timeout=_KEEP_SECONDS))[0]:
                with suppress(BusError):
                    await self._puller.working(messages)
            return writing.result()
        finally:
            writing.cancel()

    def _count(self, written: Written) -> None:
        self._counts["stored"] += written.stored
        self._counts["repeats"] += written.repeats
        self._counts["rows"] += written.rows
        self._counts["packets"] += written.packets
        if self._stored is not None:
            self._stored(written.batches)

    def _report(self, problem: str | None) -> None:
        if problem != self._problem:
            if problem is None:
                log.info("storing again")
            else:
                log.warning("nothing is stored: %s", problem)
        self._problem = problem
