"""A podman of a test's own: storage, settings, service, network and cgroups, of which nothing is left."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.conftest import require, run

_SETTINGS = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1024:4096"]
log_driver = "k8s-file"
[network]
network_backend = "netavark"
"""

_TALKER = """
import os, signal, socket, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
record = os.open("/talk/record", os.O_RDWR)
sent = int(os.pread(record, 20, 0))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    while not told:
        if os.path.exists("/talk/go"):
            s.sendto(bytes(72), (sys.argv[1], int(sys.argv[2])))
            sent += 1
            os.pwrite(record, b"%20d" % sent, 0)
        time.sleep(0.002)
"""
"""The process of a container: while told to, it sends datagrams of 100 bytes of IP, and records how many.

The record goes on where a container starts again, and is right whenever SIGTERM has ended it.
"""


class PodmanSite:
    """Runs containers of busybox whose cgroups lie in `cgroup`; the host's network is that of `netns`."""

    def __init__(self, directory: Path, netns: Path, cgroup: Path) -> None:
        for command, package in (
            ("podman", "podman"),
            ("runc", "runc"),
            ("conmon", "conmon"),
            ("iptables", "iptables"),
            ("busybox", "busybox-static"),
        ):
            require(shutil.which(command), f"needs {command}: apt-get install {package}")
        require(Path("/usr/lib/podman/netavark").exists(), "needs netavark: apt-get install netavark")
        self._directory = directory
        self._netns = netns
        self._cgroup = cgroup
        self._service: subprocess.Popen[bytes] | None = None
        self.socket = directory / "api.sock"
        (directory / "containers.conf").write_text(_SETTINGS)
        self._make_rootfs()

    def _make_rootfs(self) -> None:
        for name in ("dev", "etc", "proc", "sys", "tmp", "run", "busybox"):
            (self._rootfs / name).mkdir(parents=True)
        shutil.copy2(shutil.which("busybox") or "", self._rootfs / "busybox")
        for name in ("bin", "lib", "lib64"):
            if (link := Path("/") / name).is_symlink():
                (self._rootfs / name).symlink_to(link.readlink())

    @property
    def _rootfs(self) -> Path:
        return self._directory / "rootfs"

    def _command(self, *arguments: str) -> list[str]:
        places = (("root", "root"), ("runroot", "run"), ("tmpdir", "tmp"), ("network-config-dir", "net"))
        flags = [f"--{flag}={self._directory / place}" for flag, place in places]
        return ["nsenter", f"--net={self._netns}", "podman", *flags, "--storage-driver=vfs", *arguments]

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"CONTAINERS_CONF": str(self._directory / "containers.conf")}

    async def podman(self, *arguments: str) -> str:
        """Run podman, which must succeed; its output."""
        return await asyncio.to_thread(self._podman, *arguments)

    def _podman(self, *arguments: str) -> str:
        done = subprocess.run(
            self._command(*arguments),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    async def run(self, name: str, *options: str, command: tuple[str, ...] = ()) -> str:
        """Start a container that sleeps, unless told otherwise; its id."""
        command = command or ("/busybox/busybox", "sleep", "3000")
        where = (f"--cgroup-parent=/{self._cgroup.name}", "--stop-signal=KILL")
        return await self.podman(
            "run", "-d", f"--name={name}", *where, *options, "--rootfs", str(self._rootfs), *command
        )

    async def talker(
        self, name: str, target: tuple[str, int], *options: str, silent: bool = False
    ) -> "Talker":
        """Start a container that sends to an address from its first moment on, unless `silent`."""
        talk = self._directory / f"talk-{secrets.token_hex(4)}"
        talk.mkdir()
        (talk / "record").write_text("0".rjust(20))
        (talk / "talk.py").write_text(_TALKER)
        if not silent:
            (talk / "go").touch()
        python = Path(sys.executable).resolve()
        mounts = [f"--volume={path}:{path}:ro" for path in {Path("/usr"), python.parent.parent}]
        number = await self.run(
            name,
            *("--stop-signal=TERM", f"--volume={talk}:/talk", *mounts, *options),
            command=(str(python), "-I", "-S", "/talk/talk.py", target[0], str(target[1])),
        )
        return Talker(number, talk)

    # -- the service ---------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Start the API service; whoever asks has to wait for its socket."""
        self.socket.unlink(missing_ok=True)
        with (self._directory / "service.log").open("ab") as log:
            self._service = subprocess.Popen(
                self._command("system", "service", "--time=0", f"unix://{self.socket}"),
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def kill_service(self) -> None:
        """As a crash would: its socket stays, and so do the containers."""
        if self._service:
            self._service.kill()
            self._service.wait()
            self._service = None

    def close(self) -> None:
        """Remove everything, whatever state it is in."""
        self.kill_service()
        try:
            for number in self._podman("ps", "--all", "--quiet").split():
                self._podman("rm", "--force", "--time=0", "--depend", "--ignore", number)
        finally:
            for process in self._left_over():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            for line in Path("/proc/self/mounts").read_text().splitlines():
                if (target := line.split()[1]).startswith(f"{self._directory}/"):
                    run("umount", "--lazy", target)
            for place in _cgroup_mounts():
                for directory, _, _ in os.walk(place / self._cgroup.name, topdown=False):
                    if Path(directory) != self._cgroup:
                        _remove(Path(directory))

    def _left_over(self) -> list[int]:
        """Monitors of this site's containers that have not ended with them."""
        found = []
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = cmdline.read_bytes().split(b"\0")
                if words[0].endswith(b"conmon") and any(os.fsencode(self._directory) in w for w in words):
                    found.append(int(cmdline.parent.name))
        return found


class Talker:
    """A container that sends, and its own record of what it has sent."""

    def __init__(self, number: str, talk: Path) -> None:
        self.id = number
        self._talk = talk

    def talk(self) -> None:
        """Begin to send, or go on."""
        (self._talk / "go").touch()

    def hush(self) -> None:
        """Send no more, but for the datagram that may be on its way now."""
        (self._talk / "go").unlink()

    @property
    def sent(self) -> int:
        """Datagrams."""
        return int((self._talk / "record").read_text())


def _cgroup_mounts() -> list[Path]:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(target) for _, target, kind, *_ in lines if kind in ("cgroup", "cgroup2")]


def _remove(cgroup: Path) -> None:
    """End whatever is still in it; a process that was killed stays there for a moment."""
    end = time.monotonic() + 15
    while cgroup.exists():
        with suppress(OSError):
            for process in (cgroup / "cgroup.procs").read_text().split():
                os.kill(int(process), signal.SIGKILL)
        try:
            cgroup.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
