"""eastwest as its user runs it, in a place of the bench, with the processes it consists of."""

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eastwest.meter import pins
from eastwest.meter.check import cgroup_mount

_EASTWEST = [sys.executable, "-m", "eastwest"]
_READY_SECONDS = 60.0


class Site:
    """A state directory with its settings; `settings`: more lines of the section [probe]."""

    def __init__(self, directory: Path, netns: Path, cgroup: Path, settings: str = "") -> None:
        self.state = directory / "state"
        self.config = directory / "eastwest.toml"
        self.config.write_text(
            f'[probe]\nhost = "bench"\nnetns = "{netns}"\ncgroup_root = "{cgroup}"\n'
            f'state_dir = "{self.state}"\n{settings}\n'
        )
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = int(server.getsockname()[1])

    @contextmanager
    def up(self) -> Iterator["Site"]:
        """All roles, until the body ends; then nothing is left in the kernel."""
        with self._running(
            "up", "--listen", f"127.0.0.1:{self.port}", "--config", str(self.config)
        ) as process:
            assert process.stdout is not None
            answers, _, _ = select.select([process.stdout], [], [], _READY_SECONDS)
            if not answers or not process.stdout.readline().startswith("eastwest is ready"):
                raise RuntimeError(f"eastwest is not ready; see {self.state / 'log'}")
            yield self

    @contextmanager
    def probe(self) -> Iterator["Site"]:
        """The probe alone: what it counts goes to its outbox."""
        with self._running("probe", "--config", str(self.config)):

            def metered() -> bool:
                return any(pins.directory(self.state).glob("port-*"))

            self.until(metered, "a port is metered")
            yield self

    @contextmanager
    def _running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("EASTWEST_")}
        with self.config.with_suffix(".err").open("w") as errors:
            process = subprocess.Popen(
                [*_EASTWEST, *arguments], env=clean, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            try:
                yield process
            finally:
                process.terminate()
                process.wait(30)
                subprocess.run(
                    [*_EASTWEST, "down", "--state-dir", str(self.state)], env=clean, check=True, stdout=errors
                )

    def run(self, *arguments: str) -> str:
        """A command as its user gives it; what it prints."""
        environment = {**os.environ, "EASTWEST_URL": f"http://127.0.0.1:{self.port}"}
        command = [*_EASTWEST, *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=60) as answer:
            return json.load(answer)

    def until(
        self, condition: Callable[[], Any], what: str, seconds: float = _READY_SECONDS, pause: float = 0.1
    ) -> Any:
        """Wait for a condition. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds:g} s: {what}")
            time.sleep(pause)
        return value

    def roles(self) -> dict[str, int]:
        """Name → process id."""
        found = {}
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = cmdline.read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(word.startswith((f"{self.state}/", str(self.config))) for word in words):
                if "nats-server" in words[0]:
                    found["nats-server"] = int(cmdline.parent.name)
                elif "eastwest" in words:  # others run for a moment: what a role asks of the system
                    found[words[words.index("eastwest") + 1]] = int(cmdline.parent.name)
        return found


@contextmanager
def site(netns: Path, name: str, settings: str = "") -> Iterator[Site]:
    """A site whose directory and cgroup end with it."""
    cgroup = cgroup_mount() / f"{name}-site"
    cgroup.mkdir()
    try:
        with tempfile.TemporaryDirectory(prefix="eastwest-bench-") as directory:
            yield Site(Path(directory), netns, cgroup, settings)
    finally:
        cgroup.rmdir()
