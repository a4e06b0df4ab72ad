"""A pair of veths through which packets go that are to be copied as they are on the wire.

What is sent into the one is cut into segments, and its checksums are finished, by the kernel, since that end
offloads nothing; a program at the other end copies what comes out, and nothing goes on from there.

The pair outlives a killed process. So it is noted in a file before it is made, and whoever comes next removes
it.
"""

import errno
import re
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from eastwest.errors import KernelError
from eastwest.kernel.libbpf import error
from eastwest.kernel.netns import inside, route_socket
from eastwest.kernel.offloads import never_offload

_LONGEST = 65535
"""A segment is as long as its port lets it be."""

_RANDOM_BYTES = 6
_OURS = re.compile(rf"ew[0-9a-f]{{{2 * _RANDOM_BYTES}}}")
_ALIAS = "eastwest: makes copies of packets as they are on the wire"
_NOTE = "relay.json"
_BACKLOG = Path("/proc/sys/net/core/netdev_max_backlog")
_USUAL_BACKLOG = 1000


class _Note(msgspec.Struct):
    """Where the pair is; the other end goes with the one."""

    netns: str | None
    name: str


class Relay(NamedTuple):
    """The ends' interfaces, by index."""

    into: int
    out: int


def note(state_dir: Path) -> Path:
    """The file of a state directory that names its relay."""
    return state_dir / _NOTE


def make(netns: Path | None, note: Path | None) -> Relay:
    """A pair of random names in a network namespace (None: the present one), up. Raises KernelError."""
    into, out = (f"ew{secrets.token_hex(_RANDOM_BYTES)}" for _ in range(2))
    if note:
        _write(note, _Note(str(netns) if netns else None, into))
    try:
        with IPRoute(fileno=route_socket(netns)) as routes:
            peer = {"ifname": out, "mtu": _LONGEST}
            routes.link("add", ifname=into, kind="veth", mtu=_LONGEST, peer=peer)
            with inside(netns):
                never_offload(into)
                for name in (into, out):
                    _silence(name)
            relay = Relay(*(routes.link_lookup(ifname=name)[0] for name in (into, out)))
            routes.link("set", index=relay.into, ifalias=_ALIAS)
            # In this order: what goes up before its peer drops all until the kernel has noted its carrier.
            for end in (relay.out, relay.into):
                routes.link("set", index=end, state="up")
            return relay
    except BaseException as failure:
        _remove(netns, into)
        forget(note)
        if isinstance(failure, NetlinkError):
            raise error("cannot make a pair of veths", failure.code, "CAP_NET_ADMIN") from None
        raise


def there(relay: Relay, netns: Path | None) -> bool:
    """Whether nobody has taken it away."""
    try:
        with inside(netns):
            return all(socket.if_indextoname(end) for end in relay)
    except OSError:
        return False


def remove(relay: Relay, netns: Path | None, note: Path | None) -> None:
    """Take the pair away, there or gone. Raises KernelError."""
    _remove(netns, relay.into)
    forget(note)


def remove_leftover(note: Path) -> bool:
    """Take away what the note of a process that was killed names; False where there is none. KernelError."""
    try:
        said = msgspec.json.decode(note.read_bytes(), type=_Note)
    except (OSError, ValueError, msgspec.MsgspecError):
        forget(note)  # there is none, or its writing was cut short: then no pair was made yet
        return False
    netns = Path(said.netns) if said.netns else None
    found = False
    if _OURS.fullmatch(said.name) and (netns is None or netns.exists()):
        found = _remove(netns, said.name)
    forget(note)
    return found


def most_waiting() -> int:
    """Segments of clones that may wait on one CPU: half of the queue that it has for all veths."""
    try:
        return int(_BACKLOG.read_text()) // 2
    except (OSError, ValueError):
        return _USUAL_BACKLOG // 2  # a namespace in which it is not shown


def forget(note: Path | None) -> None:
    if note:
        note.unlink(missing_ok=True)


def _write(note: Path, what: _Note) -> None:
    try:
        note.write_bytes(msgspec.json.encode(what))
    except OSError as e:
        raise KernelError(f"cannot write {note}: {e.strerror}", "make room on its disk") from None


def _silence(device: str) -> None:
    """No IPv6 by itself. What it would say ends at the other end, so no harm is done where it is refused."""
    with suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")


def _remove(netns: Path | None, which: int | str) -> bool:
    with IPRoute(fileno=route_socket(netns)) as routes:
        try:
            named = {"ifname": which} if isinstance(which, str) else {"index": which}
            routes.link("del", **named)
        except NetlinkError as failure:
            if failure.code == errno.ENODEV:
                return False
            raise error("cannot remove a pair of veths", failure.code, "CAP_NET_ADMIN") from None
    return True
