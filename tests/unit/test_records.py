"""Records: the layout that kernel and user space share."""

import pytest

from eastwest.kernel.records import METER_OBJECT, TAP_OBJECT, enumeration, record
from eastwest.meter.rows import FLOW_ROW, LOSSES, TOTAL_ROW
from tests.conftest import require

PER_CPU = ("account", "hook_count", "interface_count")
RECORDS = (*PER_CPU, "flow_key", "flow_counters", "source", "meter_state", "cgroup_event", "process_event")


@pytest.fixture(autouse=True)
def built() -> None:
    require(METER_OBJECT.exists(), "the BPF objects are not built: make setup")


@pytest.mark.parametrize("name", RECORDS)
def test_every_byte_of_a_record_is_declared(name: str) -> None:
    """Padding is explicit, so no field is where the compiler alone put it and no byte is left unset."""
    layout = record(name)
    assert sum(layout[field].itemsize for field in layout.names or ()) == layout.itemsize


@pytest.mark.parametrize("name", ["tap_order", "tap_point", "tap_count", "ring", "epb_head", "epb_tail"])
def test_every_byte_of_a_taps_record_is_declared(name: str) -> None:
    """As above; and a ring's two halves do not share a cache line."""
    layout = record(name, TAP_OBJECT)
    assert sum(layout[field].itemsize for field in layout.names or ()) == layout.itemsize
    if name == "ring":
        assert (layout.fields or {})["tail"][1] == layout.itemsize // 2 == 128


@pytest.mark.parametrize("name", PER_CPU)
def test_per_cpu_values_fill_whole_slots(name: str) -> None:
    """The kernel copies per-CPU values in slots of eight bytes."""
    assert record(name).itemsize % 8 == 0


def test_network_order_is_taken_from_the_typedef() -> None:
    """__be16 is read as big-endian, and leaves the host as the little-endian number that the store reads."""
    assert record("flow_key")["src_port"].str == ">u2"
    assert FLOW_ROW["src_port"].str == "<u2"


def test_a_row_is_packed_and_carries_what_the_kernel_counts() -> None:
    """No gaps; every counter of an account is in the totals; every place of loss has both its numbers."""
    for row in (FLOW_ROW, TOTAL_ROW):
        assert sum(row[field].itemsize for field in row.names or ()) == row.itemsize
    assert set(record("account").names or ()) <= set(TOTAL_ROW.names or ())
    assert {f"{place}_{what}" for place in LOSSES for what in ("packets", "bytes")} <= set(
        TOTAL_ROW.names or ()
    )


def test_enumerations_are_the_kernels() -> None:
    assert enumeration("direction") == {"DIRECTION_INGRESS": 0, "DIRECTION_EGRESS": 1}
    assert enumeration("traffic_class") == {"CLASS_NORMAL": 0, "CLASS_SUSPECT": 1}
