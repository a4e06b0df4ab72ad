"""What verbs that ask for traffic have in common: whose, of which time, and whose name it is."""

import time
from collections.abc import Callable
from typing import Any

import click

from eastwest.cli.client import Api, Parameters
from eastwest.cli.render import Row
from eastwest.errors import RefusedError
from eastwest.labels.selector import Selector
from eastwest.manager import times

Command = Callable[..., Any]

by_label = click.option("--label", metavar="SELECTOR", help="key=value[,key=value…]; values may hold *.")
until_time = click.option(
    "--until", metavar="TIME", help="5m, 1h, 2d or RFC 3339; where to end.  [default: now]"
)


def at_most(which: str, default: int) -> Callable[[Command], Command]:
    """How many rows: the `which` ones."""
    return click.option(
        "--limit",
        metavar="N",
        type=click.IntRange(min=1),
        default=default,
        help=f"Only the {which} N.  [default: {default}]",
    )


def asked(label: str | None, since: str | None, until: str | None, limit: int) -> Parameters:
    """What the API is asked. Raises RefusedError for what is no selector, as the server would."""
    if label is not None:
        Selector.parse(label)
    said = {"label": label, "since": since, "until": until}
    return {"limit": limit, **{name: value for name, value in said.items() if value is not None}}


def refuse_reversed(since: str, until: str | None) -> None:
    """Raises RefusedError for what is no time, or where nothing can be between the two."""
    now = time.time_ns()
    if times.parse(since, now) > (times.parse(until, now) if until else now):
        end = f"--until {until}" if until else "now"
        raise RefusedError(f"--since {since} is later than {end}", "give an earlier --since")


def with_names(api: Api, rows: list[Row]) -> list[Row]:
    """The rows with the `name` of each one's label, also where that has gone."""
    names = {row["label"]: row["name"] for row in api.get("labels", {"all": "true"})}
    return [row | {"name": names.get(row["label"], "")} for row in rows]
