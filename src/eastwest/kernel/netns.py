"""Doing something inside another network namespace, on the calling thread only."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eastwest.kernel._libbpf import ffi, lib
from eastwest.kernel.libbpf import error

OWN = Path("/proc/thread-self/ns/net")
_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71  # linux/socket.h; Linux 5.14


@contextmanager
def inside(path: Path | None) -> Iterator[None]:
    """Run the body in the network namespace at `path`, None for the present one. Must not await inside."""
    if path is None:
        yield
        return
    home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(path)
        try:
            yield
        finally:
            if lib.setns(home, _CLONE_NEWNET):
                raise error("cannot return to the probe's own network namespace", ffi.errno)
    finally:
        os.close(home)


def _enter(path: Path) -> None:
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise error(f"cannot open network namespace {path}", e.errno or 0) from None
    try:
        if lib.setns(target, _CLONE_NEWNET):
            raise error(f"cannot enter network namespace {path}", ffi.errno, "CAP_SYS_ADMIN")
    finally:
        os.close(target)


def cookie(path: Path | None) -> int:
    """The kernel's number for a network namespace, never given twice (SO_NETNS_COOKIE)."""
    with inside(path), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        value: int = struct.unpack("=Q", s.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
        return value


def route_socket(path: Path | None) -> int:
    """A netlink socket of a network namespace, for a library to own.

    pyroute2 opens one by a child process that it ends with SIGTERM; that signal may reach the parent's
    handlers, through the wake-up descriptor of asyncio that the child inherits.
    """
    with inside(path):
        return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE).detach()


def host_boot() -> str:
    """The kernel's random name for this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
