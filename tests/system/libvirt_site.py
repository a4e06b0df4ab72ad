"""A real libvirtd for the tests, with directories, a mount namespace and a cgroup of its own."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require

DAEMON = """
listen_tls = 0
listen_tcp = 0
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_dir = "{directory}/s"
log_outputs = "3:file:{directory}/libvirtd.log"
"""

QEMU = """
stdio_handler = "file"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
"""

# It would put emulators below /machine in every hierarchy of the machine: it sees only the cgroup it is in.
# What the daemon takes for the machine's own; Debian's account for emulators comes with another package.
PLACES = {"/etc/libvirt": "etc", "/run": "run", "/var/lib/libvirt": "lib", "/var/log/libvirt": "logs"}
PLACES |= {"/var/cache/libvirt": "cache", "/etc/passwd": "passwd", "/etc/group": "group"}

START = """
echo $$ >{cgroup}/cgroup.procs
exec nsenter --net={netns} unshare -m -C --propagation private sh -ec '
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
{mounts}
exec libvirtd -f {directory}/libvirtd.conf -p {directory}/pid'
"""


class Libvirtd:
    """Started, stopped and killed at will; its domains go on meanwhile."""

    def __init__(self, directory: Path, netns: Path, cgroup: Path) -> None:
        self.directory, self.cgroup = directory, cgroup
        self.uri = f"qemu+unix:///system?socket={directory}/s/libvirt-sock"
        for place in (*PLACES.values(), "s"):
            if place not in ("passwd", "group"):
                (directory / place).mkdir(parents=True)
        account = "libvirt-qemu:x:64055:"
        for name, line in (("passwd", f"{account}64055::/:/bin/false"), ("group", account)):
            (directory / name).write_text(f"{Path('/etc', name).read_text()}{line}\n")
        (directory / "libvirtd.conf").write_text(DAEMON.format(directory=directory))
        (directory / "etc/qemu.conf").write_text(QEMU)
        mounts = "\n".join(f"mount --bind {directory}/{own} {there}" for there, own in PLACES.items())
        self._start = START.format(cgroup=cgroup, netns=netns, mounts=mounts, directory=directory)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 60) -> None:
        """Returns once it answers."""
        import libvirt

        with (self.directory / "out.log").open("ab") as out:
            self._process = subprocess.Popen(["sh", "-ec", self._start], stdout=out, stderr=out)
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.connect().close()
                return
            except libvirt.libvirtError:
                said = "".join(log.read_text() for log in self.directory.glob("*.log"))
                assert time.monotonic() < deadline, said
                assert self._process.poll() is None, said
                time.sleep(0.05)

    def connect(self) -> Any:
        """A connection that may change things."""
        import libvirt

        return libvirt.open(self.uri)

    def signal(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def end(self) -> None:
        """With every emulator that it started."""
        self.kill()
        deadline = time.monotonic() + 60
        while "populated 1" in (self.cgroup / "cgroup.events").read_text() and time.monotonic() < deadline:
            for directory, _, _ in os.walk(self.cgroup):
                for pid in (Path(directory) / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)


@contextmanager
def libvirtd(directory: Path, netns: Path, cgroup: Path) -> Iterator[Libvirtd]:
    """A daemon in `netns` that runs in `cgroup`, with all that it starts."""
    pytest.importorskip("libvirt", reason="pip install 'eastwest[libvirt]'")
    require(shutil.which("libvirtd"), "needs libvirt: apt-get install libvirt-daemon")
    require(shutil.which("qemu-system-x86_64"), "needs QEMU: apt-get install qemu-system-x86")
    cgroup.mkdir()
    daemon = Libvirtd(directory, netns, cgroup)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()


def definition(
    name: str, uuid: str, *interfaces: str, metadata: str = "", boot: str = "", kind: str = "qemu"
) -> str:
    """The XML of a small domain."""
    return f"""
<domain type='{kind}'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>128</memory>
<metadata>{metadata}</metadata><features><acpi/></features>
<os><type arch='x86_64'>hvm</type>{boot}</os>
<devices>{"".join(interfaces)}</devices></domain>"""
