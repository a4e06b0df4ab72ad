"""What the API can be asked, apart from HTTP: the store, the bus and the fleet put together."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from eastwest import __version__
from eastwest.bus import messages
from eastwest.bus.client import Bus
from eastwest.bus.messages import FACTS_BUCKET
from eastwest.collector.collector import CollectorStatus
from eastwest.errors import BusError, NotFoundError
from eastwest.manager import ledger, models, times, views
from eastwest.manager.fleet import Fleet, Member
from eastwest.store.reads import FlowQuestion
from eastwest.store.store import Store

_ATTEMPTS = 10

Page = Callable[[Sequence[Member]], Awaitable[bytes]]
"""Writes the page that Prometheus reads, given the fleet."""


class Backend:
    """The manager's knowledge. Every question raises StoreError, and those that need the bus BusError."""

    def __init__(
        self,
        bus: Bus,
        store: Store,
        fleet: Fleet,
        *,
        collector: Callable[[], CollectorStatus] | None,
        page: Page | None,
        problems: Callable[[], list[str]],
    ) -> None:
        self._bus = bus
        self._store = store
        self._fleet = fleet
        self._collector = collector
        self._page = page
        self._problems = problems
        self._cost = OwnCost()
        # A ledger reads the whole stream: one at a time.
        self._ledger = asyncio.Lock()

    async def labels(self, gone_too: bool) -> list[models.Label]:
        workloads = await self._workloads(gone_too)
        return views.labels(workloads, await self._store.label_totals(gone_too), gone_too)

    async def workloads(self, gone_too: bool) -> list[models.Workload]:
        return views.workloads(await self._workloads(gone_too), gone_too)

    async def ports(self) -> list[models.Port]:
        return views.ports(await self._store.present_workloads(), self._fleet.members)

    async def hosts(self) -> list[models.Host]:
        return views.hosts(self._fleet.members)

    async def flows(
        self, selector: str | None, since: str, until: str | None, limit: int, lines: bool = False
    ) -> bytes:
        """A JSON list (or lines) of `models.Flow`. Raises RefusedError for what is no selector or time."""
        start, end = _range(since, until)
        return await self._store.flows(FlowQuestion(await self._selected(selector), start, end, limit), lines)

    async def talkers(self, selector: str | None, since: str, until: str | None, limit: int) -> bytes:
        """A JSON list of `models.Talker`. Raises RefusedError for what is no selector or time."""
        start, end = _range(since, until)
        return await self._store.talkers(FlowQuestion(await self._selected(selector), start, end, limit))

    async def minutes(self, selector: str | None, since: str, until: str | None) -> list[models.Minute]:
        """Raises RefusedError for what is no selector or time."""
        start, end = _range(since, until)
        return views.minutes(await self._store.minutes(await self._selected(selector), start, end))

    async def ledger(self) -> list[models.LedgerEntry]:
        async with self._ledger:
            hosts = [member.report.host for member in self._fleet.members]
            return views.ledger(await ledger.take(self._bus, self._store, hosts))

    async def set_facts(self, name: str, said: models.Facts) -> models.LabelFacts:
        """Add to what is said of a workload. Raises NotFoundError, RefusedError."""
        workload = views.named(name, await self._store.workloads())
        bucket, key = self._bus.bucket(FACTS_BUCKET), str(workload.label)
        new = said.model_dump(by_alias=True, exclude_none=True)
        for _ in range(_ATTEMPTS):
            known = await bucket.get(key)
            document = {**_facts(known[0] if known else b"{}"), **new}
            if await bucket.create_or_update(key, msgspec.json.encode(document), known and known[1]):
                return models.LabelFacts(
                    label=workload.label, name=workload.name, facts=models.Facts.model_validate(document)
                )
        raise BusError(f"others change the facts of '{name}' all the time", "try again")

    async def health(self) -> models.Health:
        collector = self._collector() if self._collector else None
        done = models.CollectorHealth.model_validate(msgspec.to_builtins(collector)) if collector else None
        problems = [p for p in (self._bus.problem, collector and collector.problem) if p]
        problems += [*self._fleet.problems, *self._problems()]
        return models.Health(
            status="degraded" if problems else "ok",
            version=__version__,
            problems=problems,
            collector=done,
            server=self._cost.now(),
        )

    async def metrics(self) -> bytes:
        """The page that Prometheus reads. Raises NotFoundError where this server has none."""
        if self._page is None:
            raise NotFoundError("this server has no metrics", "ask the one that stores")
        return await self._page(self._fleet.members)

    async def _workloads(self, gone_too: bool) -> list[messages.Workload]:
        return await (self._store.workloads() if gone_too else self._store.present_workloads())

    async def _selected(self, selector: str | None) -> Sequence[int] | None:
        return None if selector is None else views.selected(selector, await self._store.workloads())


class OwnCost:
    """CPU and memory of this process."""

    def __init__(self) -> None:
        self._started = self._at = time.monotonic()
        self._busy = time.process_time()
        self._percent = 0.0

    def now(self) -> models.ServerCost:
        """CPU over the time since the last question but at least one second."""
        at, busy = time.monotonic(), time.process_time()
        if at - self._at >= 1.0:
            self._percent = 100 * (busy - self._busy) / (at - self._at)
            self._at, self._busy = at, busy
        return models.ServerCost(
            cpu_percent=round(self._percent, 2),
            memory_bytes=_resident_bytes(),
            uptime_seconds=round(at - self._started, 3),
        )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _range(since: str, until: str | None) -> tuple[int, int]:
    now = time.time_ns()
    # A host's clock may be ahead of ours: without `until` nothing is too late.
    return times.parse(since, now), times.parse(until, now) if until else 1 << 62


def _facts(document: bytes) -> dict[str, object]:
    """The facts in the bucket; unreadable ones (by whom?) count as none, so that they can be set again."""
    try:
        facts = msgspec.json.decode(document, type=messages.Facts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    builtins: dict[str, object] = msgspec.to_builtins(facts)
    return builtins
