"""Interfaces of the host, as netlink tells of them: those that may be the host's end of a workload's."""

import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import rtnl

from eastwest.inventory.model import readable
from eastwest.inventory.namespaces import Namespace, Namespaces
from eastwest.kernel.netns import route_socket

log = logging.getLogger(__name__)

_GONE_SECONDS = 30.0
_AF_BRIDGE = 7
_FORMER_NAMES = 4


@dataclass(frozen=True)
class Link:
    """An interface. nsid: the scope's number for the namespace that a veth's other end is in, else None."""

    ifindex: int
    name: str
    mac: str
    kind: str
    nsid: int | None
    carrier: bool
    serial: int = 0
    """Another for each interface that ever had this ifindex."""

    namespace: Namespace | None = None
    former: tuple[str, ...] = ()
    """Names that it had before, the last first."""


class Ports:
    """The interfaces in the network namespace `scope` (None: the present one)."""

    def __init__(self, scope: Path | None, changed: Callable[[], None]) -> None:
        self._scope = scope
        self._changed = changed
        self._links: dict[int, Link] = {}
        self._gone: dict[int, tuple[Link, float]] = {}
        self._serial = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Ports":
        self._netlink = await self._stack.enter_async_context(AsyncIPRoute(fileno=route_socket(self._scope)))
        self._events = await self._stack.enter_async_context(AsyncIPRoute(fileno=route_socket(self._scope)))
        self._namespaces = Namespaces(self._netlink)
        await self._events.bind(groups=rtnl.RTMGRP_LINK)
        await self.scan()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def all(self) -> dict[int, Link]:
        """ifindex → interface."""
        return dict(self._links)

    def gone(self) -> list[Link]:
        """Interfaces that went not long ago, as they were: what they counted may still wait for its owner."""
        return [link for link, _ in self._gone.values()]

    def _remove(self, ifindex: int) -> bool:
        link = self._links.pop(ifindex, None)
        if link:
            self._gone[link.serial] = link, time.monotonic()
        return link is not None

    async def scan(self) -> None:
        """Read every link: at the start, and again where netlink lost events."""
        seen = set()
        async for link in await self._netlink.get_links():
            seen.add(link["index"])
            await self._link(link)
        for gone in self._links.keys() - seen:
            self._remove(gone)
        self._changed()

    async def watch(self) -> None:
        """Follow the links; run as a task."""
        while True:
            try:
                async for message in self._events.get():
                    if message["family"] == _AF_BRIDGE:
                        continue  # what a bridge says of its port: neither its kind nor its end
                    if message["event"] == "RTM_DELLINK":
                        if self._remove(message["index"]):
                            self._changed()
                    elif message["event"] == "RTM_NEWLINK" and await self._link(message):
                        self._changed()
            except OSError as e:
                # ENOBUFS: more events than the socket holds; what they said is still there to be read.
                log.warning("netlink events were lost (%s): reading all links", e)
                await self.scan()

    async def _link(self, message: Any) -> bool:
        """Take over what a message says of a link; True where something changed."""
        ifindex, kind = message["index"], message.get(("linkinfo", "kind")) or ""
        link = Link(
            ifindex,
            readable(message.get("ifname") or ""),
            message.get("address") or "",
            kind,
            message.get("link_netnsid") if kind == "veth" else None,
            bool(message.get("carrier")),
        )
        old = self._links.get(ifindex)
        if old and replace(old, serial=0, namespace=None, former=()) == link:
            return False
        if old is None:
            self._serial += 1
        serial = old.serial if old else self._serial
        former = old.former if old else ()
        if old and old.name != link.name:
            former = tuple(dict.fromkeys((old.name, *former)))[:_FORMER_NAMES]
        namespace = old.namespace if old and old.nsid == link.nsid else None
        if link.nsid is not None and namespace is None:
            # Before anything is counted: a namespace may be gone as soon as its first packets are sent.
            namespace = await self._namespaces.look(link.nsid)
        self._links[ifindex] = replace(link, serial=serial, namespace=namespace, former=former)
        return True

    async def resolve(self) -> None:
        """Look again for the owners of namespaces that were not known: a name or process may come late."""
        for ifindex, link in list(self._links.items()):
            if link.nsid is not None and (link.namespace is None or link.namespace.owner is None):
                namespace = await self._namespaces.look(link.nsid)
                # Meanwhile the link may have gone, or become another.
                if namespace != link.namespace and self._links.get(ifindex) is link:
                    self._links[ifindex] = replace(link, namespace=namespace)
                    self._changed()
        old = time.monotonic() - _GONE_SECONDS
        self._gone = {serial: (link, at) for serial, (link, at) in self._gone.items() if at > old}
        self._namespaces.forget({one.namespace.cookie for one in self._links.values() if one.namespace})
