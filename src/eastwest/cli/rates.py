"""From counters, asked for again and again, to rates."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eastwest.cli.labels import traffic

_COUNTERS = ("ingress_packets", "ingress_bytes", "egress_packets", "egress_bytes")


@dataclass(frozen=True)
class Rate:
    """Per second; bits are those of IP packets. total: bytes since the label is."""

    in_packets: float = 0.0
    in_bits: float = 0.0
    out_packets: float = 0.0
    out_bits: float = 0.0
    total: int = 0

    @property
    def bits(self) -> float:
        return self.in_bits + self.out_bits


class Rates:
    """Counters of the last seconds. They change when a probe drains, every few seconds, so the rate is
    taken over a window that is longer than that."""

    def __init__(self, window: float = 6.0) -> None:
        self._window = window
        self._samples: deque[tuple[float, dict[int, tuple[int, ...]]]] = deque()
        self._totals: dict[int, int] = {}

    def feed(self, rows: Sequence[Mapping[str, Any]], now: float) -> None:
        """One answer of /labels, and when it came (seconds, monotonic)."""
        self._samples.append((now, {row["label"]: _counters(row) for row in rows}))
        self._totals = {row["label"]: traffic(dict(row)) for row in rows}
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window:
            self._samples.popleft()

    def of(self, label: int) -> Rate:
        """The rate of a label, zero before it has been seen twice."""
        seen = [(when, counts[label]) for when, counts in self._samples if label in counts]
        total = self._totals.get(label, 0)
        if len(seen) < 2 or seen[-1][0] <= seen[0][0]:
            return Rate(total=total)
        (begin, first), (end, last) = seen[0], seen[-1]
        # max: a server that starts with an empty store begins at zero again.
        per_second = [max(0, b - a) / (end - begin) for a, b in zip(first, last, strict=True)]
        return Rate(per_second[0], 8 * per_second[1], per_second[2], 8 * per_second[3], total)


def _counters(row: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(row.get(name) or 0) for name in _COUNTERS)
