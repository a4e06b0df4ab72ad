"""The lines above `top`'s table: which host, whether the ledger balances, what eastwest itself takes."""

from rich.text import Text

from eastwest.cli.feed import Snapshot
from eastwest.cli.render import Row
from eastwest.cli.units import count, octets

_LABELS_SHOWN = 6


def headline(snapshot: Snapshot, filtered: str, problem: str) -> Text:
    """Three lines for 80 columns; `problem` replaces the last, because it wants to be read."""
    lines = [
        _who(snapshot, filtered),
        _cost(snapshot),
        Text(problem, "bold red") if problem else _ledger(snapshot.ledger),
    ]
    return Text("\n").join(lines)


def _who(snapshot: Snapshot, filtered: str) -> Text:
    hosts = snapshot.hosts
    alive = sum(bool(host["alive"]) for host in hosts)
    text = Text("eastwest", "bold")
    if len(hosts) == 1:
        text.append(f"  {hosts[0]['host']}", "default")
    text.append(f"  {alive}/{len(hosts)} hosts alive" if len(hosts) != 1 or not alive else "", "default")
    text.append(f"  {sum(row['label'] != 0 for row in snapshot.labels)} workloads", "default")
    problems = sum(len(host["problems"]) for host in hosts)
    if problems:
        text.append(f"  {problems} problems (eastwest hosts)", "yellow")
    if filtered:
        text.append(f"  filter: {filtered}", "cyan")
    return text


def _cost(snapshot: Snapshot) -> Text:
    """Of the host whose probe takes most."""
    text = Text("cost", "dim")
    if not snapshot.hosts:
        return text.append("  no host has reported yet", "dim")
    cost = max((host["cost"] for host in snapshot.hosts), key=lambda cost: float(cost["cpu_percent"]))
    programs = [
        f"{_short(program['program'])} {program['ns_per_packet']:.0f}"
        for program in cost["programs"]
        if program["runs"]
    ]
    if programs:
        text.append(f"  ns/packet {', '.join(programs)}", "default")
    text.append(f"  probe {_taken(cost)}", "default")
    server = snapshot.health.get("server")
    if server:
        text.append(f"  server {_taken(server)}", "default")
    return text


def _short(program: str) -> str:
    return program.replace("_ingress", " in").replace("_egress", " out")


def _taken(cost: Row) -> str:
    return f"{cost['cpu_percent']:.1f}% {octets(cost['memory_bytes'])}"


def _ledger(ledger: list[Row]) -> Text:
    text = Text("ledger", "dim")
    if not ledger:
        return text.append("  nothing seen yet", "dim")
    wrong = [str(row["label"]) for row in ledger if not row["balanced"]]
    if wrong:
        text.append(f"  NOT balanced: label {', '.join(wrong[:_LABELS_SHOWN])}", "bold red")
    else:
        text.append("  balanced", "green")
    for title, key in (
        ("seen", "seen_packets"),
        ("stored", "stored_packets"),
        ("pending", "pending_packets"),
    ):
        text.append(f"  {title} {count(sum(row[key] for row in ledger))}", "default")
    lost = sum(sum(row["lost"].values()) for row in ledger)
    return text.append(f"  lost {count(lost)}", "red" if lost else "default")
