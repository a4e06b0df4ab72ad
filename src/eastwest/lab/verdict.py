"""Whether what eastwest says of a lab is what the lab's senders recorded, figure by figure."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from eastwest.lab.record import Record, WorkloadRecord

Row = dict[str, Any]
FlowKey = tuple[str, str, str, int, int, int, str]
"""Workload, source, destination, their ports, protocol, direction."""

COUNTERS = ("ingress_packets", "ingress_bytes", "egress_packets", "egress_bytes")


class Owner(msgspec.Struct, frozen=True):
    """Who a workload belongs to, as the rules have it."""

    tenant: str = ""
    service: str = ""


class Figure(msgspec.Struct, frozen=True):
    """One number or word as eastwest shows it, and what it should be."""

    what: str
    shown: int | str | bool | None
    truth: int | str | bool

    @property
    def agrees(self) -> bool:
        return self.shown == self.truth

    @property
    def difference(self) -> str:
        """Empty where they agree."""
        if self.agrees:
            return ""
        # Not isinstance: True is an int, and not a number to subtract from.
        if type(self.shown) is int and type(self.truth) is int:
            return f"{self.what} {self.shown - self.truth:+,}"
        return f"{self.what} {self.shown!s}, not {self.truth!s}"


class Line(msgspec.Struct, frozen=True):
    """One row of a table: what it is about, and its figures by name."""

    title: tuple[str, ...]
    figures: dict[str, Figure]

    @property
    def differences(self) -> list[str]:
        return [figure.difference for figure in self.figures.values() if not figure.agrees]


class Verdict(msgspec.Struct, frozen=True):
    """Every figure of the lab's workloads, beside the senders' record."""

    labels: list[Line]
    flows: list[Line]
    ledger: list[Line]

    @property
    def differences(self) -> list[str]:
        lines = [*self.labels, *self.flows, *self.ledger]
        return [f"{' '.join(line.title)}: {difference}" for line in lines for difference in line.differences]


def line(title: tuple[str, ...], figures: Iterable[Figure]) -> Line:
    return Line(title, {figure.what: figure for figure in figures})


def judge(
    record: Record, owners: dict[str, Owner], labels: list[Row], flows: list[Row], ledger: list[Row]
) -> Verdict:
    """Compare the documents of `labels`, `flows` and `ledger` with the record, and with the rules' owners.

    `owners`: by workload; one that no rule gives to anybody need not be there.
    """
    by_name = {row["name"]: row for row in labels}
    numbers = {workload.name: by_name.get(workload.name, {}).get("label") for workload in record.workloads}
    return Verdict(
        [_label(workload, owners.get(workload.name, Owner()), by_name) for workload in record.workloads],
        _flows(record, numbers, flows),
        [_account(workload, numbers[workload.name], ledger) for workload in record.workloads],
    )


def _label(workload: WorkloadRecord, owner: Owner, labels: dict[str, Row]) -> Line:
    row = labels.get(workload.name, {})
    counters = [Figure(name, row.get(name), getattr(workload, name)) for name in COUNTERS]
    names = [Figure(name, row.get(name), getattr(owner, name)) for name in ("tenant", "service")]
    return line((str(row.get("label")), workload.name), [*counters, *names])


def _flows(record: Record, numbers: dict[str, Any], rows: list[Row]) -> list[Line]:
    """The largest first; a flow that only one of the two knows counts nothing on the other side."""
    names = {number: name for name, number in numbers.items() if number is not None}
    shown: dict[str, Counter[FlowKey]] = {"packets": Counter(), "bytes": Counter()}
    truth: dict[str, Counter[FlowKey]] = {"packets": Counter(), "bytes": Counter()}
    for row in (row for row in rows if row["label"] in names):
        ends = (row["src"], row["dst"], row["src_port"], row["dst_port"])
        key = (names[row["label"]], *ends, row["protocol"], row["direction"])
        for what, counter in shown.items():
            counter[key] += row[what]
    for workload in record.workloads:
        for flow in workload.flows:
            ends = (flow.src, flow.dst, flow.src_port, flow.dst_port)
            key = (workload.name, *ends, flow.protocol, flow.direction)
            truth["packets"][key] += flow.packets
            truth["bytes"][key] += flow.bytes
    keys = sorted(
        shown["packets"].keys() | truth["packets"].keys(), key=lambda key: (-truth["bytes"][key], key)
    )
    return [
        line(tuple(map(str, key)), [Figure(what, shown[what][key], truth[what][key]) for what in shown])
        for key in keys
    ]


def _account(workload: WorkloadRecord, number: int | None, ledger: list[Row]) -> Line:
    row: Row = next((row for row in ledger if row["label"] == number), {})
    packets = workload.ingress_packets + workload.egress_packets
    figures = [
        Figure("seen", row.get("seen_packets"), packets),
        Figure("stored", row.get("stored_packets"), packets),
        Figure("pending", row.get("pending_packets"), 0),
        Figure("lost", sum(row.get("lost", {}).values()), 0),
        Figure("balanced", row.get("balanced"), True),
    ]
    return line((str(number), workload.name), figures)
