"""`eastwest suspect`: prefixes and flows whose packets are counted apart."""

import click

from eastwest.cli.client import Api
from eastwest.cli.render import Column, Row, field, number, printable, show_json, show_table
from eastwest.cli.units import ago, clock, count, octets


@click.group("suspect")
def command() -> None:
    """Declare prefixes and flows suspect: their packets are counted apart.

    WHAT is a prefix (10.0.0.0/8, fd00::/8, 10.0.0.1) or a flow (tcp 10.0.0.1:1234 10.0.0.2:80), which is
    meant in either direction.
    """


@command.command("add")
@click.argument("what", nargs=-1, required=True)
@click.option("--for", "lasts", metavar="TIME", help="Until so long from now: 30s, 5m, 2h, 1d.")
@click.option("--why", default="", metavar="TEXT", help="A reason, shown with it.")
def add(what: tuple[str, ...], lasts: str | None, why: str) -> None:
    """Declare WHAT suspect; again: with another reason or time."""
    document = {"what": " ".join(what), "why": why} | ({"for": lasts} if lasts else {})
    with Api() as api:
        row = api.post("suspect", document)
    click.echo(printable(f"suspect: {row['what']}{_until(row)}"))


def _until(row: Row) -> str:
    return f", until {clock(row['expires'])}" if row["expires"] else ""


@command.command("rm")
@click.argument("what", nargs=-1, required=True)
def rm(what: tuple[str, ...]) -> None:
    """WHAT is not suspect any more, unless a file says so."""
    with Api() as api:
        row = api.delete("suspect", {"what": " ".join(what)})
    click.echo(printable(f"not suspect any more: {row['what']}"))


COLUMNS = (
    Column("what", field("what")),
    Column("packets", number("packets", count), "right"),
    Column("bytes", number("bytes", octets), "right"),
    Column("last hit", lambda row: f"{ago(row['last_hit'])} ago" if row["last_hit"] else "", "right"),
    Column("added", lambda row: clock(row["added"]) if row["added"] else "", "right"),
    Column("expires", lambda row: clock(row["expires"]) if row["expires"] else "", drop="empty"),
    Column("in effect on", field("hosts"), keep=False),
    Column("pending on", field("pending"), keep=False, drop="empty"),
    Column("declared by", field("sources"), keep=False),
    Column("why", field("why"), keep=False, drop="empty"),
)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(as_json: bool) -> None:
    """Show what is suspect, and what it met on all hosts.

    Each hook that saw a packet counts it: one between two workloads of a host is met twice.
    """
    with Api() as api:
        document = api.get("suspect")
    if as_json:
        show_json(document)
        return
    show_table(COLUMNS, document["entries"], "nothing is declared suspect")
    if document["left_out"]:
        click.echo(f"and {document['left_out']:,} more entries of files, which met nothing or little")
    for host in document["unanswered"]:
        click.echo(printable(f"the probe of {host} does not answer: its hits are missing"))
