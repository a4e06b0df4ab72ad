"""`eastwest flows`: flow records, by label and time."""

import click

from eastwest.cli.asking import asked, at_most, by_label, refuse_reversed, until_time, with_names
from eastwest.cli.client import Api, Parameters
from eastwest.cli.render import Column, Row, field, number, show_json, show_table
from eastwest.cli.units import clock, count, endpoint, octets, protocol, tcp_flags

_LIMIT = 10_000
_SINCE = "5m"
_ARROWS = {"ingress": "in", "egress": "out"}


def _source(row: Row) -> str:
    return endpoint(row.get("src") or "", row.get("src_port") or 0, row["protocol"])


def _destination(row: Row) -> str:
    return endpoint(row.get("dst") or "", row.get("dst_port") or 0, row["protocol"])


COLUMNS = (
    Column("start", lambda row: clock(row.get("start"))),
    Column("label", field("label"), "right"),
    Column("name", field("name"), keep=False),
    Column("port", field("port"), keep=False),
    Column("way", lambda row: _ARROWS.get(row.get("direction", ""), "")),
    Column("source", _source, keep=False),
    Column("destination", _destination, keep=False),
    Column("protocol", lambda row: protocol(row["protocol"])),
    Column("packets", number("packets", count), "right"),
    Column("bytes", number("bytes", octets), "right"),
    Column("flags", lambda row: tcp_flags(row.get("tcp_flags") or 0) if row["protocol"] == 6 else ""),
)


@click.command("flows")
@by_label
@click.option("--since", metavar="TIME", help=f"5m, 1h, 2d or RFC 3339; how far back.  [default: {_SINCE}]")
@until_time
@at_most("latest", _LIMIT)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--json-lines", "as_lines", is_flag=True, help="Print one JSON document a line, the latest first."
)
def command(
    label: str | None, since: str | None, until: str | None, limit: int, *, as_json: bool, as_lines: bool
) -> None:
    """Show flow records, the largest first."""
    refuse_reversed(since or _SINCE, until)
    parameters = asked(label, since, until, limit)
    if as_json and as_lines:
        raise click.UsageError("give one of --json and --json-lines")
    if as_lines:
        _show_lines(parameters, limit)
        return
    with Api() as api:
        rows = api.get("flows", parameters)
        # Names are for people; the document that scripts read has labels only.
        rows = rows if as_json else with_names(api, rows)
    _notice(len(rows), limit)
    if as_json:
        show_json(rows)
        return
    rows.sort(key=lambda row: -int(row["bytes"]))
    show_table(COLUMNS, rows, "no flows in this time", _style)


def _show_lines(parameters: Parameters, limit: int) -> None:
    with Api() as api:
        lines = api.text("flows/lines", parameters)
    click.echo(lines, nl=False)
    _notice(lines.count("\n"), limit)


def _notice(shown: int, limit: int) -> None:
    if shown >= limit:
        notice = f"only the latest {limit} flows are shown; use --limit or a narrower --since"
        click.echo(f"eastwest: {notice}", err=True)


def _style(row: Row) -> str:
    return "red" if row.get("class") == "suspect" else ""
