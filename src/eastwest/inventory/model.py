"""What discovery finds."""

import os
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from eastwest.bus.messages import NOTHING_SAID, Facts, Port

Kind = Literal["container", "vm", "netns", "cgroup", "port"]


class Found(msgspec.Struct, frozen=True, gc=False):
    """A workload as its sources know it. `identity` is the same whenever the workload comes back."""

    identity: str
    kind: Kind
    name: str
    cgroup: str = ""
    facts: Facts = NOTHING_SAID
    """What its sources say of it; rules and users say over it."""

    nameless: bool = False
    """Only the kernel speaks of it: its name is part of its identity, what an engine said before holds."""


class Claim(msgspec.Struct, frozen=True, gc=False):
    """What one source says of one workload that is there now, and by what in the kernel it is known.

    Sources that speak of the same workload use the same identity where they can: `container:<64 hex digits>`,
    `vm:<uuid>`; one that had to make an identity up (`qemu:…`, `port:…`) is joined to another by an
    interface, namespace or cgroup that both claim. An empty identity says facts of whoever owns its devices.
    """

    identity: str
    kind: Kind
    name: str
    facts: Facts = NOTHING_SAID
    devices: frozenset[str] = frozenset()
    """Names of its interfaces on the host side (a VM's taps, a switch's ports)."""

    netns: int = 0
    """Cookie of a network namespace that is this workload's alone; 0: none, the host's, or another's."""

    cgroup: str = ""
    """The cgroup of its processes, as a path from the scope's root; empty: not known."""

    sockets: bool = False
    """Whether sockets of that cgroup on the host's network are this workload's traffic: so for a container
    on the host's network and a VM with user-mode networking, not for the emulator of a VM with taps."""


class HostPort(msgspec.Struct, frozen=True, gc=False):
    """The host's end of a workload's network interface; owner None: not known yet."""

    ifindex: int
    name: str
    mac: str
    owner: Found | None = None
    serial: int = 0
    """Another for each interface that ever had this ifindex."""


@dataclass
class Present:
    """A workload that is there now, and its ports."""

    found: Found
    ports: list[Port] = field(default_factory=list)


def readable(name: str | bytes) -> str:
    """A name as anybody may have made it, fit for a database and a terminal: escaped where not printable."""
    try:
        text = os.fsencode(name).decode(errors="backslashreplace")
    except UnicodeEncodeError:  # JSON can speak of half a character
        text = str(name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
