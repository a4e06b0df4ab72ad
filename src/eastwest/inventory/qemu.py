"""VMs that QEMU processes run, whoever started them: found as they start, from the kernel's own word.

Their taps are named by the descriptors they hold. A VM with user-mode networking sends through sockets of its
emulator: those are the VM's where the emulator has a cgroup to itself.
"""

import asyncio
import logging
import os
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eastwest.errors import InventoryError, KernelError, MissingFeature
from eastwest.inventory.emulator import Emulator, View, find, read
from eastwest.inventory.model import Claim
from eastwest.inventory.scope import Scope
from eastwest.inventory.source import Source
from eastwest.kernel.events import RingBuffer
from eastwest.kernel.libbpf import Map, Object
from eastwest.kernel.netns import OWN, host_boot
from eastwest.kernel.records import PROCESSES_OBJECT, record

log = logging.getLogger(__name__)

_PAUSES = (0.1, 0.2, 0.5, 1, 2, 4)
"""An emulator opens its taps some time after it is started: when it is looked at again, seconds."""

_AGAIN_SECONDS = 30
"""Nothing tells who else enters an emulator's cgroup."""

_SCAN_SECONDS = 5
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, linux/proc_ns.h
_MOST_GUESTS = 4096
_REMARKS = 3

_REST, _LONGEST_REST_SECONDS = 10, 1.0
"""Links may change all the time: after a look at everybody comes a rest of so many times its length."""


@dataclass
class _Guest:
    """An emulator that is followed. descriptor: its pidfd; looks: how often it was read since its start."""

    descriptor: int
    identity: str
    seen: Emulator
    looks: int = 0
    due: float = 0


