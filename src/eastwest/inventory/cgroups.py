"""Cgroups as they come and go: kernel events, and a scan where events were missed or are not to be had."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np

from eastwest.errors import KernelError
from eastwest.inventory.containers import container_cgroup, container_of
from eastwest.inventory.model import Found, readable
from eastwest.kernel.events import RingBuffer
from eastwest.kernel.libbpf import Object
from eastwest.kernel.records import CGROUPS_OBJECT, record

log = logging.getLogger(__name__)

_SCAN_SECONDS = 30
_SETTLE_SECONDS = 3.0
"""A source may claim a cgroup some time after it was made."""

_EMULATOR = "machine-qemu*"
"""The scope of a VM's emulator: no workload of its own."""


class Cgroups:
    """The cgroups below `root`: id → path from the root, `/` for the root itself."""

    def __init__(
        self, mount: Path, root: Path, patterns: tuple[str, ...], changed: Callable[[], None]
    ) -> None:
        self._mount = mount
        self._root = root
        self._prefix = "/" + str(root.relative_to(mount)).strip(".")
        self._patterns = patterns
        self._changed = changed
        self._paths: dict[int, str] = {}
        self._by_path: dict[str, int] = {}
        self._entered: dict[int, float] = {}
        self._removed: dict[int, float] = {}
        self._owners: dict[int, Found | None] = {}
        self._workloads: set[int] = set()
        self._cut_path = False
        self._object: Object | None = None
        self._ring: RingBuffer | None = None
        self.problem: str | None = None

    async def __aenter__(self) -> "Cgroups":
        try:
            self._listen()
        except KernelError as e:
            self.problem = f"no cgroup events ({e}): new cgroups are found by scanning only"
            log.warning(self.problem)
        await self.scan()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._ring:
            asyncio.get_running_loop().remove_reader(self._ring.fd)
            self._ring.close()
        if self._object:
            self._object.close()

    def _listen(self) -> None:
        self._object = Object(CGROUPS_OBJECT)
        self._object.load()
        self._ring = RingBuffer(self._object.maps["cgroup_events"], self._event)
        asyncio.get_running_loop().add_reader(self._ring.fd, self._consume)
        self._object.attach("cgroup_made")
        self._object.attach("cgroup_removed")

    def _consume(self) -> None:
        assert self._ring is not None
        self._ring.consume()
        self._changed()

    def _event(self, data: bytes) -> None:
        event = np.frombuffer(data, record("cgroup_event"))[0]
        number, length = int(event["id"]), int(event["length"])
        if event["removed"]:
            self._remove(number)
        elif length >= event["path"].nbytes:
            self._cut_path = True  # longer than an event holds: the next scan reads it
        else:
            path = self._below_root(bytes(event["path"])[: max(length - 1, 0)])
            if path is not None:
                self._enter(number, path)

    def _below_root(self, path: bytes) -> str | None:
        prefix = os.fsencode(self._prefix.rstrip("/"))
        if path == prefix or path.startswith(prefix + b"/"):
            return readable(path[len(prefix) :]) or "/"
        return None

    def _enter(self, number: int, path: str) -> None:
        self._paths[number], self._by_path[path] = path, number
        self._entered[number] = time.monotonic()
        container = _container(path)
        lineage = [path, *map(str, PurePosixPath(path).parents)]
        owner = container or next((found for one in lineage if (found := self._found(one))), None)
        self._owners[number] = owner
        if owner and owner.cgroup == path:
            self._workloads.add(number)

    def _remove(self, number: int) -> None:
        # Its path stays for a while: its sockets, and what they have sent, may outlive it.
        if number in self._paths:
            self._removed.setdefault(number, time.monotonic())

    async def scan(self) -> None:
        """Compare with the file system; right also where an event was missed. A cgroup's id is its inode."""
        before = set(self._paths)
        there = await asyncio.to_thread(self._walk)
        gone = before - there.keys() - self._removed.keys()
        for number in gone:
            self._remove(number)
        fresh = there.keys() - self._paths.keys()
        for number in fresh:
            self._enter(number, there[number])
        if fresh or gone:
            self._changed()

    def _walk(self) -> dict[int, str]:
        paths: dict[int, str] = {}
        for directory, names, _ in os.walk(self._root):
            try:
                inode = Path(directory).stat().st_ino
            except FileNotFoundError:
                names.clear()
                continue
            paths[inode] = readable(directory.removeprefix(str(self._root))) or "/"
        return paths

    async def watch(self) -> None:
        """Look again from time to time, and soon after a path that an event could not hold; run as a task."""
        while True:
            for _ in range(_SCAN_SECONDS):
                await asyncio.sleep(1)
                if self._cut_path or self.problem:
                    break
            self._cut_path = False
            await self.scan()

    def workloads(self) -> dict[int, Found]:
        """Every cgroup there is that is a workload: id → what was found."""
        there = self._workloads - self._removed.keys()
        return {number: found for number in there if (found := self._owners[number])}

    def path(self, cgroup: int) -> str | None:
        """Of a cgroup that is there, or was removed not long ago."""
        return self._paths.get(cgroup)

    def ids(self) -> Iterable[int]:
        """Of all that are there, or were removed not long ago."""
        return self._paths.keys()

    def by_path(self) -> dict[str, int]:
        """Path → id of the cgroups that are there."""
        return {path: number for path, number in self._by_path.items() if number not in self._removed}

    def at(self, paths: Iterable[str]) -> set[int]:
        """The cgroups that are at these paths now."""
        return {number for path in paths if (number := self._by_path.get(path))} - self._removed.keys()

    def settled(self, cgroup: int) -> bool:
        """Whether it has been there so long that a source would have claimed it."""
        return time.monotonic() - self._entered.get(cgroup, time.monotonic()) > _SETTLE_SECONDS

    def removed_before(self, moment: float) -> set[int]:
        """Cgroups that were removed before `moment` (monotonic seconds); they are forgotten with this."""
        old = {number for number, when in self._removed.items() if when < moment}
        for number in old:
            if self._by_path.get(self._paths[number]) == number:
                del self._by_path[self._paths[number]]
            del self._removed[number], self._paths[number], self._owners[number], self._entered[number]
        self._workloads -= old
        return old

    def owner(self, cgroup: int) -> Found | None:
        """The nearest workload at or above a cgroup; None: there is none, or the cgroup is not known."""
        return self._owners.get(cgroup)

    def _found(self, path: str) -> Found | None:
        name = PurePosixPath(path).name
        if fnmatchcase(name, _EMULATOR) or not any(fnmatchcase(name, one) for one in self._patterns):
            return None
        return Found(f"cgroup:{path}", "cgroup", PurePosixPath(name).stem, path)


def _container(path: str) -> Found | None:
    """The container that a cgroup is, or lies in."""
    number = container_of(path)
    if number is None:
        return None
    return Found(f"container:{number}", "container", number[:12], container_cgroup(path), nameless=True)
