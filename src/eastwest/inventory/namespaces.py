"""Network namespaces: whose one is, told from its name or from the processes in it.

Nothing here keeps a namespace open: a descriptor or socket in it would keep it alive after its owner
removed it.
"""

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from eastwest.errors import KernelError
from eastwest.inventory.model import Found, readable
from eastwest.inventory.processes import inode_of, network_of, pids
from eastwest.inventory.residents import Residents
from eastwest.kernel.netns import cookie, host_boot

_NAMED = Path("/run/netns")
_DOCKER = Path("/run/docker/netns")
_ENGINE = re.compile(r"(netns|cni)-[0-9a-f]{8}-[0-9a-f-]{27}")
"""What podman and container network plug-ins call the namespaces that they make."""

_TELLING_NS = 10**9
_SETTLE_SECONDS = 2.0
"""An engine makes a namespace first and its container's process after: nobody knows whose it is till then."""


@dataclass(frozen=True)
class Namespace:
    """A namespace as the kernel knows it; owner None: not known yet."""

    cookie: int
    owner: Found | None


class Namespaces:
    """Looks namespaces up by the number that the scope has for them."""

    def __init__(self, netlink: AsyncIPRoute) -> None:
        self._netlink = netlink
        self._paths: dict[int, Path] = {}
        self._asked: dict[Path, tuple[int, int, int]] = {}
        """Path → the scope's number for a namespace, and what tells it from the next of that name."""

        self._residents = Residents()
        self._first_seen: dict[int, float] = {}

    async def look(self, nsid: int) -> Namespace | None:
        """What is known of a namespace now; None where it is gone, or nothing leads to it yet."""
        path = await self._path(nsid)
        if path is None:
            return None
        try:
            number = cookie(path)
        except KernelError:
            return None  # its last process has just ended
        first = self._first_seen.setdefault(number, time.monotonic())
        return Namespace(number, await self._owner(path, number, first + _SETTLE_SECONDS))

    def forget(self, there: set[int]) -> None:
        """Keep nothing of namespaces but of these, by cookie."""
        self._first_seen = {number: at for number, at in self._first_seen.items() if number in there}

    async def _path(self, nsid: int) -> Path | None:
        path = self._paths.get(nsid)
        if path is not None and await self._nsid(path) == nsid:
            return path
        await self._read_names()
        if (path := self._paths.get(nsid)) is not None:
            return path
        for path in _process_namespaces():
            if await self._nsid(path) == nsid:
                return path
        return None

    async def _read_names(self) -> None:
        """Ask only for what is new: where there are thousands, one comes every moment."""
        asked: dict[Path, tuple[int, int, int]] = {}
        for path in _named_namespaces():
            before, born = self._asked.get(path), _born(path)
            if before is None or before[1:] != born:
                asked[path] = await self._nsid(path), *born
            else:
                asked[path] = before
        self._paths = {nsid: path for path, (nsid, *_) in asked.items() if nsid != -1}
        # One without a number may get one; one of the last ticks of the clock is not told from the next.
        old = time.time_ns() - _TELLING_NS
        self._asked = {path: one for path, one in asked.items() if one[0] != -1 and one[2] < old}

    async def _nsid(self, path: Path) -> int:
        """The scope's number for a namespace, -1 where it has none or the namespace is gone."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1
        try:
            answer = await self._netlink.get_netnsid(fd=descriptor)
        except NetlinkError:
            return -1
        finally:
            os.close(descriptor)
        return -1 if answer["nsid"] in (None, 0xFFFFFFFF) else int(answer["nsid"])

    async def _owner(self, path: Path, number: int, settles_at: float) -> Found | None:
        """Whose a namespace is, as far as the kernel can tell.

        One that a person named is theirs. An unnamed one goes by its cookie, which is never given twice in
        one boot of the host; inodes are, at once. The host's own is no workload.
        """
        inode = inode_of(path)
        if path.parent == _NAMED and not _ENGINE.fullmatch(path.name):
            return _named(path)
        if inode == inode_of(network_of(1)):
            return None
        if container := await self._residents.container(inode):
            return Found(f"container:{container}", "container", container[:12], nameless=True)
        if self._residents.read_at < settles_at:
            return None
        if path.parent == _NAMED:
            return _named(path)
        name = f"netns-{number}"
        return Found(f"netns:{host_boot()}:{name}", "netns", name)


def _named(path: Path) -> Found:
    name = readable(path.name)
    return Found(f"netns:{name}", "netns", name)


def _named_namespaces() -> list[Path]:
    names = []
    for place in (_DOCKER, _NAMED):
        with suppress(OSError):  # it is not there, or closed to this user
            names += list(place.iterdir())
    return names


def _born(path: Path) -> tuple[int, int]:
    """Inode, which is soon given again, and when the namespace got it, ns; 0: it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_ctime_ns


def _process_namespaces() -> list[Path]:
    """One path for each network namespace that a process is in."""
    paths = {inode_of(path): path for path in map(network_of, pids())}
    return [path for inode, path in paths.items() if inode]
