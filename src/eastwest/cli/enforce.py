"""`eastwest enforce`: have suspect packets dropped, and see where they are."""

import click

from eastwest.cli.client import Api
from eastwest.cli.render import Column, Row, field, printable, show_json, show_table

_NAMED = 10
"""Workloads that an order repeats by name."""


@click.command("enforce")
@click.argument("selector", required=False)
@click.option("--off", is_flag=True, help="Take the order back.")
@click.option(
    "--list", "listing", is_flag=True, help="Show whose suspect packets are dropped, and where not."
)
@click.option("--json", "as_json", is_flag=True, help="With --list: print one JSON document.")
def command(selector: str | None, off: bool, listing: bool, as_json: bool) -> None:
    """Drop the suspect packets of the workloads that SELECTOR chooses, in both directions.

    Suspect is what `eastwest suspect` declares, and all that a workload of class suspect sends or receives.
    Workloads that come later are meant as well.
    """
    if listing == bool(selector) or (off and listing) or (as_json and not listing):
        raise click.UsageError("give a SELECTOR, or --list")
    with Api() as api:
        if listing:
            _show(api.get("enforcement"), as_json)
        elif off:
            answer = api.delete("enforcement", {"selector": str(selector)})
            click.echo(printable(f"not enforced any more: {answer['selector']}"))
        else:
            _say(api.post("enforcement", {"selector": selector}))


def _say(answer: Row) -> None:
    """What will be dropped, so that nobody is surprised."""
    click.echo(printable(f"enforced: {answer['selector']}"))
    normal = [w for w in answer["workloads"] if w["class"] == "normal"]
    suspect = [w for w in answer["workloads"] if w["class"] == "suspect"]
    if not answer["workloads"]:
        click.echo("no workload is chosen now; those that come are")
    if normal:
        click.echo(printable(f"suspect packets are dropped of {_names(normal)}"))
    if suspect:
        click.echo(printable(f"of class suspect, ALL packets are dropped of {_names(suspect)}"))


def _names(workloads: list[Row]) -> str:
    named = [f"{w['name']} (label {w['label']})" for w in workloads[:_NAMED]]
    more = len(workloads) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


COLUMNS = (
    Column("label", field("label"), "right"),
    Column("name", field("name"), keep=False),
    Column("host", field("host"), keep=False, drop="same"),
    Column("hook", field("hook")),
    Column("port", field("port"), drop="empty"),
    Column("state", field("state")),
    Column("reason", field("reason"), keep=False, drop="empty"),
)


def _show(document: Row, as_json: bool) -> None:
    if as_json:
        show_json(document)
        return
    for selector in document["selectors"]:
        click.echo(printable(f"enforced: {selector}"))
    for selector in document["stale"]:
        click.echo(printable(f"not ordered any more, but enforced by probes: {selector}; end it with --off"))
    known = document["selectors"] or document["stale"]
    nothing = "no workload is chosen" if known else "nothing is enforced"
    show_table(COLUMNS, document["sources"], nothing, lambda row: "bold red" if row["reason"] else "")
    for host in document["unanswered"]:
        click.echo(printable(f"the probe of {host} does not answer"))
