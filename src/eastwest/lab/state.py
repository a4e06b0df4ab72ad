"""What a lab made, or was about to make, on disk; and clearing it away, whatever became of its owner."""

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path

import msgspec

from eastwest.errors import ConfigError, EastwestError, NotFoundError, RefusedError
from eastwest.lab import place
from eastwest.lab.plan import Plan
from eastwest.lab.podman import Podman
from eastwest.lab.switch import SwitchState, taps_left, until
from eastwest.lab.switch import remove as remove_switch

STATE_DIR = Path("/run/eastwest/lab")
STATE_FILE = "lab.json"
PODMAN, MACHINE = "podman", "machine"
"""Directories in a lab's."""


class Owned(msgspec.Struct, frozen=True):
    """A process that the lab started; a pid alone could be another process by now."""

    pid: int
    started: int


class LabState(msgspec.Struct, frozen=True):
    """What a lab made or was about to make; `owner` keeps it, and does nothing else if it is `alone`."""

    plan: Plan
    owner: Owned
    alone: bool
    slice_directory: str
    switch: SwitchState


def started_at(pid: int) -> int:
    """When `pid` started, in clock ticks since the boot; 0: there is no such process, or only its remains."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) if fields[0] not in "ZX" else 0
    return 0


def is_alive(process: Owned) -> bool:
    return process.started != 0 and started_at(process.pid) == process.started


def claim(directory: Path) -> None:
    """Make the lab's directory. RefusedError: a lab of that name exists."""
    try:
        # In one call: it makes the parents again that the last lab's end removes meanwhile.
        directory.mkdir(parents=True)
    except FileExistsError:
        raise RefusedError(
            f"the lab {directory.name} exists", f"eastwest lab down {directory.name}, or choose another name"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot make {directory}: {error.strerror}", "choose another --state-dir"
        ) from error


def save(directory: Path, state: LabState) -> None:
    (directory / STATE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(state)))


def load(directory: Path) -> LabState | None:
    """The state of the lab in `directory`; None: it came to no more than the directory."""
    try:
        return msgspec.json.decode((directory / STATE_FILE).read_bytes(), type=LabState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def labs(state_dir: Path) -> list[str]:
    """The names of all labs below `state_dir`, half-made ones included."""
    if not state_dir.is_dir():
        return []
    return sorted(entry.name for entry in state_dir.iterdir() if entry.is_dir())


async def remove_taps(switch: SwitchState) -> None:
    for name in taps_left(switch):
        await place.remove_link(name)


async def remove(directory: Path) -> None:
    """Remove all that the lab in `directory` made, whoever made it.

    EastwestError: what could not be removed; the state stays, so that it can be tried again.
    """
    state = load(directory)
    problems: list[str] = []
    if state is not None:
        links = [place.remove_link(guest.port) for guest in state.plan.guests]
        namespaces = [place.remove_namespace(guest.name) for guest in state.plan.guests]
        containers = Podman(directory / PODMAN, state.plan).remove()
        slices = {Path(state.slice_directory), *(one / state.plan.slice for one in place.cgroup_mounts())}
        cgroups = [place.remove_cgroup_tree(cgroup) for cgroup in sorted(slices)]
        taps = remove_taps(state.switch)
        for step in (containers, remove_switch(state.switch), taps, *links, *namespaces, *cgroups):
            try:
                await step
            except (EastwestError, OSError) as error:
                problems.append(str(error))
    if problems:
        raise EastwestError(f"not all of {directory.name} could be removed: {'; '.join(problems)}")
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    if directory.parent == STATE_DIR:  # one that somebody named with --state-dir is theirs
        await asyncio.to_thread(_remove_empty, STATE_DIR, STATE_DIR.parent)


def _remove_empty(*directories: Path) -> None:
    """The inner ones first; up to the first that still holds something."""
    with contextlib.suppress(OSError):
        for directory in directories:
            directory.rmdir()


def refuse_unknown(name: str, state_dir: Path) -> None:
    """NotFoundError: there is no lab of that name."""
    known = labs(state_dir)
    if name not in known:
        remedy = f"choose one of: {', '.join(known)}" if known else "make one with `eastwest lab up`"
        raise NotFoundError(f"there is no lab called '{name}'", remedy)


async def take_down(name: str, state_dir: Path, deadline: float = 30.0) -> None:
    """End the lab `name`: its owner takes it down; where there is none any more, we do.

    NotFoundError: there is none of that name; RefusedError: somebody else's work depends on it.
    """
    directory = state_dir / name
    refuse_unknown(name, state_dir)
    state = load(directory)
    if state is not None and is_alive(state.owner) and state.owner.pid != os.getpid():
        if not state.alone:
            what = f"the lab {name} belongs to process {state.owner.pid}, which removes it at its end"
            raise RefusedError(what, f"end that: kill {state.owner.pid}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.owner.pid, signal.SIGTERM)
        if not await until(lambda: not is_alive(state.owner), deadline):
            raise EastwestError(
                f"process {state.owner.pid}, which keeps {name}, does not end", f"kill {state.owner.pid}"
            )
    if name in labs(state_dir):
        await remove(directory)
