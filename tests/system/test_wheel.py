"""The wheel: it installs where there is no compiler, stays small, and its probe counts."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require

ROOT = Path(__file__).parents[2]
MEGABYTE = 1 << 20
SMALL_INSTALL = 120 * MEGABYTE

# Everything a probe does to the kernel, in an environment that has only what the wheel brought.
_START = """
import asyncio, sys
from pathlib import Path
from eastwest.bus.client import Bus, BusConfig
from eastwest.meter import pins
from eastwest.probe.config import ProbeConfig
from eastwest.probe.probe import Probe

async def main():
    state = Path(sys.argv[1])
    config = ProbeConfig(state_dir=state, accounts=64, flow_entries=1024)
    async with Bus(BusConfig(url="nats://127.0.0.1:9")) as bus, Probe(config, [], bus) as probe:
        print("boot", probe.boot)

try:
    asyncio.run(main())
finally:
    print("removed", pins.remove(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty virtual environment with the wheel and what it depends on."""
    require(os.geteuid() == 0, "needs root: sudo make test")
    place = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.executable).parent / "uv"
    require(uv.exists(), "needs uv in the environment: make setup")
    shutil.copytree(
        ROOT, place / "tree", ignore=shutil.ignore_patterns(".venv", ".git", "*_cache", "build", "dist")
    )
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place / "raw"]
    subprocess.run(build, cwd=place / "tree", check=True, capture_output=True)
    (raw,) = (place / "raw").glob("*.whl")
    tools = os.environ | {"PATH": f"{uv.parent}:{os.environ['PATH']}"}
    repair = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", place / "wheel", raw]
    subprocess.run(repair, env=tools, check=True, capture_output=True)
    (wheel,) = (place / "wheel").glob("*.whl")
    subprocess.run([uv, "venv", "--quiet", place / "venv"], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", place / "venv/bin/python", wheel]
    subprocess.run(install, env=_bare(), check=True)
    yield place / "venv"


def _bare() -> dict[str, str]:
    """An environment with no compiler, but with what the machine says of its package index."""
    return {key: value for key, value in os.environ.items() if key != "PATH"} | {"PATH": "/nonexistent"}


def test_the_small_install_is_small(environment: Path) -> None:
    """The wheel and its dependencies without extras take less than 120 MB."""
    size = sum(
        file.stat().st_size for file in environment.rglob("*") if file.is_file() and not file.is_symlink()
    )
    assert MEGABYTE < size < SMALL_INSTALL


def test_the_probe_starts_without_a_compiler(environment: Path, tmp_path: Path) -> None:
    """Programs load and hooks attach with nothing on PATH, and nothing is left behind."""
    python = environment / "bin/python"
    run = subprocess.run(
        [python, "-P", "-c", _START, tmp_path / "state"],
        check=False,
        env=_bare(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("boot ")
    assert run.stdout.endswith("removed True\n")
    assert not (tmp_path / "state/bpf").is_mount()
