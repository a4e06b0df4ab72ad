"""The screen of `eastwest top`."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, ClassVar

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Input, Static

from eastwest.cli.feed import Feed, Snapshot
from eastwest.cli.flowscreen import FlowScreen
from eastwest.cli.grid import Grid, GridColumn
from eastwest.cli.headline import headline
from eastwest.cli.labels import suspect_packets
from eastwest.cli.rates import Rate, Rates
from eastwest.cli.render import Row
from eastwest.cli.units import EMPTY, bits, count, octets
from eastwest.errors import EastwestError
from eastwest.labels.selector import Selector

Line = tuple[Row, Rate]


def _kind(line: Line) -> str:
    return EMPTY if line[0]["label"] == 0 else str(line[0]["kind"])


_COLUMNS: tuple[GridColumn[Line], ...] = (
    GridColumn("label", "label", 6, lambda line: str(line[0]["label"]), right=True),
    GridColumn("name", "name", 15, lambda line: line[0]["name"], grow=3),
    GridColumn("tenant", "tenant", 7, lambda line: line[0]["tenant"], grow=1),
    GridColumn("kind", "kind", 7, _kind, grow=1),
    GridColumn("in packets", "in/s", 7, lambda line: count(line[1].in_packets), right=True),
    GridColumn("in", "in b/s", 8, lambda line: bits(line[1].in_bits), right=True),
    GridColumn("out packets", "out/s", 7, lambda line: count(line[1].out_packets), right=True),
    GridColumn("out", "out b/s", 8, lambda line: bits(line[1].out_bits), right=True),
    GridColumn("total", "total", 8, lambda line: octets(line[1].total), right=True),
    GridColumn("suspect", "susp", 7, lambda line: count(suspect_packets(line[0])), right=True),
)

_ORDERS: dict[str, Callable[[Line], Any]] = {
    "traffic": lambda line: -line[1].bits,
    "in": lambda line: -line[1].in_bits,
    "out": lambda line: -line[1].out_bits,
    "total": lambda line: -line[1].total,
    "suspect": lambda line: -suspect_packets(line[0]),
    "name": lambda line: line[0]["name"],
    "label": lambda line: line[0]["label"],
}


class Board(App[None]):
    """Every workload's traffic, once a second."""

    CSS = """
    #head { height: 4; }
    #problem { height: auto; color: $error; text-style: bold; display: none; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("slash", "filter", "Filter"),
        Binding("escape", "unfilter", "All", show=False),
        Binding("r", "order('traffic')", "Rate"),
        Binding("i", "order('in')", "In"),
        Binding("o", "order('out')", "Out"),
        Binding("t", "order('total')", "Total"),
        Binding("s", "order('suspect')", "Suspect"),
        Binding("n", "order('name')", "Name"),
        Binding("l", "order('label')", "Label"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, feed: Feed, interval: float = 1.0) -> None:
        super().__init__()
        self._feed = feed
        self._interval = interval
        self._rates = Rates()
        self._snapshot = Snapshot()
        self._order = "traffic"
        self._selector_text = ""
        self._problem = ""
        self._misread = ""

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Static(id="problem", markup=False)
        yield Grid(_COLUMNS, lambda line: str(line[0]["label"]))
        yield Input(
            placeholder="key=value[,key=value…]  label name kind tenant network service host port",
            id="filter",
            select_on_focus=False,
        )
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(Grid).focus()
        self.poll()

    @work(exclusive=True)
    async def poll(self) -> None:
        """Ask, show, wait; for as long as the screen is there."""
        while True:
            begun = time.monotonic()
            try:
                self._snapshot = await self._feed.snapshot()
                self._rates.feed(self._snapshot.labels, time.monotonic())
                self._problem = ""
            except EastwestError as error:
                self._problem = str(error)
            self._show()
            await asyncio.sleep(max(0.1, self._interval - (time.monotonic() - begun)))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The table's keys are for when it is on top; the footer of what lies over it has its own."""
        return len(self.screen_stack) == 1 or action not in ("filter", "unfilter", "order")

    def on_resize(self) -> None:
        self.call_after_refresh(self._show)

    def action_order(self, key: str) -> None:
        self._order = key
        self._show()

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.styles.display = "block"
        box.focus()

    def action_unfilter(self) -> None:
        self.query_one("#filter", Input).value = ""
        self._filter("")

    @on(Input.Submitted, "#filter")
    def _filter_said(self, event: Input.Submitted) -> None:
        self._filter(event.value.strip())

    def _filter(self, text: str) -> None:
        try:
            Selector.parse(text)
        except EastwestError as error:
            self._misread = str(error)
        else:
            self._selector_text, self._misread = text, ""
            self.query_one("#filter", Input).styles.display = "none"
            self.query_one(Grid).focus()
        self._show()

    @on(DataTable.RowSelected)
    def _flows(self, event: DataTable.RowSelected) -> None:
        label = int(event.row_key.value or 0)
        name = next((row["name"] for row in self._snapshot.labels if row["label"] == label), "?")
        self.push_screen(FlowScreen(self._feed, label, name))

    def _show(self) -> None:
        # The lowest screen: the flows of a workload may lie over it.
        board = self.screen_stack[0]
        board.query_one("#head", Static).update(headline(self._snapshot, self._selector_text))
        problem = board.query_one("#problem", Static)
        problem.update(self._misread or self._problem)
        problem.display = bool(self._misread or self._problem)
        board.query_one(Grid).show_items(self._lines(), self._order, _style)

    def _lines(self) -> list[Line]:
        selector = Selector.parse(self._selector_text)
        rows = [row for row in self._snapshot.labels if selector.matches({**row, "port": row["ports"]})]
        lines = [(row, self._rates.of(row["label"])) for row in rows]
        # By name where they are equal, so that idle ones do not dance.
        lines.sort(key=lambda line: line[0]["name"])
        lines.sort(key=_ORDERS[self._order])
        return lines


def _style(line: Line) -> str:
    if suspect_packets(line[0]):
        return "red"
    return "dim" if line[0]["label"] == 0 else ""
