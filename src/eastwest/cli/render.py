"""How a listing leaves the command: one JSON document, or a table."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eastwest.cli.units import EMPTY

Row = dict[str, Any]

_UNBOUNDED = 1000
"""Width of a table that goes to a file or another program: nothing is cut off there."""


@dataclass(frozen=True)
class Column:
    """One column: its title, the text of a row's cell, and to which side it is set."""

    title: str
    cell: Callable[[Row], str]
    justify: Literal["left", "right"] = "left"
    keep: bool = True
    """False: may be shortened where the terminal is narrow."""

    drop: Literal["never", "empty", "same"] = "never"
    """When the column is left out: if every cell is empty, or if all say the same."""


def field(name: str) -> Callable[[Row], str]:
    """A cell that shows one field as it is."""

    def cell(row: Row) -> str:
        value = row.get(name)
        if isinstance(value, list):
            return ", ".join(map(str, value))
        return "" if value is None else str(value)

    return cell


def number(name: str, unit: Callable[[int], str]) -> Callable[[Row], str]:
    """A cell that shows a counter with its unit, nothing for zero."""
    return lambda row: unit(int(row.get(name) or 0)) if row.get(name) else ""


def show_json(document: Any) -> None:
    """One document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def show_table(
    columns: Sequence[Column], rows: Sequence[Row], nothing: str, style: Callable[[Row], str] | None = None
) -> None:
    """A table on stdout, or the sentence `nothing`."""
    if not rows:
        click.echo(nothing)
        return
    columns = [column for column in columns if not _dropped(column, rows)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.title,
            justify=column.justify,
            # Of these rich takes nothing where the terminal is narrow.
            no_wrap=column.keep,
            min_width=None if not column.keep else _width(column, rows),
        )
    for row in rows:
        # Text, not str: names come from outside and must not be read as markup.
        cells = [
            Text(printable(column.cell(row)) or EMPTY, no_wrap=True, overflow="ellipsis")
            for column in columns
        ]
        table.add_row(*cells, style=style(row) if style else "")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _UNBOUNDED
    console.print(table)


def _dropped(column: Column, rows: Sequence[Row]) -> bool:
    cells = {column.cell(row) for row in rows}
    return (column.drop != "never" and cells == {""}) or (column.drop == "same" and len(cells - {""}) <= 1)


def _width(column: Column, rows: Sequence[Row]) -> int:
    return max(len(column.title), *(len(column.cell(row)) for row in rows))


def printable(text: str) -> str:
    """Names come from workloads: control characters must not reach the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
