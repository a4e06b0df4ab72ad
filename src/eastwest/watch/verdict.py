"""What an evaluation of watches says: findings, and what it cannot say."""

from dataclasses import dataclass, field

from eastwest.bus.messages import Watch, Workload
from eastwest.store.watching import FlowFilter
from eastwest.watch.alert import Finding, Key


@dataclass
class Verdict:
    """What an evaluation of all watches found."""

    findings: list[Finding] = field(default_factory=list)
    unknown: dict[tuple[str, int], str] = field(default_factory=dict)
    """Watch and label of what cannot be judged → why."""
    trouble: set[tuple[str, int]] = field(default_factory=set)
    """Of these what needs mending; the rest only needs time, or its host may have been taken out."""
    partial: dict[tuple[str, int], str] = field(default_factory=dict)
    """Watch and label of what is judged by a part of it → why."""


@dataclass(frozen=True)
class Case:
    """A watch and a workload that it selects, which can be judged."""

    watch: Watch
    workload: Workload

    @property
    def key(self) -> tuple[str, int]:
        return self.watch.name, self.workload.label

    def finding(self, figure: float, unit: str, text: str, flows: FlowFilter, subject: str = "") -> Finding:
        watch = self.watch
        return Finding(
            key=Key(watch.condition, watch.name, self.workload.label, subject),
            severity=watch.severity,
            figure=figure,
            threshold=watch.threshold,
            unit=unit,
            text=text,
            workload=self.workload,
            flows=flows,
            hold_seconds=watch.for_seconds,
        )
