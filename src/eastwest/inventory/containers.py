"""Containers: their identity is in their cgroup's path, for all to see; an engine adds name and labels."""

import asyncio
import re
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path

from eastwest.errors import InventoryError, KernelError
from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.engine import MOST_CONTAINERS, Container, Engine
from eastwest.inventory.facts import LONGEST_WORD, facts_of
from eastwest.inventory.model import Claim, readable
from eastwest.inventory.processes import cgroup_of
from eastwest.inventory.scope import Scope
from eastwest.inventory.source import Source, is_there
from eastwest.kernel.netns import OWN, cookie

_CONTAINER = re.compile(
    r"(?:libpod-|libpod-payload-|docker-|crio-|cri-containerd-|nerdctl-)?([0-9a-f]{64})(?:\.scope)?"
)
_ID = re.compile(r"[0-9a-f]{64}")

_OVERLAP_SECONDS = 3.0
"""Events this long before the list is asked for are heard as well: none falls between the two."""

_PING_SECONDS = 5.0
_LIST_SECONDS = 60.0
"""Engines forget events where many come at once: the list is compared again from time to time."""

_RETRY_SECONDS = 1.0
_MOST_DUE = 20_000
_REFUSALS_SAID = 3


def container_of(cgroup: str) -> str | None:
    """The id (64 hex digits) of the container that a cgroup is, or lies in; None: no container's.

    Of containers in containers the outermost: what is inside can be named by whoever runs there, and the
    host's daemons know the outer one only.
    """
    for name in cgroup.split("/"):
        if known := _CONTAINER.fullmatch(name):
            return known[1]
    return None


def container_cgroup(cgroup: str) -> str:
    """The cgroup of the container that a cgroup is, or lies in; empty: no container's."""
    names = cgroup.split("/")
    for depth, name in enumerate(names, 1):
        if _CONTAINER.fullmatch(name):
            return "/".join(names[:depth])
    return ""


@dataclass(frozen=True)
class _Seen:
    """A container as it was last looked at."""

    name: str
    pid: int
    cgroup: str
    claim: Claim | None
    """None: it is none of this host's, or nothing tells its traffic from another's."""


