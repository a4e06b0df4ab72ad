"""The wheel: it installs where there is no compiler, stays small, and its probe counts."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.system.user_site import until

ROOT = Path(__file__).parents[2]
MEGABYTE = 1 << 20
SMALL_INSTALL = 120 * MEGABYTE


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


def test_the_probe_starts_without_a_compiler(
    environment: Path, tmp_path: Path, netns: Path, cgroup: Path
) -> None:
    """Its role loads programs and attaches hooks with nothing on PATH; `down` leaves nothing behind."""
    eastwest = [environment / "bin/python", "-P", "-m", "eastwest"]
    state, config = tmp_path / "state", tmp_path / "eastwest.toml"
    config.write_text(
        f'[probe]\nnetns = "{netns}"\ncgroup_root = "{cgroup}"\n[bus]\nurl = "nats://127.0.0.1:9"\n'
    )
    role = [*eastwest, "probe", "--config", config, "--state-dir", state]
    with subprocess.Popen(role, env=_bare(), stderr=subprocess.PIPE, text=True) as probe:
        try:
            until((state / "bpf/cgroup_egress").exists, "its hooks are attached and pinned")
            probe.terminate()
            _, said = probe.communicate(timeout=30)
            assert probe.returncode == 0, said
        finally:
            probe.kill()
    down = subprocess.run(
        [*eastwest, "down", "--state-dir", state], env=_bare(), capture_output=True, text=True, check=False
    )
    assert (down.returncode, down.stderr) == (0, "")
    assert not (state / "bpf").is_mount()
