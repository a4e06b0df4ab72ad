"""`eastwest server`: the server alone: API, collector and store."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from eastwest.cli import config, options, role
from eastwest.errors import ConfigError

if TYPE_CHECKING:
    from eastwest.cli.settings import Settings


@click.command("server")
@options.config
@options.state_dir
@options.listen
def command(config_file: Path | None, state_dir: Path | None, listen: str | None) -> None:
    """Run the server until it is told to stop. It needs no privileges."""
    settings = load(config_file, state_dir, listen)
    from eastwest.cli.deploy import with_key

    settings = with_key(settings)
    role.run(lambda: _server(settings))


def load(config_file: Path | None, state_dir: Path | None, listen: str | None) -> "Settings":
    """All settings. Raises ConfigError, also where the server's packages are not installed."""
    try:
        from eastwest.cli.settings import Settings
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("eastwest"):
            raise
        raise ConfigError(
            f"the server's packages are not installed ({error.name})", "pip install 'eastwest[server]'"
        ) from None
    return config.load(Settings, config_file, state_dir, listen)


async def _server(settings: "Settings") -> None:
    from eastwest.bus.client import Bus
    from eastwest.collector.collector import Collector
    from eastwest.collector.streams import Streams
    from eastwest.export.exporter import Exporter
    from eastwest.export.metrics import Metrics
    from eastwest.manager.fleet import Fleet
    from eastwest.manager.manager import Manager
    from eastwest.store.store import Store
    from eastwest.watch.routes import router
    from eastwest.watch.watcher import Watcher

    page = settings.export.prometheus
    async with (
        Bus(settings.bus) as bus,
        Store(settings.store) as store,
        Exporter(settings.export.ipfix, store) as exporter,
        Collector(settings.collector, bus, store, exporter.offer) as collector,
        Streams(settings.streams, bus) as streams,
        Metrics(
            page, bus, store, lambda: collector.status, lambda: exporter.status, streams=streams.totals
        ) as metrics,
        Fleet(bus) as fleet,
        Watcher(
            settings.alerts, bus, store, fleet, watches=settings.watch, detect=settings.detect
        ) as watcher,
        Manager(
            settings.server,
            bus,
            store,
            fleet,
            lambda: collector.status,
            streams=streams,
            page=metrics.page,
            routers=[router(watcher)],
            problems=lambda: exporter.problems() + watcher.problems + streams.problems(),
        ),
    ):
        await role.told()
