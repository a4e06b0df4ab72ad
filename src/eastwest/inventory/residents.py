"""Which container a network namespace is of: the one whose process was in it first.

There may be thousands of both, and only reading all processes tells. So they are read for all namespaces at
once, off the event loop, and again only where a namespace is asked for of which nothing is known.
"""

import asyncio
import time
from typing import NamedTuple

from eastwest.inventory.containers import container_of
from eastwest.inventory.processes import birth, cgroup_of, inode_of, network_of, pids

_REST = 3
"""After processes were read comes a rest of so many times its length."""


class Resident(NamedTuple):
    """A process of a container; with `started` a pid is never given twice."""

    started: int
    pid: int
    container: str


class Residents:
    """The first of them in each namespace."""

    def __init__(self) -> None:
        self._first: dict[int, Resident] = {}
        self._rested = 0.0
        self.read_at = 0.0
        """When processes were last read (monotonic s)."""

    async def container(self, inode: int) -> str | None:
        """Its id; None: it is no container's, or not known yet."""
        if not self._holds(inode) and time.monotonic() >= self._rested:
            begun = time.monotonic()
            self._first = await asyncio.to_thread(_read)
            self.read_at, ended = begun, time.monotonic()
            self._rested = ended + _REST * (ended - begun)
        return self._first[inode].container if self._holds(inode) else None

    def _holds(self, inode: int) -> bool:
        """Whether what is known is of this namespace: the next one gets the same inode."""
        known = self._first.get(inode)
        return (
            known is not None and inode_of(network_of(known.pid)) == inode and _resident(known.pid) == known
        )


def _read() -> dict[int, Resident]:
    own = inode_of(network_of(1))
    first: dict[int, Resident] = {}
    for pid in pids():
        inode = inode_of(network_of(pid))
        if inode in (0, own) or (resident := _resident(pid)) is None:
            continue
        # A pod's members come after its own.
        first[inode] = min(resident, first.get(inode, resident))
    return first


def _resident(pid: int) -> Resident | None:
    container, born = container_of(cgroup_of(pid) or ""), birth(pid)
    return Resident(born.started, pid, container) if container and born else None
