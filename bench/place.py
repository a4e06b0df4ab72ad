"""Where traffic is measured: a host in a namespace, with a bridge and two workloads, gone at the end.

workload a: eth0 ── port pa ┐
                            ├── bridge ── sink0 ── sink1   frames for SINK meet no second hook
workload b: eth0 ── port pb ┘                              frames for B meet one at pb
"""

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.build import compiled
from bench.packets import _VARIETY, datagram
from eastwest.kernel import attach, trial
from eastwest.kernel.libbpf import Object
from eastwest.kernel.netns import inside

A, B, SINK = (bytes.fromhex(f"02000000000{n}") for n in (1, 2, 3))
ADDRESS_A, ADDRESS_B = "10.1.0.1", "10.1.0.2"
_BURST_SECONDS = 0.01
_LOOPBACK = 1


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass(frozen=True)
class Place:
    """Names of the namespaces: the host's and its two workloads'."""

    host: str
    a: str
    b: str

    @property
    def netns(self) -> Path:
        return self.path(self.host)

    def path(self, name: str) -> Path:
        return Path("/run/netns") / name

    def ifindex(self, name: str, device: str) -> int:
        return int(self._read(name, f"/sys/class/net/{device}/ifindex"))

    def received(self, name: str, device: str) -> int:
        """Packets that reached an interface."""
        for line in self._read(name, "/proc/thread-self/net/dev").splitlines():
            if line.strip().startswith(f"{device}:"):
                return int(line.partition(":")[2].split()[1])
        raise LookupError(device)

    def _read(self, name: str, path: str) -> str:
        command = ["nsenter", f"--net={self.path(name)}", "cat", path]
        if path.startswith("/sys/"):
            command = ["ip", "netns", "exec", name, "cat", path]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def place() -> Iterator[Place]:
    mark = secrets.token_hex(3)
    here = Place(f"bh-{mark}", f"ba-{mark}", f"bb-{mark}")
    try:
        for name in (here.host, here.a, here.b):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            for which in ("default", "all"):
                _quiet(here.path(name), which)
        ip("-n", here.host, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", here.host, "link", "set", "br0", "up")
        _workload(here, here.a, "pa", A, ADDRESS_A)
        _workload(here, here.b, "pb", B, ADDRESS_B)
        ip("-n", here.host, "link", "add", "sink0", "type", "veth", "peer", "sink1")
        ip("-n", here.host, "link", "set", "sink1", "up")
        _bridged(here, "sink0", SINK)
        for name, address, mac in ((here.a, ADDRESS_B, B), (here.b, ADDRESS_A, A)):
            ip(
                "-n",
                name,
                "neighbour",
                "add",
                address,
                "lladdr",
                mac.hex(":"),
                "dev",
                "eth0",
                "nud",
                "permanent",
            )
        yield here
    finally:
        for name in (here.host, here.a, here.b):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _quiet(netns: Path, device: str) -> None:
    with inside(netns):
        Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")


def _workload(here: Place, name: str, port: str, mac: bytes, address: str) -> None:
    peer = ("peer", "eth0", "address", mac.hex(":"), "netns", name)
    ip("-n", here.host, "link", "add", port, "type", "veth", *peer)
    ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    ip("-n", name, "link", "set", "eth0", "up")
    _bridged(here, port, mac)


def _bridged(here: Place, port: str, mac: bytes) -> None:
    ip("-n", here.host, "link", "set", port, "master", "br0", "up")
    subprocess.run(
        ["bridge", "-n", here.host, "fdb", "replace", mac.hex(":"), "dev", port, "master", "static"],
        check=True,
        capture_output=True,
    )


@contextmanager
def neighbours(here: Place, count: int) -> Iterator[list[str]]:
    """More workloads with a port each, which nobody speaks to: their names."""
    names = [f"{here.host}-{number}" for number in range(count)]
    try:
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip(
                *("-n", here.host, "link", "add", f"q{number}", "up", "type", "veth"),
                *("peer", "eth0", "netns", name),
            )
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Generator:
    """Sends UDP of `payload` bytes from workload a, as so many flows, straight from the kernel."""

    def __init__(
        self, here: Place, to: bytes, flows: int, *, sequential: bool = False, payload: int = 72
    ) -> None:
        self._here = here
        self._frame = datagram(payload, mac=to)
        self.length = len(self._frame)
        self._object = Object(compiled("generate"))
        self._object.load()
        variety = _VARIETY.pack(flows, 1, sequential, 0, here.ifindex(here.a, "eth0"), 0)
        self._object.maps["variety"].update(bytes(4), variety)
        # Else the kernel's XDP dispatcher is changed for each run of live frames, which takes 24 ms.
        with inside(here.path(here.a)):
            self._link = attach.link(self._object.program("generate"), _LOOPBACK, attach.XDP)
        # The other end of a veth takes such frames only where it has NAPI, which GRO brings.
        ethtool = ["ip", "netns", "exec", here.host, "ethtool", "-K", "pa", "gro", "on"]
        subprocess.run(ethtool, check=True, capture_output=True)

    def send(self, count: int) -> None:
        """As fast as this CPU can."""
        with inside(self._here.path(self._here.a)):
            trial.send(self._object.program("generate"), self._frame, count)

    def pace(self, count: int, rate: float) -> float:
        """Send `count` in bursts, `rate` a second; the rate that was reached."""
        start, sent, most = time.monotonic(), 0, max(1, round(rate * _BURST_SECONDS))
        while sent < count:
            burst = min(most, count - sent)
            self.send(burst)
            sent += burst
            time.sleep(max(0.0, start + sent / rate - time.monotonic()))
        return count / (time.monotonic() - start)

    def close(self) -> None:
        os.close(self._link)
        self._object.close()
