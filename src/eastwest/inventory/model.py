"""What discovery finds."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A workload as its source knows it. `identity` is the same whenever the workload comes back."""

    identity: str
    kind: str
    name: str
    cgroup: str = ""


@dataclass(frozen=True)
class HostPort:
    """The host's end of a workload's network interface; owner None: not known yet."""

    ifindex: int
    name: str
    mac: str
    owner: Found | None = None


def readable(name: str | bytes) -> str:
    """A name as anybody may have made it, fit for a database and a terminal: escaped where not printable."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
