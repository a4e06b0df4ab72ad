"""What /proc says of a QEMU process: which VM it runs, and by what in the kernel the VM's traffic is known.

A command line is whatever its owner wrote: it is read up to a bound, and what is not understood is not said.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from eastwest.inventory.containers import container_of
from eastwest.inventory.facts import LONGEST_WORD
from eastwest.inventory.model import readable
from eastwest.inventory.processes import birth, cgroup_of, pids
from eastwest.inventory.scope import Scope

_COMMAND_LINE_BYTES = 1 << 18
_DESCRIPTORS = 1 << 14
_PROCESSES = 1 << 10

_PROGRAM = re.compile(r"(qemu-system-.+|qemu-kvm|qemu|kvm)( \(deleted\))?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NO_UUID = "00000000-0000-0000-0000-000000000000"
_TUN = "/net/tun"  # not /dev/net/tun: as seen from a mount namespace with a /dev of its own


@dataclass(frozen=True)
class CommandLine:
    """The part of an emulator's command line that says who the VM is, and how it reaches the network."""

    name: str = ""
    uuid: str = ""
    user_network: bool = False
    daemonizes: bool = False
    machine: bool = True
    """False: it answers questions of a management program and runs nothing (`-machine none`)."""


def parse(arguments: list[str]) -> CommandLine:
    """Read a command line; of an option that is repeated the last one holds, as it does for QEMU."""
    name = uuid = ""
    networks: list[str] = []
    flags = set()
    machine = "default"
    given = iter(arguments)
    for argument in given:
        option = re.sub("^--?", "", argument) if argument.startswith("-") else ""
        if option in ("daemonize", "nodefaults"):
            flags.add(option)
        elif option == "name":
            name = _value(next(given, ""), "guest") or name
        elif option == "uuid":
            uuid = next(given, "").lower()
        elif option in ("machine", "M"):
            machine = _value(next(given, ""), "type") or machine
        elif option in ("netdev", "nic", "net"):
            networks.append(_value(next(given, ""), "type"))
    return CommandLine(
        name=readable(name)[:LONGEST_WORD],
        uuid=uuid if _UUID.fullmatch(uuid) and uuid != _NO_UUID else "",
        # Told nothing of a network, QEMU gives the VM a card with user-mode networking.
        user_network="user" in networks or not (networks or "nodefaults" in flags),
        daemonizes="daemonize" in flags,
        machine=machine != "none",
    )


def _value(text: str, key: str) -> str:
    """The value of `key`, in JSON or in QEMU's `first,key=value,…` (`,,`: a comma); the first may lack it."""
    if text.startswith("{"):
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return ""
        value = document.get(key) if isinstance(document, dict) else None
        return value if isinstance(value, str) else ""
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    found = "" if "=" in parts[0] else parts[0]
    for part in parts:
        if part.startswith(f"{key}="):
            found = part.removeprefix(f"{key}=")
    return found


@dataclass(frozen=True)
class View:
    """Where processes are seen from. netns: inode of the scope's network namespace; mount: of cgroup v2."""

    scope: Scope
    netns: int
    mount: Path


@dataclass(frozen=True)
class Emulator:
    """A QEMU process. started: clock ticks since the host's boot; with it, a pid is never given twice."""

    pid: int
    started: int
    line: CommandLine
    taps: frozenset[str]
    cgroup: str
    """As a path from the scope's root; empty where it lies outside or is not the emulator's alone …"""

    shared_with: str = ""
    """… because of these."""


def read(pid: int, view: View) -> Emulator | None:
    """None: it has ended, is no emulator, runs no VM, or is in another network namespace than the scope.

    Raises PermissionError where this process may not look at another's.
    """
    process = Path(f"/proc/{pid}")
    try:
        if (process / "ns/net").stat().st_ino != view.netns:
            return None
        arguments = _arguments(process)
        if not (_runs_emulator(process) or any(_PROGRAM.fullmatch(Path(one).name) for one in arguments[:1])):
            return None
        line = parse(arguments[1:])
        if not line.machine:
            return None
        if (born := birth(pid)) is None:
            return None
        cgroup, shared_with = _cgroup(pid, view)
        return Emulator(pid, born.started, line, _taps(process), cgroup, shared_with)
    except PermissionError:
        raise
    except (OSError, ValueError, IndexError):
        return None


def find() -> set[int]:
    """Processes that may be emulators: as the kernel program tells them, or by the file that they run."""
    return {pid for pid in pids() if _may_emulate(Path(f"/proc/{pid}"))}


def _may_emulate(process: Path) -> bool:
    try:
        comm = (process / "comm").read_bytes().rstrip(b"\n")
        return comm.startswith(b"qemu") or comm == b"kvm" or _runs_emulator(process)
    except OSError:
        return False


def _runs_emulator(process: Path) -> bool:
    return bool(_PROGRAM.fullmatch((process / "exe").readlink().name))


def _arguments(process: Path) -> list[str]:
    with (process / "cmdline").open("rb") as file:
        return [os.fsdecode(one) for one in file.read(_COMMAND_LINE_BYTES).split(b"\0")]


def _taps(process: Path) -> frozenset[str]:
    """The interfaces of the tun device that a process holds."""
    taps = set()
    with os.scandir(process / "fd") as descriptors:
        for descriptor in islice(descriptors, _DESCRIPTORS):
            try:
                if str(Path(descriptor).readlink()).endswith(_TUN):
                    details = (process / "fdinfo" / descriptor.name).read_bytes()
                    taps |= set(re.findall(rb"^iff:\t(\S+)$", details, re.M))
            except OSError:
                continue  # closed meanwhile
    return frozenset(readable(tap) for tap in taps)


# -- cgroups -----------------------------------------------------------------------------------------------


def _cgroup(pid: int, view: View) -> tuple[str, str]:
    """The cgroup that is the emulator's alone, from the scope's root; or who shares it."""
    path = cgroup_of(pid)
    if path is None or view.scope.below(path) is None:
        return "", ""
    if container_of(path):
        return "", ""  # what runs in a container is the container's, whatever it calls itself
    own = _domain(view.mount / path.lstrip("/"))
    cgroup = view.scope.below("/" + str(own.relative_to(view.mount)).strip("."))
    if cgroup in (None, "/"):
        return "", "whatever is started here"
    others = list(islice(_others(own, pid), 4))
    if others:
        return "", ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
    return cgroup or "", ""


def _domain(cgroup: Path) -> Path:
    """The cgroup of the whole process: its threads may have some of their own, and make sockets there."""
    while (cgroup / "cgroup.type").exists() and (cgroup / "cgroup.type").read_text() == "threaded\n":
        cgroup = cgroup.parent
    return cgroup


def _others(cgroup: Path, emulator: int) -> Iterator[str]:
    """Processes in and below a cgroup that are neither the emulator nor its descendants, to be shown."""
    for directory, _, _ in os.walk(cgroup):
        try:
            processes = (Path(directory) / "cgroup.procs").read_text().split()
        except OSError:
            continue  # removed meanwhile, or one of threads, whose processes its parent lists
        if len(processes) > _PROCESSES:
            yield f"{len(processes)} processes"
            return
        for other in map(int, processes):
            if not _descends(other, emulator):
                yield f"pid {other}"


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        if (born := birth(pid)) is None:
            return True  # it has ended
        pid = born.parent
    return pid == ancestor
