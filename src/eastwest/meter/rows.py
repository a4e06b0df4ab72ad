"""The rows that leave a host: packed, little-endian, in the order in which the store reads them.

Their fields come from the kernel's records, so a wider C field widens the row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eastwest.kernel.records import record

PORT_NAME_SIZE = 16
"""IFNAMSIZ, linux/if.h: an interface's name with its NUL."""

LOSSES = ("flow_map_full", "outbox_full")
"""Places where a packet loses its flow detail, in the order of `TOTAL_ROW`'s fields."""


def _fields(name: str, leave_out: frozenset[str]) -> list[tuple[str, Any]]:
    layout = record(name)
    assert layout.names is not None
    return [(f, layout[f].newbyteorder("<")) for f in layout.names if f not in leave_out]


FLOW_ROW = np.dtype(
    [
        *_fields("flow_key", frozenset({"account"})),
        *_fields("flow_counters", frozenset({"first", "last", "tcp_flags", "pad"})),
        ("start", "<i8"),
        ("end", "<i8"),
        ("tcp_flags", record("flow_counters")["tcp_flags"]),
        ("label", "<u4"),
        ("port", f"S{PORT_NAME_SIZE}"),
    ]
)
"""One flow of one drain. start, end: unix ns; port: the host-side interface, empty for a cgroup."""

TOTAL_ROW = np.dtype(
    [
        ("serial", "<u8"),
        ("label", "<u4"),
        *_fields("account", frozenset()),
        ("outbox_full_packets", "<u8"),
        ("outbox_full_bytes", "<u8"),
        ("first_seen", "<i8"),
        ("last_seen", "<i8"),
    ]
)
"""What one account counted since it was opened; `serial` is never given twice in one boot."""


def sum_by_label(rows: NDArray[Any], field: str = "packets") -> dict[int, int]:
    """Sum of one field per label."""
    labels, where = np.unique(rows["label"], return_inverse=True)
    # bincount would add as floats: exact only to 2**53.
    sums = np.zeros(len(labels), np.uint64)
    np.add.at(sums, where, rows[field])
    return {int(label): int(n) for label, n in zip(labels, sums, strict=True)}
