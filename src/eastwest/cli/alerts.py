"""`eastwest alerts`: what is wrong, and which of it nobody needs to hear of for a while."""

from urllib.parse import quote

import click

from eastwest.cli.client import Api, Parameters
from eastwest.cli.render import Column, Row, field, printable, show_json, show_table
from eastwest.cli.units import clock
from eastwest.labels.selector import Selector

_SINCE = "1d"
_STYLES = {"critical": "bold red", "warning": "yellow", "info": ""}

COLUMNS = (
    Column("id", field("id")),
    Column("state", field("state")),
    Column("severity", field("severity")),
    Column("kind", field("kind")),
    Column("watch", field("watch"), keep=False, drop="empty"),
    Column("since", lambda row: clock(row.get("first_seen"))),
    Column("until", lambda row: clock(row["resolved_at"]) if row.get("resolved_at") else "", drop="empty"),
    Column("what", field("text"), keep=False),
)
_SILENCES = (
    Column("id", field("id")),
    Column("of", lambda row: row["alert"] or row["match"] or "every workload"),
    Column("until", lambda row: clock(row.get("until"))),
    Column("comment", field("comment"), keep=False, drop="empty"),
)


@click.group("alerts", invoke_without_command=True)
@click.option("--all", "over", is_flag=True, help="Also alerts that are over.")
@click.option(
    "--since", metavar="TIME", help=f"With --all: how far back, 1h or RFC 3339.  [default: {_SINCE}]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def command(context: click.Context, over: bool, since: str | None, as_json: bool) -> None:
    """Show what is wrong now, the latest first."""
    if context.invoked_subcommand is not None:
        return
    parameters: Parameters = {}
    if over or since is not None:
        parameters = {"all": "true", "since": since or _SINCE}
    with Api() as api:
        rows = api.get("alerts", parameters)
    if as_json:
        show_json(rows)
        return
    show_table(COLUMNS, rows, "no alerts", _style)


@command.command("silence")
@click.argument("what", metavar="ID|SELECTOR")
@click.option("--for", "duration", metavar="TIME", default="1h", help="30m, 1h, 2d.  [default: 1h]")
@click.option("--comment", default="", help="Why.")
def silence(what: str, duration: str, comment: str) -> None:
    """Tell nobody of one alert, or of the alerts of some workloads, for a while.

    They are listed all the same.
    """
    body = {"duration": duration, "comment": comment}
    if "=" in what:
        Selector.parse(what)  # refuse here what the server would refuse
        body["match"] = what
    else:
        body["alert"] = what
    with Api() as api:
        answer = api.post("silences", body)
    click.echo(printable(f"silence {answer['id']}: {what} until {clock(answer['until'])}"))


@command.command("silences")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def silences(as_json: bool) -> None:
    """Show the silences that hold."""
    with Api() as api:
        rows = api.get("silences")
    show_json(rows) if as_json else show_table(_SILENCES, rows, "no silences")


@command.command("unsilence")
@click.argument("name", metavar="ID")
def unsilence(name: str) -> None:
    """End a silence."""
    with Api() as api:
        api.delete(f"silences/{quote(name, safe='')}")
    click.echo(printable(f"silence {name} has ended"))


def _style(row: Row) -> str:
    return _STYLES.get(row["severity"], "") if row["state"] == "firing" else "dim"
