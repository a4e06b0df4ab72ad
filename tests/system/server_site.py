"""A whole server for the tests: nats-server, store, collector and manager, in a directory of its own."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from eastwest.bus.client import Bus
from eastwest.bus.embedded import PROBE_USER, SERVER_USER
from eastwest.bus.stream import waiting
from eastwest.collector.collector import Collector, CollectorConfig
from eastwest.export.config import ExportConfig
from eastwest.export.exporter import Exporter
from eastwest.export.metrics import Metrics
from eastwest.manager.fleet import Fleet
from eastwest.manager.manager import Manager, ManagerConfig
from eastwest.store.store import Store, StoreConfig
from eastwest.watch.config import AlertsConfig, DetectConfig
from eastwest.watch.definition import Definition
from eastwest.watch.routes import router
from eastwest.watch.watcher import Watcher
from tests.system.bus_server import RunningServer, running, until

QUICK = AlertsConfig(interval_seconds=0.1)
"""A watcher that looks again at once."""

ALL = {"since": "2020-01-01T00:00:00Z"}
"""Query parameters: whenever it was."""


@dataclass
class Site:
    """A running server and what a test needs of it."""

    nats: RunningServer
    probe_bus: Bus
    bus: Bus
    store: Store
    collector: Collector
    exporter: Exporter
    watcher: Watcher
    api: httpx.AsyncClient

    async def get(self, path: str, **parameters: Any) -> Any:
        response = await self.api.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    async def ledger(self) -> dict[int, tuple[int, int, int, dict[str, int], bool]]:
        return {
            e["label"]: (
                e["seen_packets"],
                e["stored_packets"],
                e["pending_packets"],
                e["lost"],
                e["balanced"],
            )
            for e in await self.get("ledger")
        }

    async def settled(self, messages: int) -> None:
        """Until so many messages are dealt with and none is in the stream."""

        async def empty() -> bool:
            done = self.collector.status
            known = done.stored_messages + done.repeats + sum(done.malformed.values())
            return known >= messages and not [m async for m in waiting(self.bus)]

        await until(empty)


@asynccontextmanager
async def site(
    directory: Path,
    collecting: bool = True,
    *,
    alerts: AlertsConfig = QUICK,
    watches: Sequence[Definition] = (),
    detect: DetectConfig | None = None,
    export: ExportConfig | None = None,
) -> AsyncIterator[Site]:
    export = export or ExportConfig()
    with running(directory / "bus") as nats:
        async with (
            Bus(nats.files.bus_config(PROBE_USER)) as probe_bus,
            Bus(nats.files.bus_config(SERVER_USER)) as bus,
            Store(StoreConfig(path=directory / "store")) as store,
        ):
            exporter = Exporter(export.ipfix, store)
            collector = Collector(CollectorConfig(), bus, store, exporter.offer)
            metrics = Metrics(
                export.prometheus, bus, store, lambda: collector.status, lambda: exporter.status
            )
            fleet = Fleet(bus)
            watcher = Watcher(alerts, bus, store, fleet, watches=watches, detect=detect)
            manager = Manager(
                ManagerConfig(listen="127.0.0.1:0"),
                bus,
                store,
                fleet,
                lambda: collector.status,
                page=metrics.page,
                routers=[router(watcher)],
                problems=lambda: exporter.problems() + watcher.problems,
            )
            await exporter.__aenter__()
            if collecting:
                await collector.__aenter__()
            async with (
                metrics,
                fleet,
                watcher,
                manager,
                httpx.AsyncClient(base_url=manager.url, trust_env=False) as api,
            ):
                yield Site(nats, probe_bus, bus, store, collector, exporter, watcher, api)
            await collector.__aexit__(None, None, None)
            await exporter.__aexit__(None, None, None)
