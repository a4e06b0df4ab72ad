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

from eastwest.errors import EastwestError, MissingFeature, MissingPrivilege, RefusedError
from eastwest.lab.crew import NETNS_DIRECTORY
from eastwest.lab.plan import GUEST_INTERFACE, PREFIX_LENGTH, Guest
from eastwest.lab.switch import run, until


def cgroup_mounts() -> list[Path]:
    """Every hierarchy; containers have cgroups in those of version 1 as well, where there are any."""
    mounts = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(where) for _, where, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]


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
        return MissingPrivilege(f"{doing} needs more capabilities", "run as root", error.errno)
    if error.errno == errno.EEXIST:
        return RefusedError(f"{doing}: it exists already", "choose another name for the lab")
    return EastwestError(f"{doing} failed: {error.strerror or error}")


# `ip`, not pyroute2: that forks to enter a namespace and ends its child by SIGTERM, which the asyncio wake-up
# descriptor that the child inherited reports to this process as a SIGTERM of its own.


async def make_namespace(name: str) -> None:
    await run("ip", "netns", "add", name)


async def make_link(guest: Guest) -> None:
    """A veth, its end eth0 in the guest's namespace, configured but down; the namespace is quiet already."""
    peer = ("peer", "name", GUEST_INTERFACE, "address", guest.mac, "netns", guest.name)
    await run("ip", "link", "add", guest.port, "type", "veth", *peer)
    await asyncio.to_thread(disable_ipv6, guest.port)
    inside = ("ip", "-n", guest.name)
    await run(*inside, "address", "add", f"{guest.address}/{PREFIX_LENGTH}", "dev", GUEST_INTERFACE)
    neighbour = (guest.peer_address, "lladdr", guest.peer_mac, "nud", "permanent")
    await run(*inside, "neighbour", "add", *neighbour, "dev", GUEST_INTERFACE)


async def raise_link(guest: Guest) -> None:
    """Both ends up, once the port is plugged in and nothing of either end will speak by itself."""
    await run("ip", "-n", guest.name, "link", "set", GUEST_INTERFACE, "up")
    await run("ip", "link", "set", guest.port, "up")


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
    if await asyncio.to_thread(Path("/sys/class/net", name).exists):
        await run("ip", "link", "delete", name)


async def remove_namespace(name: str) -> None:
    if await asyncio.to_thread((NETNS_DIRECTORY / name).exists):
        await run("ip", "netns", "delete", name)


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


async def remove_cgroup_tree(directory: Path) -> None:
    """Remove a cgroup of the lab's and all below it."""
    below = await asyncio.to_thread(lambda: [Path(path) for path, _, _ in os.walk(directory, topdown=False)])
    for cgroup in below:
        await remove_cgroup(cgroup)


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
