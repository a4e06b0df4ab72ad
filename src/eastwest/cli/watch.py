"""`eastwest watch`: what is to raise an alert."""

from typing import Any
from urllib.parse import quote

import click

from eastwest.cli.client import Api
from eastwest.cli.render import Column, Row, field, printable, show_json, show_table
from eastwest.labels.selector import Selector

_CONDITIONS = ("rate_above", "rate_below", "new_peer", "silence", "suspect_share")
_WITH_THRESHOLD = ("rate_above", "rate_below", "suspect_share")


def _condition(row: Row) -> str:
    rate = row["condition"] in ("rate_above", "rate_below")
    threshold = f" {row['threshold']:g}" if row["condition"] in _WITH_THRESHOLD else ""
    unit = f" {row['unit']}/s {row['direction']}" if rate else ""
    return f"{row['condition']}{threshold}{unit}"


COLUMNS = (
    Column("name", field("name")),
    Column("workloads", lambda row: row["match"] or "all", keep=False),
    Column("condition", _condition),
    Column("window", lambda row: f"{row['window_seconds']} s", "right"),
    Column("for", lambda row: f"{row['for_seconds']} s" if row["for_seconds"] else "", "right", drop="empty"),
    Column("severity", field("severity")),
    Column("now", field("workloads"), "right"),
    Column("alerts", lambda row: str(row["alerts"] or ""), "right", drop="empty"),
    Column("state", field("state")),
    Column("from", field("source"), drop="same"),
)


@click.group("watch")
def command() -> None:
    """Say what is to raise an alert."""


@command.command("add")
@click.argument("name")
@click.argument("selector")
@click.argument("condition", type=click.Choice(_CONDITIONS))
@click.argument("threshold", type=float, default=0.0, required=False)
@click.option("--unit", type=click.Choice(["packets", "bytes"]), default="packets", help="Of a rate.")
@click.option(
    "--direction", type=click.Choice(["ingress", "egress", "both"]), default="both", help="Of a rate."
)
@click.option("--window", "window_seconds", metavar="SECONDS", type=int, default=60, help="[default: 60]")
@click.option("--for", "for_seconds", metavar="SECONDS", type=int, default=0, help="It must hold so long.")
@click.option("--learn", "learn_seconds", metavar="SECONDS", type=int, default=86400, help="[default: 86400]")
@click.option("--severity", type=click.Choice(["info", "warning", "critical"]), default="warning")
def add(name: str, selector: str, condition: str, threshold: float, **more: Any) -> None:
    """Have workloads that SELECTOR chooses watched; a watch of this NAME is replaced.

    \b
    rate_above N     more than N packets (--unit bytes: bytes) per second over the window
    rate_below N     fewer
    new_peer         an address that the workload never met in the time learned
    silence          no packet for the window, though the workload is there
    suspect_share N  more than this part (0.01: one in a hundred) of the packets suspect
    """
    Selector.parse(selector)  # refuse here what the server would refuse
    if (condition in _WITH_THRESHOLD) != (threshold != 0):
        needs = "needs a THRESHOLD" if condition in _WITH_THRESHOLD else "takes no THRESHOLD"
        raise click.UsageError(f"{condition} {needs}")
    body = {"name": name, "match": selector, "condition": condition, "threshold": threshold, **more}
    with Api() as api:
        answer = api.post("watches", body)
    click.echo(printable(f"watch {name}: {_condition(answer)}, {answer['workloads']} workloads now"))


@command.command("rm")
@click.argument("name")
def remove(name: str) -> None:
    """Remove a watch; its alerts end."""
    with Api() as api:
        api.delete(f"watches/{quote(name, safe='')}")
    click.echo(printable(f"watch {name} is removed"))


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(as_json: bool) -> None:
    """Show the watches and how they stand."""
    with Api() as api:
        rows = api.get("watches")
    if as_json:
        show_json(rows)
        return
    show_table(COLUMNS, rows, "nothing is watched; see: eastwest watch add --help", _style)
    for row in rows:
        for label, why in list(row["unknown"].items())[:3]:
            click.echo(printable(f"{row['name']}: cannot judge label {label}: {why}"))


def _style(row: Row) -> str:
    return {"firing": "bold red", "unknown": "yellow"}.get(row["state"], "")
