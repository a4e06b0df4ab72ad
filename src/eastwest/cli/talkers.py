"""`eastwest talkers`: which addresses a workload's traffic is between."""

import click

from eastwest.cli.asking import asked, at_most, by_label, refuse_reversed, until_time, with_names
from eastwest.cli.client import Api
from eastwest.cli.render import Column, field, number, show_json, show_table
from eastwest.cli.units import count, octets

_LIMIT = 20

COLUMNS = (
    Column("label", field("label"), "right"),
    Column("name", field("name"), keep=False),
    Column("source", field("src"), keep=False),
    Column("destination", field("dst"), keep=False),
    Column("packets", number("packets", count), "right"),
    Column("bytes", number("bytes", octets), "right"),
)


@click.command("talkers")
@by_label
@click.option(
    "--since", metavar="TIME", help="5m, 1h, 2d or RFC 3339; how far back.  [default: all that is kept]"
)
@until_time
@at_most("first", _LIMIT)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(label: str | None, since: str | None, until: str | None, limit: int, *, as_json: bool) -> None:
    """Show between which addresses each workload's traffic is, the most bytes first.

    Of flows that ended in this time; as far back as `rollup_days` reaches.
    """
    if since is not None:
        refuse_reversed(since, until)
    with Api() as api:
        rows = api.get("talkers", asked(label, since, until, limit))
        rows = rows if as_json else with_names(api, rows)
    if as_json:
        show_json(rows)
        return
    show_table(COLUMNS, rows, "no traffic in this time")
