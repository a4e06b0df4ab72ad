"""`eastwest flows`: flow records, by label and time."""

import click

from eastwest.cli.client import Api, Parameters
from eastwest.cli.render import Column, Row, field, number, show_json, show_table
from eastwest.cli.units import clock, count, endpoint, octets, protocol, tcp_flags
from eastwest.labels.selector import Selector

_ARROWS = {"ingress": "in", "egress": "out"}


def _source(row: Row) -> str:
    return endpoint(row.get("src") or "", row.get("src_port") or 0, row["protocol"])


def _destination(row: Row) -> str:
    return endpoint(row.get("dst") or "", row.get("dst_port") or 0, row["protocol"])


COLUMNS = (
    Column("start", lambda row: clock(row.get("start"))),
    Column("label", field("label"), "right"),
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
@click.option("--label", metavar="SELECTOR", help="key=value[,key=value…]; values may hold *.")
@click.option("--since", metavar="TIME", help="5m, 1h, 2d or RFC 3339; how far back.  [default: 5m]")
@click.option("--until", metavar="TIME", help="5m, 1h, 2d or RFC 3339; where to end.  [default: now]")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="At most N records.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    label: str | None, since: str | None, until: str | None, limit: int | None, as_json: bool
) -> None:
    """Show flow records, the largest first."""
    parameters: Parameters = {}
    if label is not None:
        Selector.parse(label)  # refuse here what the server would refuse
        parameters["label"] = label
    said = {"since": since, "until": until, "limit": limit}
    parameters |= {name: value for name, value in said.items() if value is not None}
    with Api() as api:
        rows = api.get("flows", parameters)
    if as_json:
        show_json(rows)
        return
    rows.sort(key=lambda row: -int(row["bytes"]))
    show_table(COLUMNS, rows, "no flows in this time", _style)


def _style(row: Row) -> str:
    return "red" if row.get("class") == "suspect" else ""
