"""`eastwest hosts`: the hosts of the fleet, how their probes fare and what they cost."""

import click

from eastwest.cli.client import Api
from eastwest.cli.render import Column, Row, field, show_json, show_table
from eastwest.cli.units import count, octets


def _seen(row: Row) -> str:
    return count(sum(hook["ingress_packets"] + hook["egress_packets"] for hook in row["hooks"]))


def cost(row: Row) -> str:
    """ns per packet over all programs, as in the last sample."""
    runs = sum(program["runs"] for program in row["cost"]["programs"])
    taken = sum(program["runs"] * program["ns_per_packet"] for program in row["cost"]["programs"])
    return f"{taken / runs:.0f}" if runs else ""


COLUMNS = (
    Column("host", field("host"), keep=False),
    Column("state", lambda row: "alive" if row["alive"] else "silent"),
    Column("report", lambda row: f"{row['age_seconds']:.0f} s ago", "right"),
    Column("packets", _seen, "right"),
    Column("ns/packet", cost, "right"),
    Column("cpu", lambda row: f"{row['cost']['cpu_percent']:.1f} %", "right"),
    Column("memory", lambda row: octets(row["cost"]["memory_bytes"]), "right"),
    Column("version", field("version")),
    Column("problems", lambda row: str(len(row["problems"]) or ""), "right", drop="empty"),
)


@click.command("hosts")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool) -> None:
    """Show the hosts, their probes' state and own cost."""
    with Api() as api:
        rows = api.get("hosts")
    if as_json:
        show_json(rows)
        return
    rows.sort(key=lambda row: row["host"])
    show_table(COLUMNS, rows, "no host has reported yet", lambda row: "" if row["alive"] else "bold red")
    for row in rows:
        for problem in row["problems"]:
            click.echo(f"{row['host']}: {problem}")
