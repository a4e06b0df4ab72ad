"""What is written at once, and its RowBinary form."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eastwest.bus.messages import Evidence, Workload

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


def row_binary(batches: Iterable[Batch], received: int | None = None) -> bytes:
    """The rows of all batches, each preceded by host, boot, sequence and, if given, `received`.

    RowBinary writes a string as its length and its bytes. Within a batch the host is constant, so both
    are plain fields of a packed array and no row is touched one by one.
    """
    return b"".join(_packed(batch, received) for batch in batches)


def _packed(batch: Batch, received: int | None) -> bytes:
    rows = batch.rows
    if rows is None or not len(rows):
        return b""
    host = batch.host.encode()
    origin = [("size", "u1"), ("host", f"V{len(host)}"), ("boot", "<u8"), ("sequence", "<u8")]
    if received is not None:
        origin.append(("received", "<u4"))
    table = np.empty(len(rows), np.dtype([*origin, ("row", rows.dtype)]))
    table["size"] = len(host)
    table["host"] = np.void(host)
    table["boot"] = batch.boot
    table["sequence"] = batch.sequence
    if received is not None:
        table["received"] = received
    table["row"] = rows
    return table.tobytes()


MAX_HOST_BYTES = 127
"""A longer length would take RowBinary two bytes; host names end at 64 (Linux) or 253 (DNS, rarely)."""
