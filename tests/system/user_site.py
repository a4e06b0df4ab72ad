"""eastwest as its user runs it, in a state directory and at a port of a test's own."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import readable

EASTWEST = [sys.executable, "-m", "eastwest"]
SECONDS = 120.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; fail if it does not hold in time."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"not within {SECONDS:g} s: {what}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Site:
    """A state directory with its settings and port, and the commands that a person gives there."""

    def __init__(self, directory: Path, netns: Path, cgroup: Path) -> None:
        self.state = directory / "state"
        self.port = free_port()
        self.config = directory / "eastwest.toml"
        self.config.write_text(
            f'[probe]\nhost = "h1"\nnetns = "{netns}"\ncgroup_root = "{cgroup}"\ninterval_seconds = 0.2\n'
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("EASTWEST_")}
        return clean | {"EASTWEST_URL": self.url}

    def up_command(self, *more: str) -> list[str]:
        where = ["--state-dir", str(self.state), "--listen", f"127.0.0.1:{self.port}"]
        return [*EASTWEST, "up", *where, "--config", str(self.config), *more]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*EASTWEST, *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def down(self, *more: str) -> str:
        done = self.run("down", "--state-dir", str(self.state), *more)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    @contextmanager
    def up(self, *more: str) -> Iterator[subprocess.Popen[str]]:
        """`eastwest up` until it is ready; killed at the end if it still runs."""
        errors = self.config.with_name("up.err")
        with (
            errors.open("w") as err,
            subprocess.Popen(
                self.up_command(*more), env=self.environment, stdout=subprocess.PIPE, stderr=err, text=True
            ) as process,
        ):
            try:
                assert process.stdout is not None
                ready = process.stdout.readline() if readable(process.stdout, SECONDS) else ""
                assert ready.startswith(f"eastwest is ready: {self.url} "), errors.read_text()
                yield process
            finally:
                process.kill()

    def roles(self) -> dict[str, int]:
        """Name → process id of this site's children."""
        found = {}
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = cmdline.read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(word.startswith(f"{self.state}/") for word in words):
                if "nats-server" in words[0]:
                    found["nats-server"] = int(cmdline.parent.name)
                elif "eastwest" in words:  # others run for a moment: what a role asks of the system
                    found[words[words.index("eastwest") + 1]] = int(cmdline.parent.name)
        return found
