"""Places for kernel tests: namespaces, cgroups and BPF file systems of their own, with nothing left behind."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eastwest.kernel.attach import unmount_bpffs
from eastwest.kernel.netns import inside
from eastwest.meter.config import MeterConfig
from eastwest.meter.meter import Meter, cgroup_mount
from tests.conftest import require


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session", autouse=True)
def privileges() -> None:
    require(os.geteuid() == 0, "kernel tests need root: sudo make test")
    require(shutil.which("ip"), "kernel tests need iproute2: apt-get install iproute2")


@pytest.fixture
def netns() -> Iterator[Path]:
    """A quiet network namespace with lo up."""
    name = f"ew-{secrets.token_hex(4)}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield Path("/run/netns") / name
    finally:
        run("ip", "netns", "del", name)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of its own; the test moves processes out before it ends."""
    path = cgroup_mount() / f"ew-{secrets.token_hex(4)}"
    path.mkdir()
    try:
        yield path
    finally:
        for directory, _, _ in os.walk(path, topdown=False):
            Path(directory).rmdir()


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bpf"
    try:
        yield path
    finally:
        unmount_bpffs(path)


@pytest.fixture
def meter(netns: Path, cgroup: Path, pins: Path) -> Iterator[Meter]:
    """A meter of its own namespace and cgroup: it sees what the test sends and nothing else."""
    with Meter(MeterConfig(netns=netns, cgroup_root=cgroup, flow_entries=20000, accounts=64), pins) as meter:
        yield meter


@pytest.fixture
def port(meter: Meter, netns: Path) -> Iterator[tuple[Path, int]]:
    """A workload's namespace with a quiet eth0 and, on the host's side, its metered port's index."""
    name = f"ew-{secrets.token_hex(4)}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", netns.name, "link", "add", "port0", "type", "veth", "peer", "eth0", "netns", name)
        for space, device in ((netns.name, "port0"), (name, "eth0")):
            quiet(Path("/run/netns") / space, device)
            run("ip", "-n", space, "link", "set", device, "up")
        ifindex = int(run("ip", "-n", netns.name, "-o", "link", "show", "port0").split(":")[0])
        meter.attach_port(ifindex)
        yield Path("/run/netns") / name, ifindex
    finally:
        run("ip", "netns", "del", name)


def quiet(netns: Path, device: str) -> None:
    """No IPv6 by itself: no router solicitations, no duplicate address detection."""
    with inside(netns):
        Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")
