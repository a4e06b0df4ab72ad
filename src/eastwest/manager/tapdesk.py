"""What the API says of taps: orders, and the probes' and the collector's answers put together."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from eastwest.bus.address import host_port
from eastwest.bus.messages import Workload
from eastwest.bus.taps import TapOrder, TapsAnswer
from eastwest.collector.hub import Subscription
from eastwest.collector.streams import Streams
from eastwest.errors import RefusedError
from eastwest.labels.selector import Selector
from eastwest.manager import tapmodels, tapviews, times, views
from eastwest.manager.fleet import Fleet
from eastwest.manager.taps import TapOrders, same
from eastwest.store.store import Store
from eastwest.tap import filter as filters
from eastwest.tap import payload
from eastwest.tap.taps import SHORTEST_SNAPLEN

_LEAST_SECONDS = 5
_FOREVER = "forever"
_KIND = "api"
_MOST_MISSED = 1024


class TapDesk:
    """Questions and orders about taps. Raises RefusedError, BusError, StoreError."""

    def __init__(self, orders: TapOrders, fleet: Fleet, store: Store, streams: Streams | None) -> None:
        self._orders = orders
        self._fleet = fleet
        self._store = store
        self._streams = streams
        # libpcap may take seconds of CPU time for a text: one at a time.
        self._compiling = asyncio.Lock()
        self._waiting: dict[str, Subscription] = {}
        """For the first who reads a tap that is not stored: what comes before he does is not lost."""
        self._missed: Counter[str] = Counter()
        """Packets that readers who have gone were too slow for, by tap."""

    async def add(self, said: tapmodels.TapWanted) -> tapmodels.Tap:
        """Order it, or give what is ordered already another time. KernelError: no filter can be looked at."""
        wanted, seconds = self._wanted(said), self._seconds(said.lasts)
        if not any(same(wanted, order) for order in self._orders.all):
            async with self._compiling:
                await asyncio.to_thread(filters.check_text, wanted.filter)
        self._expect_reader(wanted)
        order = await self._orders.add(wanted, seconds)
        return tapviews.tap(order, [], await self._selected(order), self._read_at(order.name))

    def _expect_reader(self, wanted: TapOrder) -> None:
        known = {order.name for order in self._orders.all}
        for name in self._waiting.keys() - known:
            self._waiting.pop(name).close()
        if self._streams and wanted.receiver == "collector" and not wanted.store and wanted.name not in known:
            self._waiting[wanted.name] = self._streams.subscribe(wanted.name, _KIND)

    def _wanted(self, said: tapmodels.TapWanted) -> TapOrder:
        conditions = Selector.parse(said.selector).conditions
        if not conditions:
            raise RefusedError("a selector that is empty selects every workload", "say so with: name=*")
        payload.parse(said.payload)
        if 0 < said.snaplen < SHORTEST_SNAPLEN:
            raise RefusedError(f"snaplen {said.snaplen}", f"choose {SHORTEST_SNAPLEN} or more, or 0 for all")
        return TapOrder(
            name=said.name,
            selector=",".join(f"{key}={value}" for key, value in sorted(conditions)),
            to=self._to(said),
            receiver="collector" if said.to is None else "application",
            tls=said.tls if said.to is not None or self._streams is None else self._streams.tls,
            filter=said.filter.strip(),
            direction=said.direction,
            payload=said.payload,
            snaplen=said.snaplen,
            segment=said.segment,
            service_id=said.service_id,
            store=said.store and said.to is None,
            added=0,
            expires=0,
        )

    def _to(self, said: tapmodels.TapWanted) -> str:
        if said.to is not None:
            host_port(said.to)
            return said.to
        if self._streams is None:
            raise RefusedError("this server collects no packets", "say where to send them: --to HOST:PORT")
        if said.tls:
            raise RefusedError(
                "tls is for an application", "whether the collector speaks TLS, it says itself"
            )
        return self._streams.to

    @staticmethod
    def _seconds(lasts: str) -> int | None:
        if lasts == _FOREVER:
            return None
        seconds = times.duration(lasts)
        if seconds < _LEAST_SECONDS:
            raise RefusedError(f"a tap for {seconds} s", f"give {_LEAST_SECONDS}s or more, or forever")
        return seconds

    async def remove(self, name: str) -> tapmodels.Tap:
        order = await self._orders.remove(name, self._hosts())
        if name in self._waiting:
            self._waiting.pop(name).close()
        if self._streams:
            self._streams.removed(name)
        return tapviews.tap(order, [], await self._selected(order))

    async def taps(self) -> list[tapmodels.Tap]:
        """Every order, with what became of it on those of its hosts that are alive."""
        return await self._views(self._orders.all)

    async def tap(self, name: str) -> tapmodels.Tap:
        (view,) = await self._views([self._orders.find(name)])
        return view

    async def _views(self, orders: Sequence[TapOrder]) -> list[tapmodels.Tap]:
        present = await self._store.present_workloads() if orders else []
        chosen = [set(views.selected(order.selector, present) or ()) for order in orders]
        concerned = [self._on(order, labels, present) for order, labels in zip(orders, chosen, strict=True)]
        hosts = sorted(set().union(*concerned))
        answers = dict(zip(hosts, await self._orders.ask(hosts), strict=True))
        refused = {point.label for a in answers.values() if a for point in a.points if point.problem}
        names = await self._store.names(refused) if refused else {}
        shown = []
        for order, labels, on in zip(orders, chosen, concerned, strict=True):
            told = [self._host(order.name, host, answers[host], names) for host in sorted(on)]
            heard = [host for host in told if host]
            shown.append(tapviews.tap(order, heard, len(labels), self._read_at(order.name)))
        return shown

    def _on(self, order: TapOrder, labels: set[int], present: Sequence[Workload]) -> set[str]:
        """Hosts that a tap is on: those of what it selects, and those that say so in their reports."""
        there = {workload.host for workload in present if workload.label in labels}
        alive = [member.report for member in self._fleet.members if member.alive]
        return {report.host for report in alive if report.host in there or order.name in report.taps}

    @staticmethod
    def _host(
        tap: str, host: str, answer: TapsAnswer | None, names: Mapping[int, str]
    ) -> tapmodels.TapHost | None:
        if answer is None:
            return tapmodels.TapHost(host=host, problem="its probe does not answer")
        return tapviews.host(tap, answer, names)

    async def ledger(self, name: str | None) -> list[tapmodels.TapLedgerEntry]:
        """Of all taps that an order or a probe knows, also of such as ended lately; or of one of them."""
        answers: list[TapsAnswer] = [a for a in await self._orders.ask(self._hosts()) if a]
        unstored: Counter[str] = Counter()
        for status in self._streams.status() if self._streams else ():
            unstored[status.tap] += sum(status.lost.values())
        missed = self._missed.copy()
        for reader in self._streams.readers() if self._streams else ():
            if reader.kind == _KIND:
                missed[reader.tap] += reader.lost
        entries = tapviews.ledger(self._orders.all, answers, unstored, missed)
        return [entry for entry in entries if name in (None, entry.tap)]

    @asynccontextmanager
    async def stream(self, name: str) -> AsyncIterator[Subscription]:
        """The packets of a tap, from now on or, of one that is not stored, from its beginning."""
        assert self._streams is not None
        async with self._waiting.pop(name, None) or self._streams.subscribe(name, _KIND) as subscription:
            try:
                yield subscription
            finally:
                self._missed[name] += subscription.lost
                if len(self._missed) > _MOST_MISSED:
                    del self._missed[next(iter(self._missed))]

    def check_readable(self, name: str) -> None:
        """Raises NotFoundError, RefusedError where its packets cannot be read here."""
        order = self._orders.find(name)
        if order.receiver != "collector" or self._streams is None or order.to != self._streams.to:
            raise RefusedError(f"this server does not collect the tap '{name}'", f"read it at {order.to}")

    def _read_at(self, name: str) -> str:
        return self._streams.pcap_over_ip().get(name, "") if self._streams else ""

    async def _selected(self, order: TapOrder) -> int:
        return len(views.selected(order.selector, await self._store.present_workloads()) or ())

    def _hosts(self) -> list[str]:
        return [member.report.host for member in self._fleet.members if member.alive]
