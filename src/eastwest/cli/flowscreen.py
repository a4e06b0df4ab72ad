"""The flows of one workload, live: what `top` shows on Enter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen
from textual.widgets import Footer, Static

from eastwest.cli.feed import Feed
from eastwest.cli.grid import Grid, GridColumn
from eastwest.cli.render import Row
from eastwest.cli.units import count, endpoint, octets, protocol, tcp_flags
from eastwest.errors import EastwestError

_REFRESH_SECONDS = 2.0


@dataclass(frozen=True)
class FlowSum:
    """One flow over the last minute: its records of several drains added up."""

    source: str
    destination: str
    way: str
    protocol: int
    packets: int
    octets: int
    flags: int
    suspect: bool

    @property
    def identity(self) -> str:
        return f"{self.way} {self.protocol} {self.source} {self.destination} {self.suspect}"


def add_up(rows: Sequence[Row]) -> list[FlowSum]:
    """Records → flows, the largest first."""
    sums: dict[str, FlowSum] = {}
    for row in rows:
        number = row["protocol"]
        flow = FlowSum(
            source=endpoint(row["src"], row["src_port"], number),
            destination=endpoint(row["dst"], row["dst_port"], number),
            way="out" if row["direction"] == "egress" else "in",
            protocol=number,
            packets=row["packets"],
            octets=row["bytes"],
            flags=row["tcp_flags"],
            suspect=row["class"] == "suspect",
        )
        old = sums.get(flow.identity)
        sums[flow.identity] = flow if old is None else _added(old, flow)
    return sorted(sums.values(), key=lambda flow: -flow.octets)


def _added(one: FlowSum, other: FlowSum) -> FlowSum:
    return FlowSum(
        one.source,
        one.destination,
        one.way,
        one.protocol,
        one.packets + other.packets,
        one.octets + other.octets,
        one.flags | other.flags,
        one.suspect,
    )


_COLUMNS: tuple[GridColumn[FlowSum], ...] = (
    GridColumn("way", "way", 4, lambda flow: flow.way),
    GridColumn("source", "source", 23, lambda flow: flow.source, grow=1),
    GridColumn("destination", "destination", 23, lambda flow: flow.destination, grow=1),
    GridColumn("protocol", "proto", 7, lambda flow: protocol(flow.protocol)),
    GridColumn("packets", "packets", 8, lambda flow: count(flow.packets), right=True),
    GridColumn("bytes", "bytes", 9, lambda flow: octets(flow.octets), right=True),
    GridColumn("flags", "flags", 6, lambda flow: tcp_flags(flow.flags) if flow.protocol == 6 else ""),
)


class FlowScreen(Screen[None]):
    """Flows of the last minute of one label."""

    CSS = "#title { height: 1; text-style: bold; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "app.pop_screen", "Back"),
        ("q", "app.quit", "Quit"),
    ]

    def __init__(self, feed: Feed, label: int, name: str) -> None:
        super().__init__()
        self._feed = feed
        self._label = label
        self._name_of_workload = name

    def compose(self) -> ComposeResult:
        yield Static(self._title("asking"), id="title", markup=False)
        yield Grid(_COLUMNS, lambda flow: flow.identity)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.refresh_flows()
        self.set_interval(_REFRESH_SECONDS, self.refresh_flows)

    @work(exclusive=True)
    async def refresh_flows(self) -> None:
        """Ask again and show."""
        title = self.query_one("#title", Static)
        try:
            flows = add_up(await self._feed.flows(self._label))
        except EastwestError as error:
            title.update(self._title(str(error)))
            return
        title.update(self._title(f"{len(flows)} in the last minute"))
        self.query_one(Grid).show_items(flows, "bytes", lambda flow: "red" if flow.suspect else "")

    def _title(self, state: str) -> str:
        return f"flows of {self._name_of_workload} (label {self._label}): {state}"
