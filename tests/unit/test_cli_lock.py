"""One `up` per state directory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eastwest.cli.lock import PROBE_LOCK, ProbeLock, StateLock, holder
from eastwest.errors import ConfigError, RefusedError

HOLD = """
import sys
from pathlib import Path
from eastwest.cli.lock import StateLock
with StateLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of tmp_path."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_is_refused_and_told_who(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    """The refusal names the process that the kernel names."""
    assert holder(tmp_path) == owner.pid
    with pytest.raises(RefusedError, match=f"already runs on {tmp_path} .process {owner.pid}."):
        StateLock(tmp_path).__enter__()


def test_lock_goes_with_its_process(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    """A killed owner leaves no stale lock."""
    owner.kill()
    owner.wait()
    assert holder(tmp_path) is None
    with StateLock(tmp_path):
        pass


def test_nobody(tmp_path: Path) -> None:
    """No directory, no lock file: nobody."""
    assert holder(tmp_path / "none") is None
    assert holder(tmp_path) is None


def test_probe_has_a_lock_of_its_own(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    """The probe of `up` runs beside it; a probe's state directory is eastwest's for `up`, too."""
    with ProbeLock(tmp_path):
        assert holder(tmp_path) == owner.pid
    assert holder(tmp_path, PROBE_LOCK) is None


def test_directory_of_others_is_refused(tmp_path: Path) -> None:
    """A directory that already has a `log` of its own (/var) is no state directory."""
    (tmp_path / "log").mkdir()
    with pytest.raises(ConfigError, match="holds 'log' of somebody else's; choose another --state-dir"):
        StateLock(tmp_path).__enter__()
    assert os.listdir(tmp_path) == ["log"]  # noqa: PTH208
