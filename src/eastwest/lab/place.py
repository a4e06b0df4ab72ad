"""The places where workloads live: network namespaces with a port each, and cgroups.

Links are quiet: no IPv6, permanent neighbours. So every frame on them is one that an actor sent.
"""

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

from pyroute2 import AsyncIPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from eastwest.errors import EastwestError, MissingFeature, MissingPrivilege, RefusedError
from eastwest.lab.crew import NETNS_DIRECTORY
from eastwest.lab.plan import GUEST_INTERFACE, PREFIX_LENGTH, Guest
from eastwest.lab.switch import until


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted. MissingFeature: nowhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(where)
    raise MissingFeature("cgroup v2 is not mounted", "mount -t cgroup2 none /sys/fs/cgroup")


def refused(error: OSError, doing: str) -> EastwestError:
    """The typed error for what the kernel said while `doing` something."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return MissingPrivilege(f"{doing} needs CAP_NET_ADMIN and CAP_SYS_ADMIN", "run as root", error.errno)
    if error.errno == errno.EEXIST:
        return RefusedError(f"{doing}: it exists already", "choose another name for the lab")
    return EastwestError(f"{doing} failed: {error.strerror or error}")


def netlink_as_os_error(error: NetlinkError) -> OSError:
    return OSError(error.code, str(error))


async def make_namespace(name: str) -> None:
    try:
        await asyncio.to_thread(netns.create, name)
    except OSError as error:
        raise refused(error, f"making the network namespace {name}") from error


async def make_link(guest: Guest) -> None:
    """A veth, its end eth0 in the guest's namespace, configured and up; the namespace is quiet already."""
    try:
        async with AsyncIPRoute() as host, AsyncIPRoute(netns=guest.name) as inside:
            peer = {"ifname": GUEST_INTERFACE, "net_ns_fd": guest.name, "address": guest.mac}
            await host.link("add", ifname=guest.port, kind="veth", peer=peer)
            await asyncio.to_thread(disable_ipv6, guest.port)
            eth0 = (await inside.link_lookup(ifname=GUEST_INTERFACE))[0]
            await inside.addr("add", index=eth0, address=guest.address, prefixlen=PREFIX_LENGTH)
            await inside.neigh(
                "add", ifindex=eth0, dst=guest.peer_address, lladdr=guest.peer_mac, state="permanent"
            )
    except NetlinkError as error:
        raise refused(netlink_as_os_error(error), f"making the link {guest.port}") from error
    except OSError as error:
        raise refused(error, f"making the link {guest.port}") from error


async def raise_link(guest: Guest) -> None:
    """Both ends up, once the port is plugged in and nothing of either end will speak by itself."""
    async with AsyncIPRoute() as host, AsyncIPRoute(netns=guest.name) as inside:
        for routes, name in ((inside, GUEST_INTERFACE), (host, guest.port)):
            index = (await routes.link_lookup(ifname=name))[0]
            await routes.link("set", index=index, state="up")


def disable_ipv6(interface: str) -> None:
    """Where IPv6 is compiled out there is nothing to disable."""
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/sys/net/ipv6/conf", interface, "disable_ipv6").write_text("1")


def make_cgroup(directory: Path) -> None:
    try:
        directory.mkdir()
    except OSError as error:
        raise refused(error, f"making the cgroup {directory}") from error


# ---- and no trace afterwards: each removes what is there, and is content where nothing is


async def remove_link(name: str) -> None:
    async with AsyncIPRoute() as host:
        for index in await host.link_lookup(ifname=name):
            await host.link("del", index=index)


async def remove_namespace(name: str) -> None:
    if await asyncio.to_thread((NETNS_DIRECTORY / name).exists):
        await asyncio.to_thread(netns.remove, name)


async def remove_cgroup(directory: Path, deadline: float = 5.0) -> None:
    """Remove a cgroup of the lab's; what still runs in it was started there and is ended."""
    if not await asyncio.to_thread(directory.exists):
        return
    if not await until(lambda: not members(directory), deadline):
        for pid in members(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await until(lambda: not members(directory), deadline)
    # A dying process is no member any more, but keeps the directory busy a moment longer.
    await until(succeeds(directory.rmdir), deadline)


def members(directory: Path) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(pid) for pid in (directory / "cgroup.procs").read_text().split()]
    return []


def succeeds(action: Callable[[], None]) -> Callable[[], bool]:
    def attempt() -> bool:
        try:
            action()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    return attempt
