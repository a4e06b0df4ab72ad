"""The tables against the rows that fill them."""

import numpy as np
import pytest

from eastwest.errors import ConfigError
from eastwest.meter.rows import FLOW_ROW, TOTAL_ROW
from eastwest.store.batch import Batch, row_binary
from eastwest.store.schema import FLOWS, ORIGIN, TOTALS
from eastwest.store.store import Store, StoreConfig

_SIZES = {
    "IPv6": 16,
    "UInt8": 1,
    "UInt16": 2,
    "UInt32": 4,
    "UInt64": 8,
    "DateTime64(9, 'UTC')": 8,
    "FixedString(16)": 16,
    "Enum8('ingress' = 0, 'egress' = 1)": 1,
    "Enum8('normal' = 0, 'suspect' = 1)": 1,
}


@pytest.mark.parametrize(
    ("columns", "row", "before"), [(FLOWS, FLOW_ROW, len(ORIGIN) + 1), (TOTALS, TOTAL_ROW, len(ORIGIN))]
)
def test_columns_follow_the_row(columns: dict[str, str], row: np.dtype, before: int) -> None:
    """Same names, same order, same size: field by field what RowBinary reads is what the array holds."""
    assert tuple(columns)[before:] == row.names
    assert [_SIZES[kind] for kind in list(columns.values())[before:]] == [
        row[name].itemsize for name in row.names or ()
    ]
    assert row.itemsize == sum(row[name].itemsize for name in row.names or ())


def test_times_are_times_and_counters_are_not() -> None:
    times = {name for name, kind in (FLOWS | TOTALS).items() if kind.startswith("DateTime64")}
    assert times == {"start", "end", "first_seen", "last_seen"}
    assert {FLOWS[name] for name in ("packets", "bytes", "boot", "sequence")} == {"UInt64"}


def test_row_binary_is_origin_then_row() -> None:
    """Two batches of hosts with names of different length, byte by byte."""
    rows = np.zeros(2, FLOW_ROW)
    rows["label"] = 3, 4
    document = row_binary([Batch("h", 5, 6, "flows", rows), Batch("host", 7, 8, "flows", rows[:1])], 9)
    one = b"\x01h" + (5).to_bytes(8, "little") + (6).to_bytes(8, "little") + (9).to_bytes(4, "little")
    two = b"\x04host" + (7).to_bytes(8, "little") + (8).to_bytes(8, "little") + (9).to_bytes(4, "little")
    assert document == one + rows[0].tobytes() + one + rows[1].tobytes() + two + rows[0].tobytes()


def test_empty_batches_make_no_rows() -> None:
    assert (
        row_binary([Batch("h", 1, 1, "flows", np.zeros(0, FLOW_ROW)), Batch("h", 1, 2, "workloads")]) == b""
    )


@pytest.mark.parametrize(
    "config", [StoreConfig(), StoreConfig(url="http://x", retention_days=0), StoreConfig(url="", path="/x")]
)
def test_impossible_configurations_are_refused(config: StoreConfig) -> None:
    with pytest.raises(ConfigError, match=r"store .*; set "):
        Store(config)
