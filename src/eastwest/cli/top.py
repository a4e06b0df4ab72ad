"""`eastwest top`: every workload's traffic, live."""

import asyncio
import sys

import click

from eastwest.cli.client import Api, api_url
from eastwest.errors import RefusedError


@click.command("top")
def command() -> None:
    """Watch every workload's traffic: rates, totals, what eastwest itself costs.

    Keys: q quit; / filter by selector, Escape all again; Enter flows of a workload, Escape back.
    Sort by: r rate, i in, o out, t total, s suspect packets, n name, l label.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()):
        raise RefusedError("top needs a terminal", "use `eastwest labels --json` in scripts")
    with Api() as api:
        api.get("hosts")  # nobody there: say so on one line instead of an empty screen
    asyncio.run(_top(api_url()))


async def _top(url: str) -> None:
    from eastwest.cli.board import Board
    from eastwest.cli.feed import Feed

    async with Feed(url) as feed:
        await Board(feed).run_async()
