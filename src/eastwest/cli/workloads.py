"""`eastwest workloads`: what runs where, and how it is reached."""

import click

from eastwest.cli.client import Api
from eastwest.cli.render import Column, Row, field, show_json, show_table
from eastwest.cli.units import ago


def _ports(row: Row) -> str:
    return ", ".join(port["name"] if isinstance(port, dict) else str(port) for port in row.get("ports") or ())


def _service_id(row: Row) -> str:
    return str(row.get("service_id") or "")


COLUMNS = (
    Column("label", field("label"), "right"),
    Column("name", field("name"), keep=False),
    Column("kind", field("kind")),
    Column("tenant", field("tenant"), keep=False, drop="empty"),
    Column("network", field("network"), keep=False, drop="empty"),
    Column("service", field("service"), keep=False, drop="empty"),
    Column("service id", _service_id, "right", drop="empty"),
    Column("host", field("host"), keep=False, drop="same"),
    Column("ports", _ports, keep=False),
    Column("addresses", field("addresses"), keep=False),
    Column("first seen", lambda row: f"{ago(row.get('first_seen'))} ago", "right"),
)


@click.command("workloads")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Show the workloads of all hosts with what is known of them."""
    with Api() as api:
        rows = api.get("workloads")
    if as_json:
        show_json(rows)
        return
    rows.sort(key=lambda row: (row.get("host") or "", row.get("name") or ""))
    show_table(COLUMNS, rows, "no workloads yet")
