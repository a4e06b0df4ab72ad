"""The machine that is measured on: how busy it is, what a process takes, whether it is quiet enough."""

import mmap
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

QUIET = 0.08
"""Share of the machine that may be busy with other things."""

_LOOK_SECONDS = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MADV_POPULATE_WRITE = 23  # include/uapi/asm-generic/mman-common.h
_IDLE = frozenset({3, 4})  # idle, iowait: columns of /proc/stat


def load() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]


def share() -> float:
    """Of all CPUs' time, how much they are busy just now."""
    return idle(_LOOK_SECONDS) / (os.cpu_count() or 1)


def until_quiet(seconds: float) -> bool:
    """Wait for a quiet moment; False where none came. The load of a minute would count our own last work."""
    end = time.monotonic() + seconds
    while share() > QUIET:
        if time.monotonic() > end:
            return False
    return True


@contextmanager
def section(title: str) -> Iterator[None]:
    """A heading with the conditions of the run, before and after. Ended by SIGTERM, all is cleared away."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    print(
        f"## {title}\n\n{now} UTC, Linux {platform.release()}, {os.cpu_count()} CPUs, {_conditions()}\n",
        flush=True,
    )
    yield
    print(f"(at the end: {_conditions()})\n", flush=True)


def _conditions() -> str:
    return f"load {load():.2f}, {100 * share():.0f} % busy with other things"


def busy() -> float:
    """CPU seconds that all CPUs together were not idle, interrupts included, from some moment on.

    By the clock and the time they idled, which the kernel measures. The other columns of /proc/stat are
    samples taken at ticks, and miss whoever is woken by a tick, as readers of a packet socket are.
    """
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    idled = sum(int(fields[column]) for column in _IDLE) / _TICKS
    return time.monotonic() * (os.cpu_count() or 1) - idled


@dataclass
class Usage:
    """CPU seconds and wall seconds of what ran within `measured`."""

    cpu: float = 0.0
    seconds: float = 0.0
    processes: dict[str, float] = field(default_factory=dict)


@contextmanager
def measured(processes: dict[str, int] | None = None) -> Iterator[Usage]:
    """The whole machine's busy time while the body runs, and the CPU time of some processes (name → pid)."""
    usage, pids = Usage(), processes or {}
    before, started = busy(), time.monotonic()
    theirs = {name: cpu(pid) for name, pid in pids.items()}
    yield usage
    usage.cpu, usage.seconds = busy() - before, time.monotonic() - started
    usage.processes = {name: cpu(pid) - theirs[name] for name, pid in pids.items()}


def warm(size: int) -> None:
    """Have so many bytes of free memory at hand, for what is written to files next.

    A virtual machine gives memory that nobody uses back to its host, and each page that the page cache then
    takes costs several times a copy of it, whoever writes.
    """
    with mmap.mmap(-1, size) as memory:
        memory.madvise(_MADV_POPULATE_WRITE)


def idle(seconds: float) -> float:
    """CPU seconds per second that the machine is busy while nothing is measured."""
    with measured() as usage:
        time.sleep(seconds)
    return usage.cpu / usage.seconds


def cpu(pid: int) -> float:
    """CPU seconds of a process, all its threads."""
    return sum(_times(pid)) / _TICKS


def user(pid: int) -> float:
    """CPU seconds of a process in user space, all its threads."""
    return _times(pid)[0] / _TICKS


def _times(pid: int) -> tuple[int, int]:
    """Ticks in user space and in the kernel."""
    # What stands in parentheses is the name, which may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def descriptors(pid: int) -> int:
    """Open descriptors, without those that a thread keeps of its own figures (chDB: three for each)."""
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found += "/task/" not in str(descriptor.readlink())
    return found


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
