"""The verdict compares every figure; the plan names everything after the lab."""

import io
from typing import Any

import pytest
from rich.console import Console

from eastwest.errors import ConfigError
from eastwest.lab.plan import plan, random_name
from eastwest.lab.record import FlowRecord, Record, WorkloadRecord
from eastwest.lab.report import show
from eastwest.lab.verdict import Owner, Verdict, judge

FLOW = FlowRecord("10.0.0.1", "10.0.0.2", 40080, 80, 6, "egress", 5, 500)
HEALTH = {"server": {"cpu_percent": 2.5, "memory_bytes": 3e8}}
RECORD = Record("lab", [WorkloadRecord("lab-a1", 0, 0, 5, 500, [FLOW])])


def documents() -> dict[str, list[dict[str, Any]]]:
    """What eastwest says when all is well; the flow's five packets came in two drains."""
    flow = {"label": 7, "src": "10.0.0.1", "dst": "10.0.0.2", "src_port": 40080, "dst_port": 80}
    flow |= {"protocol": 6, "direction": "egress"}
    counters = {"ingress_packets": 0, "ingress_bytes": 0, "egress_packets": 5, "egress_bytes": 500}
    account = {"seen_packets": 5, "stored_packets": 5, "pending_packets": 0, "lost": {}, "balanced": True}
    return {
        "labels": [{"label": 7, "name": "lab-a1", "tenant": "a", "service": "shop", **counters}],
        "flows": [{**flow, "packets": 2, "bytes": 150}, {**flow, "packets": 3, "bytes": 350}],
        "ledger": [{"label": 0, **account}, {"label": 7, **account}],
    }


def verdict(**changed: list[dict[str, Any]]) -> Verdict:
    return judge(RECORD, {"lab-a1": Owner("a", "shop")}, **(documents() | changed))


def test_what_agrees_has_no_difference() -> None:
    """All figures of all tables; rows of other labels are nobody's concern."""
    assert verdict().differences == []
    assert [line.title[0] for line in verdict().flows] == ["lab-a1"]


@pytest.mark.parametrize(
    ("table", "field", "value", "difference"),
    [
        ("labels", "egress_packets", 4, "7 lab-a1: egress_packets -1"),
        ("labels", "ingress_bytes", 40, "7 lab-a1: ingress_bytes +40"),
        ("labels", "tenant", "b", "7 lab-a1: tenant b, not a"),
        ("labels", "service", "bank", "7 lab-a1: service bank, not shop"),
        ("ledger", "stored_packets", 4, "7 lab-a1: stored -1"),
        ("ledger", "pending_packets", 1, "7 lab-a1: pending +1"),
        ("ledger", "lost", {"outbox": 2}, "7 lab-a1: lost +2"),
        ("ledger", "balanced", False, "7 lab-a1: balanced False, not True"),
        ("flows", "packets", 4, "lab-a1 10.0.0.1 10.0.0.2 40080 80 6 egress: packets +1"),
        ("flows", "dst", "10.0.0.3", "lab-a1 10.0.0.1 10.0.0.3 40080 80 6 egress: packets +3"),
    ],
)
def test_every_figure_is_compared(table: str, field: str, value: object, difference: str) -> None:
    """One figure changed in the last row: it is named, with the difference."""
    rows = documents()[table]
    rows[-1][field] = value
    assert difference in verdict(**{table: rows}).differences


def test_what_eastwest_does_not_show_differs() -> None:
    """No row for the workload: each of its figures is missing."""
    assert "None lab-a1: egress_packets None, not 5" in verdict(labels=[]).differences
    assert "7 lab-a1: seen None, not 5" in verdict(ledger=[]).differences


def test_the_last_line_tells_the_verdict() -> None:
    """✓ and the sums, or the number of differences; a difference is on the page even below the top flows."""
    for said, last in (
        (verdict(), "✓ every figure equals the senders' record: 1 labels, 1 flows (all compared), 5 packets"),
        (verdict(flows=[]), "✗ 2 figures differ from the senders' record"),
    ):
        page = io.StringIO()
        show(Console(width=200, file=page), said, [], HEALTH)
        assert page.getvalue().rstrip().endswith(last)


def test_own_cost_is_shown() -> None:
    """Probe, server and each program that ran; a super-packet is one run."""
    programs = [{"program": "port_ingress", "runs": 9, "ns_per_packet": 642.3}]
    programs.append({"program": "port_egress", "runs": 0, "ns_per_packet": 0.0})
    cost = {"cpu_percent": 1.0, "memory_bytes": 7e7, "programs": programs}
    page = io.StringIO()
    show(Console(width=200, file=page), verdict(), [{"host": "h1", "cost": cost}], HEALTH)
    assert "642 ns per run, 9 runs in the last sample of 1 s" in page.getvalue()
    assert "port_egress" not in page.getvalue()
    assert "server, CPU" in page.getvalue()
    assert "2.5 % of one core" in page.getvalue()
    assert "300 MB" in page.getvalue()


def test_names_begin_with_the_labs() -> None:
    """So that what a lab made can be found; interface names fit into the kernel's 15 characters."""
    name = random_name()
    made = plan(name)
    ports = [guest.port for guest in made.guests]
    names = [workload.name for workload in made.workloads]
    assert all(one.startswith(name) for one in (*names, *ports, made.bridge, made.slice))
    assert len(set(names)) == 6
    assert max(map(len, (*ports, made.bridge))) <= 15
    assert [guest.address for guest in made.guests] == ["10.0.0.1", "10.0.0.2"] * 2
    assert len({guest.mac for guest in made.guests}) == 4


@pytest.mark.parametrize("name", ["x", "-a", "Lab", "lab/1", "morethan10c", "a b"])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    """With what would do."""
    with pytest.raises(ConfigError, match="use 2 to 10 lower-case letters"):
        plan(name)
