"""What every test may use: requirements, and places of its own that leave nothing behind."""

import os
import secrets
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import hypothesis
import pytest

from eastwest.kernel.attach import unmount_bpffs
from eastwest.kernel.netns import inside
from eastwest.meter.check import cgroup_mount

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("eastwest", deadline=None)
hypothesis.settings.load_profile("eastwest")


def require(condition: object, remedy: str) -> None:
    """Skip the test unless `condition`; where everything must run (EASTWEST_REQUIRE_ALL=1), fail."""
    if condition:
        return
    if os.environ.get("EASTWEST_REQUIRE_ALL") == "1":
        pytest.fail(remedy)
    pytest.skip(remedy)


def readable(source: IO[Any] | socket.socket, seconds: float) -> bool:
    """Whether there is something to read within this time, or an end; also beyond 1,024 descriptors."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def run(*command: str) -> str:
    """Run a command that must succeed; its output."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def quiet(netns: Path, device: str) -> None:
    """No IPv6 by itself: no router solicitations, no duplicate address detection."""
    with inside(netns):
        Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")


@pytest.fixture(scope="session")
def root() -> None:
    """The privileges that namespaces, cgroups and BPF programs need."""
    require(os.geteuid() == 0, "needs root: sudo make test")
    require(shutil.which("ip"), "needs iproute2: apt-get install iproute2")


@pytest.fixture
def netns(root: None) -> Iterator[Path]:
    """A quiet network namespace with lo up."""
    name = f"ew-{secrets.token_hex(4)}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield Path("/run/netns") / name
    finally:
        run("ip", "netns", "del", name)


@pytest.fixture
def cgroup(root: None) -> Iterator[Path]:
    """A cgroup of its own; no process may be in it when the test ends."""
    path = cgroup_mount() / f"ew-{secrets.token_hex(4)}"
    path.mkdir()
    try:
        yield path
    finally:
        for directory, _, _ in os.walk(path, topdown=False):
            Path(directory).rmdir()


@pytest.fixture
def pins(root: None, tmp_path: Path) -> Iterator[Path]:
    """Where a meter may pin; unmounted afterwards."""
    path = tmp_path / "bpf"
    try:
        yield path
    finally:
        unmount_bpffs(path)


class Workload:
    """A namespace with a quiet eth0 whose other end is a port in `scope`."""

    def __init__(self, scope: Path, name: str | None = None) -> None:
        self.scope = scope.name
        self.name = name or f"ew-{secrets.token_hex(4)}"
        self.netns = Path("/run/netns") / self.name
        self.port = f"p{secrets.token_hex(4)}"

    def up(self) -> "Workload":
        """Make it; its address is 10.1.0.1, and 10.1.0.2 takes what is sent there."""
        run("ip", "netns", "add", self.name)
        link = ("ip", "-n", self.scope, "link")
        run(*link, "add", self.port, "type", "veth", "peer", "eth0", "netns", self.name)
        for space, device in ((self.scope, self.port), (self.name, "eth0")):
            quiet(Path("/run/netns") / space, device)
            run("ip", "-n", space, "link", "set", device, "up")
        run("ip", "-n", self.name, "address", "add", "10.1.0.1/24", "dev", "eth0")
        neighbour = ("10.1.0.2", "lladdr", "02:00:00:00:00:02", "dev", "eth0", "nud", "permanent")
        run("ip", "-n", self.name, "neighbour", "add", *neighbour)
        return self

    @property
    def ifindex(self) -> int:
        return int(run("ip", "-n", self.scope, "-o", "link", "show", self.port).split(":")[0])

    def send(self, count: int, size: int = 72, port: int = 2000) -> None:
        """Send UDP datagrams; each is size + 28 bytes of IP."""
        with inside(self.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for _ in range(count):
                s.sendto(bytes(size), ("10.1.0.2", port))

    def down(self) -> None:
        run("ip", "netns", "del", self.name)

    def __enter__(self) -> "Workload":
        try:
            return self.up()
        except BaseException:
            subprocess.run(["ip", "netns", "del", self.name], check=False)
            raise

    def __exit__(self, *_: object) -> None:
        if self.netns.exists():
            self.down()
