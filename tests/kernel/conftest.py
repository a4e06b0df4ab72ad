"""A meter of a test's own and a port for it; taps of a test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eastwest.meter.config import MeterConfig
from eastwest.meter.meter import Meter
from eastwest.tap.taps import Point, Taps
from tests.conftest import Workload
from tests.kernel.tapping import LABEL, LO, Tool, tapping


@pytest.fixture
def meter(netns: Path, cgroup: Path, pins: Path) -> Iterator[Meter]:
    """A meter of its own namespace and cgroup: it sees what the test sends and nothing else."""
    with Meter(MeterConfig(netns=netns, cgroup_root=cgroup, flow_entries=20000, accounts=64), pins) as meter:
        yield meter


@pytest.fixture
def port(meter: Meter, netns: Path) -> Iterator[tuple[Path, int]]:
    """A workload's namespace and, on the host's side, the index of its metered port."""
    with Workload(netns) as workload:
        ifindex = workload.ifindex
        meter.attach_port(ifindex)
        yield workload.netns, ifindex


@pytest.fixture
def taps(netns: Path) -> Iterator[Taps]:
    with tapping(netns) as taps:
        yield taps


@pytest.fixture
def tool(taps: Taps) -> Tool:
    """Takes what trial runs put on interface 1, as stream 5."""
    tool = Tool(taps)
    taps.set_port(LO, Point(LABEL, [tool.order(5)]))
    return tool
