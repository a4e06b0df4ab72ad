"""Ports of network namespaces: veth devices of the host whose other end lies in a namespace of its own.

Netlink tells of them as they come and go. Nothing here keeps a namespace open: a descriptor or socket in
it would keep it alive after its owner removed it.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError

from eastwest.errors import KernelError
from eastwest.inventory.model import Found, HostPort, readable
from eastwest.kernel.netns import cookie, host_boot, route_socket

log = logging.getLogger(__name__)

_NAMED = Path("/run/netns")


class Ports:
    """The workload ports in the network namespace `scope` (None: the present one)."""

    def __init__(self, scope: Path | None, changed: Callable[[], None]) -> None:
        self._scope = scope
        self._changed = changed
        self._ports: dict[int, HostPort] = {}
        self._nsids: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._stack = AsyncExitStack()
        self.problem: str | None = None

    async def __aenter__(self) -> "Ports":
        self._netlink = await self._stack.enter_async_context(AsyncIPRoute(fileno=route_socket(self._scope)))
        self._events = await self._stack.enter_async_context(AsyncIPRoute(fileno=route_socket(self._scope)))
        await self._events.bind(groups=rtnl.RTMGRP_LINK)
        await self.scan()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def all(self) -> dict[int, HostPort]:
        """ifindex → port, owners where they are known."""
        return dict(self._ports)

    async def scan(self) -> None:
        """Read every link: at the start, and again where netlink lost events."""
        seen = set()
        async for link in await self._netlink.get_links():
            seen.add(link["index"])
            await self._link(link)
        for gone in self._ports.keys() - seen:
            del self._ports[gone]
        self._changed()

    async def watch(self) -> None:
        """Follow the links; run as a task."""
        while True:
            try:
                async for message in self._events.get():
                    if message["event"] == "RTM_DELLINK":
                        if self._ports.pop(message["index"], None):
                            self._nsids.pop(message["index"], None)
                            self._changed()
                    elif message["event"] == "RTM_NEWLINK" and await self._link(message):
                        self._changed()
            except OSError as e:
                # ENOBUFS: more events than the socket holds; what they said is still there to be read.
                log.warning("netlink events were lost (%s): reading all links", e)
                await self.scan()

    async def _link(self, link: Any) -> bool:
        """Take over what a message says of a link; True where something changed."""
        nsid = link.get("link_netnsid")
        if link.get(("linkinfo", "kind")) != "veth" or nsid is None:
            return self._ports.pop(link["index"], None) is not None
        old = self._ports.get(link["index"])
        new = HostPort(link["index"], link.get("ifname"), link.get("address"))
        same_namespace = self._nsids.get(link["index"]) == nsid
        if old and same_namespace and replace(old, owner=None) == new:
            return False
        self._nsids[link["index"]] = nsid
        owner = old.owner if old and same_namespace else await self._owner(nsid)
        self._ports[link["index"]] = replace(new, owner=owner)
        return True

    async def resolve(self) -> None:
        """Look again for the namespaces of ports without an owner: a name may be given late."""
        for ifindex, port in list(self._ports.items()):
            nsid = self._nsids.get(ifindex)
            if port.owner is not None or nsid is None:
                continue
            owner = await self._owner(nsid)
            # Meanwhile the link may have gone, or become another.
            if owner and self._ports.get(ifindex) is port:
                self._ports[ifindex] = replace(port, owner=owner)
                self._changed()

    async def _owner(self, nsid: int) -> Found | None:
        name = self._names.get(nsid)
        if name is None or await self._nsid(_NAMED / name) != nsid:
            names = {await self._nsid(path): path.name for path in _named_namespaces()}
            self._names, name = names, names.get(nsid)
        if name is None:
            return await self._anonymous(nsid)
        return Found(f"netns:{readable(name)}", "netns", readable(name)) if name else None

    async def _anonymous(self, nsid: int) -> Found | None:
        """A namespace that only processes hold; the host's own is no workload.

        It goes by its cookie, which is never given twice in one boot of the host; inodes are, at once.
        """
        for path, inode in _process_namespaces():
            if await self._nsid(path) == nsid and inode != _inode(Path("/proc/1/ns/net")):
                try:
                    name = f"netns-{cookie(path)}"
                except KernelError:
                    return None  # its last process has just ended
                return Found(f"netns:{host_boot()}:{name}", "netns", name)
        return None

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


def _named_namespaces() -> list[Path]:
    return list(_NAMED.iterdir()) if _NAMED.is_dir() else []


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _process_namespaces() -> Iterator[tuple[Path, int]]:
    """One path for each network namespace that a process is in."""
    seen = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            inode = _inode(process / "ns/net")
            if inode and inode not in seen:
                seen.add(inode)
                yield process / "ns/net", inode
