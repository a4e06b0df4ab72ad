"""`eastwest ports`: the virtual interfaces of workloads, and the host's own that are metered."""

import click

from eastwest.cli.client import Api
from eastwest.cli.render import Column, Row, field, show_json, show_table
from eastwest.cli.units import count


def _not_seen(row: Row) -> str:
    packets = [row.get(f"{way}_not_seen_by_cgroup") for way in ("ingress", "egress")]
    return " / ".join(count(p) for p in packets if p is not None)


COLUMNS = (
    Column("port", field("port")),
    Column("host", field("host"), keep=False, drop="same"),
    Column("mac", field("mac")),
    Column("label", field("label"), "right"),
    Column("workload", field("name"), keep=False),
    Column("tenant", field("tenant"), keep=False, drop="empty"),
    Column("network", field("network"), keep=False, drop="empty"),
    # Of an interface of the host's own: packets in / out that no cgroup hook saw.
    Column("not seen by cgroup", _not_seen, "right", drop="empty"),
)


@click.command("ports")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Show the ports of workloads: their interfaces on the host side."""
    with Api() as api:
        rows = api.get("ports")
    if as_json:
        show_json(rows)
        return
    rows.sort(key=lambda row: (row["host"], row["label"] is None, row["port"]))
    show_table(COLUMNS, rows, "no ports yet")
