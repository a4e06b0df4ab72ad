"""`eastwest probe`: the probe alone, as a fleet's host runs it."""

from pathlib import Path

import click

from eastwest.cli import config, options, role
from eastwest.cli.lock import ProbeLock


@click.command("probe")
@options.config
@options.state_dir
def command(config_file: Path | None, state_dir: Path | None) -> None:
    """Run the probe of this host until it is told to stop. Counting goes on afterwards.

    One probe per state directory; `eastwest down` stops it and ends the counting.
    """
    settings = config.load(config.ProbeSettings, config_file, state_dir)
    with ProbeLock(settings.probe.state_dir):
        role.run(lambda: _probe(settings))


async def _probe(settings: config.ProbeSettings) -> None:
    from eastwest.bus.client import Bus
    from eastwest.cli.sources import sources
    from eastwest.kernel.memory import keep_little
    from eastwest.probe.probe import Probe

    keep_little()
    async with (
        Bus(settings.bus) as bus,
        Probe(
            settings.probe,
            settings.rule,
            bus,
            sources(settings.inventory, settings.probe),
            suspect=settings.suspect,
            tap=settings.tap,
        ) as probe,
    ):
        await probe.run()
