"""Containers of the lab: podman with storage, settings and service of the lab's own, in the lab's directory.

They use the host's network, so that two of them share one address. There is no image to fetch: their root is
a directory with the host's /usr in it, which can only be read.
"""

import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path

from eastwest.errors import ConfigError, EastwestError
from eastwest.lab.crew import DIE_WITH_PARENT, SCRIPT
from eastwest.lab.plan import Container, Plan
from eastwest.lab.switch import run, until

PACKAGES = "podman runc"
_SERVICE_SECONDS = 30.0
_LONGEST_RUNROOT = 50
"""Of podman's own making: UNIX sockets lie below it."""

_SETTINGS = """[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1024:4096"]
log_driver = "none"
"""


def lacking() -> str:
    """Why no containers can be made here, with the remedy; empty: they can."""
    missing = [command for command in ("podman", "runc", "conmon") if not shutil.which(command)]
    return f"{missing[0]} is not installed: apt-get install {PACKAGES}" if missing else ""


class Podman:
    """`directory` is where all of it lives; made by `prepare`."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self._directory = directory
        self._parent = f"/{plan.slice}/containers"
        self._service: asyncio.subprocess.Process | None = None
        self.socket = directory / "api.sock"
        """Where its API is served."""

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"CONTAINERS_CONF": str(self._directory / "containers.conf")}

    def _command(self, *arguments: str) -> list[str]:
        places = (("root", "root"), ("runroot", "run"), ("tmpdir", "tmp"), ("network-config-dir", "net"))
        flags = [f"--{flag}={self._directory / place}" for flag, place in places]
        return ["podman", *flags, "--storage-driver=vfs", *arguments]

    def command(self, container: Container) -> list[str]:
        """What runs a container's actor, and ends with it."""
        python = Path(sys.executable).resolve()
        mounts = {Path("/usr"), Path(sys.base_prefix).resolve()}
        labels = {"eastwest.tenant": container.tenant, "eastwest.service": container.service}
        return self._command(
            "run",
            "--rm",
            "--interactive",
            "--network=host",
            f"--name={container.name}",
            f"--cgroup-parent={self._parent}",
            *(f"--label={key}={value}" for key, value in labels.items()),
            *(f"--volume={path}:{path}:ro" for path in sorted(mounts)),
            f"--volume={SCRIPT}:/actor.py:ro",
            "--rootfs",
            str(self._directory / "rootfs"),
            *(str(python), "-I", "-S", "/actor.py", "{}"),
        )

    def prepare(self) -> None:
        """Make the directory with the containers' root and settings. ConfigError: its path is too long."""
        if len(str(self._directory / "run")) > _LONGEST_RUNROOT:
            raise ConfigError(f"podman refuses {self._directory}: too long", "choose a shorter --state-dir")
        rootfs = self._directory / "rootfs"
        for name in ("dev", "etc", "proc", "sys", "tmp", "run", "usr"):
            (rootfs / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64"):
            (rootfs / name).symlink_to(f"usr/{name}")
        (self._directory / "containers.conf").write_text(_SETTINGS)

    async def serve(self) -> None:
        """Serve the API, at which names and labels can be asked for."""
        log_file = self._directory / "service.log"
        with log_file.open("ab") as log:
            service = self._service = await asyncio.create_subprocess_exec(
                *DIE_WITH_PARENT,
                *self._command("system", "service", "--time=0", f"unix://{self.socket}"),
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await until(lambda: self.socket.exists() or service.returncode is not None, _SERVICE_SECONDS)
        if not self.socket.exists():
            said = log_file.read_text(errors="replace").strip().rpartition("\n")[2]
            raise EastwestError(f"podman's service does not start: {said[-300:]}")

    async def stop(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            with contextlib.suppress(ProcessLookupError):
                service.terminate()
            await service.wait()

    async def remove(self) -> None:
        """Remove the containers that are still there, whoever made them."""
        if await asyncio.to_thread((self._directory / "root").exists):
            everything = self._command("rm", "--all", "--force", "--time=0")
            await run(*everything, deadline=60.0, environment=self.environment)
