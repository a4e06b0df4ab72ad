"""A live table: columns that fill the terminal's width, rows that are replaced under the cursor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

Item = TypeVar("Item")


@dataclass(frozen=True)
class GridColumn(Generic[Item]):
    """A column: `width` at 80 columns; `grow`: its part of what a wider terminal has more."""

    key: str
    title: str
    width: int
    cell: Callable[[Item], str]
    right: bool = False
    grow: int = 0


class Grid(DataTable[Text], Generic[Item]):
    """Shows items in the order given; the cursor stays on its item."""

    DEFAULT_CSS = "Grid { scrollbar-size-vertical: 0; scrollbar-size-horizontal: 0; height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
    ]

    def __init__(self, columns: Sequence[GridColumn[Item]], identity: Callable[[Item], str]) -> None:
        super().__init__(cursor_type="row", cell_padding=0, zebra_stripes=False)
        self._columns_of_item = columns
        self._identity = identity
        self._widths: list[int] = []
        self._sorted_by = ""

    @property
    def selected(self) -> str | None:
        """Identity of the item under the cursor."""
        if not self.row_count:
            return None
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value

    def show_items(
        self, items: Sequence[Item], sorted_by: str, style: Callable[[Item], str] = lambda _: ""
    ) -> None:
        """Replace what is shown."""
        selected, line = self.selected, self.cursor_row
        self._sorted_by = sorted_by
        self.clear(columns=True)
        self._widths = self._fit(self.size.width or 80)
        for column, width in zip(self._columns_of_item, self._widths, strict=True):
            # The mark may take the gap to the next column: it is one.
            head = (f"{column.title}▼", width + 1) if column.key == sorted_by else (column.title, width)
            title = _set(*head, column.right, "bold")[:width]
            self.add_column(title, key=column.key, width=width)
        for item in items:
            cells = [
                _set(column.cell(item), width, column.right, style(item))
                for column, width in zip(self._columns_of_item, self._widths, strict=True)
            ]
            self.add_row(*cells, key=self._identity(item))
        if selected is not None and selected in self.rows:
            line = self.get_row_index(selected)
        self.move_cursor(row=min(line, max(0, len(items) - 1)), animate=False)

    def _fit(self, width: int) -> list[int]:
        spare = max(0, width - sum(column.width for column in self._columns_of_item))
        shares = sum(column.grow for column in self._columns_of_item) or 1
        return [column.width + spare * column.grow // shares for column in self._columns_of_item]


def _set(text: str, width: int, right: bool, style: str) -> Text:
    """One cell, cut to its width; each ends in the gap to the next column."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    room = width - 1
    text = text if len(text) <= room else text[: room - 1] + "…"
    return Text(f"{text:>{room}} " if right else f"{text:<{room}} ", style, no_wrap=True, end="")
