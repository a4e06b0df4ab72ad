"""`eastwest workloads`: what runs where, and how it is reached."""

from collections.abc import Callable

import click

from eastwest.cli.client import Api
from eastwest.cli.render import Column, Row, field, show_json, show_table
from eastwest.cli.units import ago


def _now_and_past(now: str, past: str) -> Callable[[Row], str]:
    """A cell with what a workload has, then in parentheses what it had before."""

    def cell(row: Row) -> str:
        has, had = row.get(now) or [], row.get(past) or []
        return ", ".join([*map(str, has), *(f"({one})" for one in had if one not in has)])

    return cell


def _gone(row: Row) -> bool:
    return not row.get("present", True)


def _state(row: Row) -> str:
    return f"gone, seen {ago(row.get('last_seen'))} ago" if _gone(row) else ""


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
    Column("ports", field("ports"), keep=False),
    Column("addresses", field("addresses"), keep=False),
    Column("first seen", lambda row: f"{ago(row.get('first_seen'))} ago", "right"),
)

PAST_COLUMNS = (
    *(column for column in COLUMNS if column.title not in ("ports", "addresses")),
    Column("state", _state, drop="empty"),
    Column("ports (past)", _now_and_past("ports", "past_ports"), keep=False),
    Column("addresses (past)", _now_and_past("addresses", "past_addresses"), keep=False),
)
"""What `--all` shows."""


@click.command("workloads")
@click.option("--all", "gone", is_flag=True, help="Also those that are gone, past ports and addresses.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(gone: bool, as_json: bool) -> None:
    """Show the workloads of all hosts with what is known of them.

    With --all, what is in parentheses was so before.
    """
    with Api() as api:
        rows = api.get("workloads", {"all": "true"} if gone else None)
    if as_json:
        show_json(rows)
        return
    rows.sort(key=lambda row: (_gone(row), row.get("host") or "", row.get("name") or ""))
    columns = PAST_COLUMNS if gone else COLUMNS
    show_table(columns, rows, "no workloads yet", lambda row: "dim" if _gone(row) else "")
