"""What /proc says of a process."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Birth(NamedTuple):
    """When a process was started, in clock ticks since the host's boot (with it, a pid is never given twice),
    and by whom."""

    started: int
    parent: int


def pids() -> Iterator[int]:
    """Every process there is."""
    return (int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit())


def birth(pid: int) -> Birth | None:
    """None where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # proc(5), fields 22 and 4. Its name, in parentheses before them, may hold any byte.
    fields = stat.rpartition(b")")[2].split()
    return Birth(int(fields[19]), int(fields[1]))


def cgroup_of(pid: int) -> str | None:
    """The cgroup v2 of a process, as a path from the hierarchy's root; None where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_bytes().splitlines()
    except OSError:
        return None
    return next((os.fsdecode(line[3:]) for line in lines if line.startswith(b"0::")), None)


def network_of(pid: int) -> Path:
    """What stands for a process's network namespace."""
    return Path(f"/proc/{pid}/ns/net")


def inode_of(path: Path) -> int:
    """Of a namespace; 0: it is gone."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0
