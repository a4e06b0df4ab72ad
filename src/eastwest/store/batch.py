"""What is written at once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eastwest.bus.messages import Evidence, Workload
from eastwest.store import binary

Kind = Literal["flows", "totals", "workloads", "evidence"]


@dataclass(frozen=True)
class Batch:
    """One message: its number, and its rows (FLOW_ROW or TOTAL_ROW array), workloads or evidence."""

    host: str
    boot: int
    sequence: int
    kind: Kind
    rows: NDArray[Any] | None = None
    workloads: list[Workload] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)

    @property
    def number(self) -> tuple[str, int, int]:
        return self.host, self.boot, self.sequence

    @property
    def count(self) -> int:
        return len(self.workloads) + len(self.evidence) if self.rows is None else len(self.rows)

    @property
    def packets(self) -> int:
        """Packets in flow rows; 0 for the other kinds, which repeat what flows counted."""
        if self.kind != "flows" or self.rows is None:
            return 0
        return int(self.rows["packets"].sum(dtype=np.uint64))


def block(columns: Mapping[str, str], batches: Iterable[Batch], received: int | None = None) -> bytes:
    """The rows of all batches as one Native block, with host, boot, sequence and, if given, `received`."""
    parts = []
    for batch in batches:
        if batch.rows is not None:
            origin = {
                "host": binary.string(batch.host.encode()),
                "boot": binary.integers("<u8", batch.boot),
                "sequence": binary.integers("<u8", batch.sequence),
            }
            if received is not None:
                origin["received"] = binary.integers("<u4", received)
            parts.append((origin, batch.rows))
    return binary.block(columns, parts)
