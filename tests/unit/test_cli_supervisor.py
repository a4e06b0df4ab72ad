"""The supervisor with real, tiny children."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eastwest.cli.logfile import LogFile
from eastwest.cli.supervisor import Child, Supervisor, SupervisorConfig
from tests.conftest import require

CAPABILITIES = ("net_admin", "bpf")
NET_ADMIN, BPF = 1 << 12, 1 << 39


@pytest.fixture(autouse=True)
def privileges() -> None:
    require(os.geteuid() == 0, "needs root to drop privileges: sudo make test")
    require(shutil.which("setpriv"), "needs setpriv: apt-get install util-linux")


class Stage:
    """A supervisor's surroundings: its configuration, what it said, what its children wrote."""

    def __init__(self, directory: Path, stop_seconds: float = 10.0) -> None:
        self.directory = directory
        self.said: list[str] = []
        self.config = SupervisorConfig(
            log_dir=directory / "log", first_delay=0.01, longest_delay=0.05, stop_seconds=stop_seconds
        )

    def shell(self, name: str, script: str, capabilities: tuple[str, ...] = ()) -> Child:
        return Child(name, ["sh", "-c", f"cd {self.directory}; {script}"], capabilities)

    def supervisor(self, *children: Child) -> Supervisor:
        return Supervisor(self.config, children, self.said.append)

    def text(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition; fail if it does not hold in time."""
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_children_end_in_the_opposite_order(stage: Stage) -> None:
    """Started first, ended last; each is waited for before the next is told."""

    def child(name: str) -> Child:
        return stage.shell(
            name,
            f"trap 'echo {name} >> ended; exit' TERM; echo {name} >> begun; while :; do sleep 0.01; done",
        )

    async def scenario() -> None:
        async with stage.supervisor(child("a"), child("b"), child("c")) as supervisor:
            await until(lambda: len(stage.text("begun").split()) == 3)
            pids = supervisor.pids()
            assert set(pids) == {"a", "b", "c"}
        assert stage.text("ended").split() == ["c", "b", "a"]
        assert all(map(gone, pids.values()))

    asyncio.run(scenario())
    assert stage.said == []


def test_dead_child_is_started_again(stage: Stage) -> None:
    """With a word of why, and with growing delays up to the longest."""

    async def scenario() -> None:
        async with stage.supervisor(stage.shell("a", "echo x >> begun; echo no luck; exit 3")):
            await until(lambda: len(stage.said) >= 4)

    asyncio.run(scenario())
    delays = ["0.01", "0.02", "0.04", "0.05"]
    assert stage.said[:4] == [
        f"a ended with exit code 3 (no luck); starting it again in {delay} s" for delay in delays
    ]
    assert len(stage.text("begun").split()) >= 4


def test_same_failure_is_told_once(stage: Stage) -> None:
    """The reason once, each new start in a line."""

    async def scenario() -> None:
        async with stage.supervisor(stage.shell("a", "echo 'eastwest: no bus; start it'; exit 1")):
            await until(lambda: len(stage.said) >= 3)

    asyncio.run(scenario())
    assert stage.said[:3] == [
        "a: no bus; start it",
        "a ended with exit code 1; starting it again in 0.01 s",
        "a ended with exit code 1; starting it again in 0.02 s",
    ]


def test_killed_child_is_started_again_and_others_are_left_alone(stage: Stage) -> None:
    """The signal is named; the neighbour keeps its process."""

    async def scenario() -> None:
        async with stage.supervisor(
            stage.shell("a", "exec sleep 60"), stage.shell("b", "exec sleep 60")
        ) as supervisor:
            await until(lambda: len(supervisor.pids()) == 2)
            before = supervisor.pids()
            os.kill(before["a"], signal.SIGKILL)
            await until(lambda: supervisor.pids().get("a", before["a"]) != before["a"])
            assert supervisor.pids()["b"] == before["b"]

    asyncio.run(scenario())
    assert stage.said == ["a was ended by SIGKILL; starting it again in 0.01 s"]


def test_death_is_noticed_though_a_grandchild_holds_the_output(stage: Stage) -> None:
    """What a child leaves behind does not hide that it has ended."""
    child = stage.shell("a", "echo x >> begun; sleep 60 & echo $! >> left; exit 1")

    async def scenario() -> None:
        async with stage.supervisor(child):
            await until(lambda: len(stage.text("begun").split()) >= 2)

    try:
        asyncio.run(scenario())
    finally:
        for pid in stage.text("left").split():
            os.kill(int(pid), signal.SIGKILL)


def test_deaf_child_is_killed(tmp_path: Path) -> None:
    """One that ignores SIGTERM is killed when its time is over, and that is said."""
    stage = Stage(tmp_path, stop_seconds=0.2)
    deaf = stage.shell("a", "trap '' TERM; echo x >> begun; while :; do sleep 0.01; done")

    async def scenario() -> None:
        async with stage.supervisor(deaf) as supervisor:
            await until(lambda: stage.text("begun"))
            pid = supervisor.pids()["a"]
        assert gone(pid)

    asyncio.run(scenario())
    assert stage.said == ["a did not end within 0.2 s; killed"]


def test_program_that_cannot_be_started(stage: Stage) -> None:
    """It is told, again and again, and the rest goes on."""

    async def scenario() -> None:
        nothing = Child("a", [str(stage.directory / "nothing")])
        async with stage.supervisor(nothing, stage.shell("b", "exec sleep 60")) as supervisor:
            await until(lambda: len(stage.said) >= 2 and "b" in supervisor.pids())

    asyncio.run(scenario())
    assert "No such file or directory" in stage.said[0]


def test_child_has_its_privileges_and_no_more(stage: Stage) -> None:
    """Exactly the named capabilities, none to be gained, none of our settings in the environment."""
    script = "cat /proc/self/status > {0}.new; env > {0}.env; mv {0}.new {0}; exec sleep 60"

    async def scenario() -> None:
        async with stage.supervisor(
            stage.shell("none", script.format("none")),
            stage.shell("some", script.format("some"), CAPABILITIES),
        ):
            await until(lambda: stage.text("none") and stage.text("some"))

    os.environ["EASTWEST_TEST"] = "x"
    try:
        asyncio.run(scenario())
    finally:
        del os.environ["EASTWEST_TEST"]
    for name, allowed in (("none", 0), ("some", NET_ADMIN | BPF)):
        status = dict(line.split(":\t", 1) for line in stage.text(name).splitlines() if ":\t" in line)
        sets = {key: int(status[key], 16) for key in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")}
        assert sets == {"CapPrm": allowed, "CapEff": allowed, "CapBnd": allowed, "CapInh": 0, "CapAmb": 0}
        assert status["NoNewPrivs"] == "1"
        assert "EASTWEST_" not in stage.text(f"{name}.env")


def test_output_is_logged_and_errors_are_repeated(stage: Stage) -> None:
    """All of it in the log, also what has no end of line or is very long; errors on stderr, too."""
    script = (
        "echo '10:00 INFO x: fine'; echo '10:00 ERROR x: bad'; echo '[1] [ERR] worse' >&2;"
        "head -c 200000 /dev/zero | tr '\\0' z; echo; printf 'eastwest: last'; echo x > done; exec sleep 60"
    )

    async def scenario() -> None:
        async with stage.supervisor(stage.shell("a", script)):
            await until(lambda: stage.text("done"))

    asyncio.run(scenario())
    assert stage.said == ["a: bad", "a: worse", "a: last"]
    log = stage.text("log/a.log")
    assert log.startswith("10:00 INFO x: fine\n10:00 ERROR x: bad\n[1] [ERR] worse\n")
    assert log.count("z") == 200_000
    assert log.endswith("eastwest: last")


def test_children_die_with_their_supervisor(stage: Stage) -> None:
    """However it dies: even SIGKILL leaves none behind."""
    program = f"""
import asyncio
from pathlib import Path
from eastwest.cli.supervisor import *
async def main():
    config = SupervisorConfig(log_dir=Path({str(stage.directory)!r}) / "log")
    async with Supervisor(config, [Child("a", ["sleep", "600"])], print) as supervisor:
        while not supervisor.pids():
            await asyncio.sleep(0.01)
        # setpriv has become what it was to start: from then on the kernel ties them.
        while Path(f"/proc/{{supervisor.pids()['a']}}/comm").read_text() != "sleep\\n":
            await asyncio.sleep(0.01)
        print(supervisor.pids()["a"], flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
        parent.wait()
    asyncio.run(until(lambda: gone(pid)))


def test_log_is_bounded(tmp_path: Path) -> None:
    """The newest lines stay, in the file and the one before it; never more than allowed."""
    path = tmp_path / "a.log"
    with LogFile(path, 1010) as log:
        for number in range(1000):
            log.write(f"line {number:04}\n".encode())
    kept = (tmp_path / "a.log.1").read_text() + path.read_text()
    assert len(kept) <= 1010
    assert kept.endswith("line 0999\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.log", "a.log.1"]
    with LogFile(path, 1010) as log:
        log.write(b"more\n")
    assert path.read_text().endswith("line 0999\nmore\n")