class Containers(Source):
    """The containers of one engine that have a process: running, paused, or about to begin or end.

    `expected`: that the engine is not there is a problem.
    """

    def __init__(
        self, name: str, socket: Path, *, expected: bool, scope: Scope, config: InventoryConfig
    ) -> None:
        super().__init__(name)
        self._socket = socket
        self._expected = expected
        self._scope = scope
        self._config = config
        self._seen: dict[str, _Seen] = {}
        self._refused: dict[str, str] = {}
        self._unread: set[str] = set()
        self._due: dict[str, None] = {}
        self._wake = asyncio.Event()

    async def _follow(self) -> None:
        if not is_there(self._socket):
            self._absent()
            return
        self._due = dict.fromkeys(self._seen)
        try:
            async with Engine(self._socket) as engine, asyncio.TaskGroup() as group:
                group.create_task(self._listen(engine), name=f"{self.name} events")
                group.create_task(self._ping(engine), name=f"{self.name} ping")
                group.create_task(self._look(engine), name=f"{self.name} containers")
        except ExceptionGroup as group_:
            known, others = group_.split(InventoryError)
            if known is None or others is not None:
                raise
            raise known.exceptions[0] from None

    def _absent(self) -> None:
        for number in [number for number in self._seen if not _lives(self._seen[number])]:
            self._forget(number)
        if self._expected or self._seen:
            raise InventoryError(
                f"there is no socket {self._socket}",
                f"start it (systemctl start {self.name}.socket), or correct {self.name} in [inventory]",
            )
        self._tell()

    async def _listen(self, engine: Engine) -> None:
        async with aclosing(engine.events(_OVERLAP_SECONDS)) as numbers:
            async for number in numbers:
                self._note(number)

    async def _ping(self, engine: Engine) -> None:
        """A stream of events is silent where nothing happens, where one got lost, and where it hangs."""
        while True:
            await engine.ping()
            for number in [number for number in self._seen if not _lives(self._seen[number])]:
                self._note(number)
            await asyncio.sleep(_PING_SECONDS)

    def _note(self, number: str) -> None:
        if _ID.fullmatch(number) and len(self._due) < _MOST_DUE:
            self._due[number] = None
            self._wake.set()

    async def _look(self, engine: Engine) -> None:
        """List, then look at each container that something happened to, one after the other: so the last
        word on one is the newest."""
        complete = False
        while True:
            again = time.monotonic() + _LIST_SECONDS
            self._compare(await engine.running())
            while (left := again - time.monotonic()) > 0:
                self._wake.clear()
                while self._due:
                    number = next(iter(self._due))
                    del self._due[number]  # before it is looked at: what happens meanwhile counts again
                    await self._inspect(engine, number)
                    if complete:
                        self._tell()
                complete = True
                self._tell()
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes with the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._wake.wait()

    def _compare(self, listed: dict[str, str]) -> None:
        """Find what happened to containers without an event that said so."""
        for number, name in listed.items():
            seen = self._seen.get(number)
            if seen is None or seen.name != _name(name, number) or not _lives(self._seen[number]):
                self._note(number)
        self._unread &= self._refused.keys()
        for number in self._seen.keys() - listed.keys() | self._refused.keys():
            self._note(number)

    async def _inspect(self, engine: Engine, number: str) -> None:
        known = number in self._seen or number in self._refused
        if not known and max(len(self._seen), len(self._refused)) >= MOST_CONTAINERS:
            raise engine.too_many()
        try:
            container = await engine.inspect(number)
        except InventoryError as e:
            # One container that cannot be read is not the engine: that is pinged. What is known of it holds.
            if number in self._unread:
                self._refused[number] = f"container {number[:12]}: {e}"
            else:
                # Podman fails where one is just being made or removed: a moment later it does not.
                self._unread.add(number)
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._note, number)
            return
        self._unread.discard(number)
        self._refused.pop(number, None)
        if container is None or not container.state.pid or container.id != number:
            self._forget(number)
            return
        pid, name = container.state.pid, _name(container.name, number)
        cgroup = cgroup_of(pid)
        if cgroup is None:
            self._forget(number)
            return
        seen = _Seen(name, pid, container_cgroup(cgroup), self._claim(container, name, cgroup))
        if _lives(seen):
            self._seen[number] = seen
        else:
            self._forget(number)  # it has ended, and its number may be another's by now

    def _forget(self, number: str) -> None:
        self._seen.pop(number, None)
        self._refused.pop(number, None)
        self._unread.discard(number)

    def _tell(self) -> None:
        claims = {number: seen.claim for number, seen in self._seen.items() if seen.claim}
        said = sorted(self._refused.values())
        more = f", and {len(said) - _REFUSALS_SAID} more" if len(said) > _REFUSALS_SAID else ""
        self._say(claims, ", ".join(said[:_REFUSALS_SAID]) + more if said else None)

    # -- one container -------------------------------------------------------------------------------------

    def _claim(self, container: Container, name: str, cgroup: str) -> Claim | None:
        if container_of(cgroup) != container.id:
            self._refused[container.id] = (
                f"container '{name}' has no cgroup of its own, so its traffic is not told apart: "
                "run it without --cgroups=disabled, and the probe where it sees the host's processes"
            )
            return None
        below = self._scope.below(container_cgroup(cgroup))
        if below is None:
            return None
        facts, refused = facts_of(container.config.labels or {}, self._config)
        if refused:
            self._refused[container.id] = f"container '{name}': {', '.join(refused)}; make it with another"
        netns, sockets = self._network(container)
        return Claim(
            f"container:{container.id}", "container", name, facts, netns=netns, cgroup=below, sockets=sockets
        )

    def _network(self, container: Container) -> tuple[int, bool]:
        """Cookie of a namespace that is its alone, and whether it is on the host's network.

        Whatever the engine calls the network: on the host's is who is in its namespace.
        """
        try:
            own, host = cookie(Path(f"/proc/{container.state.pid}/ns/net")), cookie(self._scope.netns or OWN)
        except KernelError:
            return 0, False
        mode = container.host_config.network_mode
        others = own == host or mode == "host" or mode.startswith(("container:", "ns:"))
        return 0 if others else own, own == host


def _lives(seen: _Seen) -> bool:
    """Whether its process is still there, or at least one of the same container."""
    cgroup = cgroup_of(seen.pid)
    return cgroup is not None and container_cgroup(cgroup) == seen.cgroup


def _name(name: str, number: str) -> str:
    return readable(name.removeprefix("/"))[:LONGEST_WORD] or number[:12]
