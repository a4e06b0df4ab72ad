"""`eastwest taps`: what is copied now, as `eastwest tap list`."""

import click

from eastwest.cli import tap


@click.command("taps")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Show the taps, and what became of them on all hosts."""
    tap.show(as_json)
