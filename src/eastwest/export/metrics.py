"""The page that Prometheus reads: few series, exact figures, and no scrape that waits long.

Figures of hosts are as their probes last reported, those of services as the last totals in the store: at most
one report and one drain old. A database or bus that does not answer in time leaves the last known figures on
the page, with their age beside them.
"""

import asyncio
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector as Source

from eastwest.bus.client import Bus
from eastwest.bus.stream import Depth, depth
from eastwest.collector.collector import CollectorStatus
from eastwest.collector.streams import StreamsTotals
from eastwest.export import families
from eastwest.export.config import PrometheusConfig
from eastwest.export.exporter import ExporterStatus
from eastwest.export.latest import Latest
from eastwest.export.shares import Shares
from eastwest.manager.fleet import Member
from eastwest.store.reads import Figures
from eastwest.store.store import Store

_WAIT_SECONDS = 1.0


class Metrics:
    """Writes the page while it is entered. `collector`, `exporter`, `streams`: those in this process."""

    def __init__(
        self,
        config: PrometheusConfig,
        bus: Bus,
        store: Store,
        collector: Callable[[], CollectorStatus],
        exporter: Callable[[], ExporterStatus | None],
        *,
        streams: Callable[[], StreamsTotals] | None = None,
    ) -> None:
        self._bus = bus
        self._collector = collector
        self._exporter = exporter
        self._streams = streams
        self._figures = Latest(store.figures)
        self._depth: Latest[Depth] = Latest(lambda: depth(bus))
        self._services = Shares(config.services)
        self._labels = Shares(config.labels) if config.per_label else None
        self._taken: list[Figures] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._figures.stop()
        await self._depth.stop()

    async def page(self, members: Sequence[Member]) -> bytes:
        """The text of the page (version 0.0.4 of the format), within little more than a second."""
        await asyncio.gather(self._figures.refresh(_WAIT_SECONDS), self._depth.refresh(_WAIT_SECONDS))
        self._take()
        registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        registry.register(_Given([*families.hosts(members), *self._server(), *self._traffic()]))
        return generate_latest(registry)

    def _take(self) -> None:
        """Add to the sums what the store says, once for each of its answers."""
        figures = self._figures.answer
        if figures is None or figures is self._taken:
            return
        self._taken = figures
        self._services.add((f.label, (f.tenant, f.service), families.counts(f)) for f in figures)
        if self._labels is not None:
            self._labels.add((f.label, (str(f.label),), families.counts(f)) for f in figures)

    def _server(self) -> list[Metric]:
        age = self._figures.age if self._figures.answer is not None else None
        return [
            families.gauge(
                "build_info", "Version of this server.", ("version",), {(version("eastwest"),): 1}
            ),
            *families.collected(self._collector()),
            *families.exported(self._exporter()),
            *(families.streams(self._streams()) if self._streams else ()),
            *families.engines(self._bus.connected, self._figures.problem is None, age),
            *families.stream(self._depth.current),
        ]

    def _traffic(self) -> list[Metric]:
        if self._taken is None:
            return []
        found = families.services(self._services.sums())
        found += families.losses(self._taken)
        if self._labels is not None:
            sums = self._labels.sums()
            found += families.labels(sums, [f for f in self._taken if (str(f.label),) in sums])
        return found


class _Given(Source):
    """Families that are there already, as a registry wants them."""

    def __init__(self, given: Sequence[Metric]) -> None:
        self._given = given

    def collect(self) -> Sequence[Metric]:
        return self._given
