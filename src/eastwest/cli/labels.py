"""`eastwest labels`: every label with what it counted."""

import click

from eastwest.cli.client import Api
from eastwest.cli.render import Column, Row, field, number, show_json, show_table
from eastwest.cli.units import count, octets


def traffic(row: Row) -> int:
    """Bytes of a label, both directions; suspect ones are among them."""
    return sum(int(row.get(f"{way}_bytes") or 0) for way in ("ingress", "egress"))


def suspect_packets(row: Row) -> int:
    """Packets of a label that were suspected malicious, both directions."""
    return sum(int(row.get(f"suspect_{way}_packets") or 0) for way in ("ingress", "egress"))


def _suspect(row: Row) -> str:
    return count(suspect_packets(row)) if suspect_packets(row) else ""


def _kind(row: Row) -> str:
    return "" if row["label"] == 0 else str(row["kind"])


COLUMNS = (
    Column("label", field("label"), "right"),
    Column("name", field("name"), keep=False),
    Column("kind", _kind, keep=False),
    Column("tenant", field("tenant"), keep=False, drop="empty"),
    Column("service", field("service"), keep=False, drop="empty"),
    Column("host", field("host"), keep=False, drop="same"),
    Column("in pkts", number("ingress_packets", count), "right"),
    Column("in", number("ingress_bytes", octets), "right"),
    Column("out pkts", number("egress_packets", count), "right"),
    Column("out", number("egress_bytes", octets), "right"),
    Column("suspect", _suspect, "right", drop="empty"),
)


@click.command("labels")
@click.option("--all", "gone", is_flag=True, help="Also workloads that are gone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(gone: bool, as_json: bool) -> None:
    """Show every label with its counters, busiest first.

    Directions are the workload's own: out is what it sent. Label 0, `unattributed`, is
    what no workload claimed.
    """
    with Api() as api:
        rows = api.get("labels", {"all": "true"} if gone else None)
    if as_json:
        show_json(rows)
        return
    rows.sort(key=lambda row: (row["label"] == 0, -traffic(row)))
    show_table(COLUMNS, rows, "no workloads yet", lambda row: "dim" if row["label"] == 0 else "")
