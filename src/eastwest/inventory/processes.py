"""What /proc says of a process."""

import os
from pathlib import Path


def cgroup_of(pid: int) -> str | None:
    """The cgroup v2 of a process, as a path from the hierarchy's root; None where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_bytes().splitlines()
    except OSError:
        return None
    return next((os.fsdecode(line[3:]) for line in lines if line.startswith(b"0::")), None)
