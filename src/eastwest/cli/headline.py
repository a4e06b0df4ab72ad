"""The lines above `top`'s table: which host, whether the ledger balances, what eastwest itself takes."""

from rich.text import Text

from eastwest.cli.feed import Snapshot
from eastwest.cli.render import Row
from eastwest.cli.units import EMPTY, count, octets

_LABELS_SHOWN = 6


def headline(snapshot: Snapshot, filtered: str) -> Text:
    """Four lines for 80 columns."""
    lines = [
        _who(snapshot, filtered),
        _kernel_cost(snapshot),
        _process_cost(snapshot),
        _ledger(snapshot.ledger),
    ]
    text = Text("\n").join(lines)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


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
    firing = sum(alert["state"] == "firing" for alert in snapshot.alerts)
    if firing:
        text.append(f"  {firing} firing (eastwest alerts)", "bold red")
    if filtered:
        text.append(f"  filter: {filtered}", "cyan")
    return text


def _dearest(snapshot: Snapshot) -> Row | None:
    """The cost of the host whose probe takes most; its name if there are several."""
    costs = [host["cost"] | {"host": host["host"]} for host in snapshot.hosts]
    return max(costs, key=lambda cost: float(cost["cpu_percent"]), default=None)


def _kernel_cost(snapshot: Snapshot) -> Text:
    """ns per packet of each program that ran in the last sample, in / out."""
    text = Text("kernel", "dim")
    cost = _dearest(snapshot)
    if cost is None:
        return text.append("  no host has reported yet", "dim")
    by_hook: dict[str, list[str]] = {}
    for program in cost["programs"]:
        hook = program["program"].rpartition("_")[0]
        shown = f"{program['ns_per_packet']:.0f}" if program["runs"] else EMPTY
        by_hook.setdefault(hook, []).append(shown)
    ran = {hook: " / ".join(costs) for hook, costs in by_hook.items() if set(costs) != {EMPTY}}
    if not ran:
        return text.append("  idle in the last sample", "default")
    text.append("  ns per packet in / out", "default")
    for hook, costs in ran.items():
        text.append(f"  {hook} {costs}", "default")
    return text


def _process_cost(snapshot: Snapshot) -> Text:
    text = Text("cost", "dim")
    cost, server = _dearest(snapshot), snapshot.health.get("server")
    if cost is not None:
        where = f" on {cost['host']}" if len(snapshot.hosts) > 1 else ""
        text.append(f"    probe{where} {_taken(cost)}", "default")
    if server is not None:
        text.append(f"  server {_taken(server)}", "default")
    return text


def _taken(cost: Row) -> str:
    return f"{cost['cpu_percent']:.1f} % {octets(cost['memory_bytes'])}"


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
