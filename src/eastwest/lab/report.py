"""The verdict as tables: each row as eastwest shows it, and whether the senders' record says the same."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eastwest.lab.verdict import COUNTERS, Figure, Line, Verdict

TOP_FLOWS = 12
PROTOCOLS = {"6": "tcp", "17": "udp"}
Row = dict[str, Any]


def show(console: Console, verdict: Verdict, hosts: list[Row], health: Row) -> None:
    """Labels, top flows, ledger and own cost (from `hosts` and `health`), then the verdict in one line."""
    for table in (
        label_table(verdict),
        flow_table(verdict),
        ledger_table(verdict),
        cost_table(hosts, health["server"]),
    ):
        console.print(table)
        console.print()
    hidden = [line for line in verdict.flows[TOP_FLOWS:] if line.differences]
    for line in hidden:
        console.print(f"flow {' '.join(line.title)}: {', '.join(line.differences)}", style="bold red")
    console.print(conclusion(verdict))


def conclusion(verdict: Verdict) -> Text:
    if verdict.differences:
        count = len(verdict.differences)
        return Text(f"✗ {count} figures differ from the senders' record", style="bold red")
    packets = sum(int(line.figures["seen"].truth) for line in verdict.ledger)
    return Text(
        f"✓ every figure equals the senders' record: {len(verdict.labels)} labels, "
        f"{len(verdict.flows)} flows (all compared), {packets:,} packets",
        style="bold green",
    )


def number(figure: Figure) -> str:
    return f"{figure.shown:,}" if type(figure.shown) is int else str(figure.shown)


def mark(line: Line) -> Text:
    """✓, or what differs."""
    if line.differences:
        return Text(", ".join(line.differences), style="bold red")
    return Text("✓", style="green")


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...], last: str = "senders' record") -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    if last:
        table.add_column(last)
    return table


def label_table(verdict: Verdict) -> Table:
    counters = tuple(name.replace("_", " ") for name in COUNTERS)
    table = _table("Labels", ("label", "workload", "tenant", "service"), counters)
    for line in verdict.labels:
        figures = (number(line.figures[name]) for name in COUNTERS)
        names = (str(line.figures[name].shown) for name in ("tenant", "service"))
        cells = (*line.title, *names, *figures)
        table.add_row(*map(Text, cells), mark(line))
    return table


def flow_table(verdict: Verdict) -> Table:
    title = f"Top flows ({min(TOP_FLOWS, len(verdict.flows))} of {len(verdict.flows)})"
    table = _table(
        title, ("workload", "direction", "source", "destination", "protocol"), ("packets", "bytes")
    )
    for line in verdict.flows[:TOP_FLOWS]:
        name, src, dst, src_port, dst_port, protocol, direction = line.title
        cells = (
            name,
            direction,
            f"{src}:{src_port}",
            f"{dst}:{dst_port}",
            PROTOCOLS.get(protocol, protocol),
            number(line.figures["packets"]),
            number(line.figures["bytes"]),
        )
        table.add_row(*map(Text, cells), mark(line))
    return table


def ledger_table(verdict: Verdict) -> Table:
    names = ("seen", "stored", "pending", "lost")
    table = _table("Ledger, in packets", ("label", "workload"), (*names, "balanced"))
    for line in verdict.ledger:
        balanced = "yes" if line.figures["balanced"].shown else "NO"
        cells = (*line.title, *(number(line.figures[name]) for name in names), balanced)
        table.add_row(*map(Text, cells), mark(line))
    return table


def cost_table(hosts: list[Row], server: Row) -> Table:
    """What eastwest says of itself; the senders cannot know."""
    table = _table("Own cost", ("where", "what"), ("cost",), last="")
    rows = []
    for host in hosts:
        rows += [(host["host"], *row) for row in _process("probe", host["cost"])]
        for program in host["cost"]["programs"]:
            if program["runs"]:
                # A super-packet is one run: it passes a hook before it is cut into its segments.
                runs = f"{program['runs']:,} runs in the last sample of 1 s"
                what = f"{program['ns_per_packet']:.0f} ns per run, {runs}"
                rows.append((host["host"], f"kernel program {program['program']}", what))
    rows += [("server", *row) for row in _process("server", server)]
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _process(name: str, cost: Row) -> list[tuple[str, str]]:
    return [
        (f"{name}, CPU", f"{cost['cpu_percent']:.1f} % of one core"),
        (f"{name}, memory", f"{cost['memory_bytes'] / 1e6:.0f} MB"),
    ]