class Qemu(Source):
    """The QEMU processes in the scope's network namespace; `mount`: of cgroup v2."""

    def __init__(self, scope: Scope, mount: Path) -> None:
        super().__init__("qemu")
        self._scope, self._mount = scope, mount
        self._wake = asyncio.Event()
        self._guests: dict[int, _Guest] = {}
        self._fresh: set[int] = set()
        self._ended: set[int] = set()
        self._surplus: set[int] = set()
        self._denied: set[int] = set()
        self._all = False
        self._rested = self._round = 0.0
        self._deaf = ""
        self._missed: Map | None = None
        self._missed_before = bytes(8)

    def taps_changed(self) -> None:
        """Somebody else may hold one now."""
        self._all = True
        self._wake.set()

    async def _follow(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._forget_all)
            try:
                view = View(self._scope, (self._scope.netns or OWN).stat().st_ino, self._mount)
                self._listen(stack)
            except OSError as e:
                raise InventoryError(
                    f"cannot read network namespace {self._scope.netns}: {e.strerror}"
                ) from None
            except KernelError as e:
                self._deaf = f"no word of new processes ({e}): they are looked for every {_SCAN_SECONDS} s"
            await self._scan()
            while True:
                await self._look(view)
                self._tell()
                await self._wait()

    def _listen(self, stack: ExitStack) -> None:
        if Path("/proc/self/ns/pid").stat().st_ino != _FIRST_PID_NAMESPACE:
            raise MissingFeature("the probe has a pid namespace of its own", "run it in the host's")
        program = stack.enter_context(Object(PROCESSES_OBJECT))
        program.load()
        ring = RingBuffer(program.maps["process_events"], self._started)
        stack.callback(ring.close)
        loop = asyncio.get_running_loop()
        loop.add_reader(ring.fd, ring.consume)
        stack.callback(loop.remove_reader, ring.fd)
        program.attach("process_started")
        self._missed, self._missed_before, self._deaf = program.maps["processes_missed"], bytes(8), ""

    def _started(self, event: bytes) -> None:
        self._fresh.add(int(np.frombuffer(event, record("process_event"))["pid"][0]))
        self._wake.set()

    async def _scan(self) -> None:
        self._fresh |= await asyncio.to_thread(find) - self._guests.keys()

    async def _wait(self) -> None:
        """Until there is something to look at."""
        due = min([self._round, *(guest.due for guest in self._guests.values())])
        if self._all:
            due = min(due, self._rested)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(due - time.monotonic(), 0)):
                await self._wake.wait()
        self._wake.clear()
        if time.monotonic() >= self._round:
            self._round = time.monotonic() + (_SCAN_SECONDS if self._deaf else _AGAIN_SECONDS)
            self._all = True
            self._fresh |= self._denied
            if self._deaf or self._overrun():
                await self._scan()

    def _overrun(self) -> bool:
        """Whether the kernel had more to tell than there was room for."""
        missed = self._missed and self._missed.lookup(bytes(4))
        before, self._missed_before = self._missed_before, missed or self._missed_before
        return before != self._missed_before

    # -- following -----------------------------------------------------------------------------------------

    async def _look(self, view: View) -> None:
        """Read what is new, due or asked for; forget what has ended."""
        if self._bury():
            await self._scan()
        now = time.monotonic()
        everybody = self._all and now >= self._rested
        self._all = self._all and not everybody
        fresh, self._fresh = self._fresh, set()
        due = {pid for pid, guest in self._guests.items() if everybody or guest.due <= now}
        self._denied -= fresh | due
        if not (fresh or due):
            return
        held: dict[int, int] = {}
        try:
            held.update((pid, descriptor) for pid in fresh if (descriptor := _hold(pid)) is not None)
            seen = await asyncio.to_thread(self._read, due | held.keys(), view)
            # A program that starts another in its place keeps its pid, and nothing else.
            for pid in held.keys() & self._guests.keys():
                self._forget(pid)
            for emulator in sorted((e for e in seen.values() if e), key=lambda e: (e.started, e.pid)):
                if emulator.pid in held and len(self._guests) >= _MOST_GUESTS:
                    self._surplus.add(emulator.pid)
                elif emulator.pid in held:
                    self._meet(emulator, held.pop(emulator.pid))
        finally:
            for descriptor in held.values():
                os.close(descriptor)
        if everybody:
            ended = time.monotonic()
            self._rested = ended + min(_REST * (ended - now), _LONGEST_REST_SECONDS)
        for pid in due & self._guests.keys():
            guest = self._guests[pid]
            guest.seen = seen[pid] or guest.seen
            guest.looks += guest.due <= now
            guest.due = now + _PAUSES[guest.looks] if guest.looks < len(_PAUSES) else float("inf")

    def _read(self, pids: set[int], view: View) -> dict[int, Emulator | None]:
        """What is to be seen of processes; runs on another thread."""
        seen: dict[int, Emulator | None] = dict.fromkeys(pids)
        for pid in pids:
            try:
                seen[pid] = read(pid, view)
            except PermissionError:
                self._denied.add(pid)
        return seen

    def _meet(self, emulator: Emulator, descriptor: int) -> None:
        guest = _Guest(descriptor, self._identity(emulator), emulator, due=time.monotonic() + _PAUSES[0])
        self._guests[emulator.pid] = guest
        asyncio.get_running_loop().add_reader(descriptor, self._end, emulator.pid)

    def _identity(self, emulator: Emulator) -> str:
        """For as long as it runs: a second one of the same name takes nothing from the first."""
        own = f"qemu:{host_boot()}:{emulator.pid}:{emulator.started}"
        line = emulator.line
        wanted = f"vm:{line.uuid}" if line.uuid else f"qemu:{line.name}" if line.name else own
        return own if wanted in {guest.identity for guest in self._guests.values()} else wanted

    def _end(self, pid: int) -> None:
        asyncio.get_running_loop().remove_reader(self._guests[pid].descriptor)
        self._ended.add(pid)
        self._wake.set()

    def _bury(self) -> bool:
        """Forget who has ended; True where one may live on under another pid, of which nothing is told."""
        if self._ended:
            self._fresh, self._surplus = self._fresh | self._surplus, set()
        forked = any(self._guests[pid].seen.line.daemonizes for pid in self._ended)
        for pid in list(self._ended):
            self._forget(pid)
        return forked

    def _forget(self, pid: int) -> None:
        guest = self._guests.pop(pid)
        self._ended.discard(pid)
        asyncio.get_running_loop().remove_reader(guest.descriptor)
        os.close(guest.descriptor)

    def _forget_all(self) -> None:
        for pid in list(self._guests):
            self._forget(pid)

    # -- telling -------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        remarks = [self._deaf] if self._deaf else []
        if self._surplus:
            remarks.append(f"{len(self._surplus)} emulators more than the {_MOST_GUESTS} that are followed")
        if self._denied:
            first, more = min(self._denied), len(self._denied) - 1
            who = f"pid {first}" + (f" and {more} more" if more else "")
            remarks.append(
                f"{who} may run VMs and cannot be read: run the probe with CAP_SYS_PTRACE, or as root"
            )
        remarks += [remark for guest in self._guests.values() if (remark := _remark(guest))]
        more = len(remarks) - _REMARKS
        said = remarks[:_REMARKS] + ([f"and {more} more"] if more > 0 else [])
        self._say({guest.identity: _claim(guest) for guest in self._guests.values()}, "; ".join(said) or None)


def _claim(guest: _Guest) -> Claim:
    seen, line = guest.seen, guest.seen.line
    return Claim(
        identity=guest.identity,
        kind="vm",
        name=line.name or line.uuid or f"qemu-{seen.pid}",
        devices=seen.taps,
        cgroup=seen.cgroup,
        sockets=line.user_network and bool(seen.cgroup),
    )


def _remark(guest: _Guest) -> str:
    """What keeps a VM from being told apart."""
    seen, line = guest.seen, guest.seen.line
    who = f"VM '{line.name or line.uuid or seen.pid}' (pid {seen.pid})"
    forking = line.daemonizes and guest.looks < len(_PAUSES)  # it is two processes, for a moment
    if line.user_network and seen.shared_with and not forking:
        return (
            f"{who} has user-mode networking and shares its cgroup with {seen.shared_with}: its traffic is "
            "not told from theirs; start it in a cgroup of its own (systemd-run --scope qemu-system-…)"
        )
    wanted = line.uuid or line.name
    if wanted and not guest.identity.endswith(f":{wanted}"):
        return f"{who} has the {'UUID' if line.uuid else 'name'} of another: give each a -uuid of its own"
    return ""


def _hold(pid: int) -> int | None:
    """A descriptor that is readable when the process ends; None: it has. InventoryError: too many."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as e:
        raise InventoryError(f"cannot follow pid {pid}: {e.strerror}", "raise the probe's limits") from None
