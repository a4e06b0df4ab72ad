"""The machine that `doctor` looks at: its files, and the answers of its tools."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "degraded", "missing"]

_TOOL_SECONDS = 5.0


@dataclass(frozen=True)
class Check:
    """One finding. missing: eastwest cannot work; degraded: it works with what `detail` says lacking."""

    check: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """`root`: where its file tree begins; a test gives one of its own. `state_dir`: eastwest's on it."""

    root: Path = Path("/")
    state_dir: Path = Path("/var/lib/eastwest")

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """A file's content; empty if it cannot be read."""
        return self.data(name).decode(errors="replace")

    def data(self, name: str) -> bytes:
        try:
            return self.path(name).read_bytes()
        except OSError:
            return b""

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def find(self, pattern: str) -> Iterator[Path]:
        """Paths that match; none where there is no such directory."""
        yield from sorted(self.root.glob(pattern.lstrip("/")))

    def ask(self, *command: str) -> str:
        """What a tool prints; empty if it is absent, fails or does not answer."""
        if self.root != Path("/"):
            return ""  # the tools would tell of another machine
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=_TOOL_SECONDS,
                check=False,
                text=True,
                env=os.environ | {"LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout if done.returncode == 0 else ""
