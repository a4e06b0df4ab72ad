"""Everything that is known of the workloads of this host, put together.

What a workload *is* comes from the kernel wherever it can: a container from its cgroup's path, a namespace
from its name or processes. So its label is bound before its traffic flows, and stays while a daemon is
away. Daemons add names and facts, and what the kernel cannot tell.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from msgspec.structs import replace

from eastwest.bus.messages import Port
from eastwest.inventory.cgroups import Cgroups
from eastwest.inventory.joining import Handle, Joined, join
from eastwest.inventory.model import Claim, Found, HostPort, Present
from eastwest.inventory.ports import Link, Ports
from eastwest.inventory.source import Source

_ANSWER_SECONDS = 3.0
"""How long the start waits for what the sources say first."""


class Inventory:
    """Ports, cgroups and sources of one scope. `changed` is called when `join` would find something else."""

    def __init__(
        self,
        *,
        scope: Path | None,
        mount: Path,
        root: Path,
        patterns: tuple[str, ...],
        sources: Sequence[Source],
        changed: Callable[[], None],
    ) -> None:
        self._tell = changed
        self._stale = True
        self._links = Ports(scope, self._changed)
        self._cgroups = Cgroups(mount, root, patterns, self._changed)
        self._sources = sources
        self._joined = Joined()
        self._ports: dict[int, HostPort] = {}
        self._claimed: dict[str, Found] = {}
        self._gone: dict[int, Found] = {}
        self._present: dict[str, Present] = {}
        self._owners: dict[int, Found | None] = {}
        self._taps: set[tuple[int, str, bool]] = set()
        self._known_as: dict[int, str] = {}
        self._worlds: dict[Source, _World] = {}
        self._kept: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Inventory":
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._links)
            await stack.enter_async_context(self._cgroups)
            stack.push_async_callback(self._end)
            self._tasks = [asyncio.create_task(s.run(self._changed), name=s.name) for s in self._sources]
            await self._first_answers()
            self._stack = stack.pop_all()
        self.join()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _first_answers(self) -> None:
        """Else the start would book to less than is known a moment later."""
        answers = [asyncio.create_task(source.answered.wait()) for source in self._sources]
        if answers:
            _, silent = await asyncio.wait(answers, timeout=_ANSWER_SECONDS)
            for answer in silent:
                answer.cancel()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def watch(self) -> None:
        """Follow everything; run as a task. Ends only by an error that nobody foresaw."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._links.watch(), name="ports")
            group.create_task(self._cgroups.watch(), name="cgroups")
            group.create_task(_first_failure(self._tasks), name="sources")

    def _changed(self) -> None:
        self._stale = True
        self._tell()

    async def resolve(self) -> None:
        """Look again at ports whose workload is not known."""
        await self._links.resolve()

    @property
    def problems(self) -> list[str]:
        """What cannot be known now, each with its remedy."""
        said = [self._cgroups.problem, *(source.problem for source in self._sources)]
        return [problem for problem in said if problem] + self._joined.problems

    # -- whose is what -------------------------------------------------------------------------------------

    def join(self) -> None:
        """Put together what is known now, where anything changed since the last time."""
        if not self._stale:
            return
        self._stale = False
        if self.complete:
            self._kept.clear()
        links = self._links.all()
        claims = self._claims_now(links.values())
        self._joined = join(vouched=claims[False], hearsay=claims[True])
        self._known_as = self._told_names(links.values())
        owners = self._joined.owners.items()
        self._claimed = {str(handle.key): found for handle, found in owners if handle.kind == "cgroup"}
        self._ports = {link.ifindex: port for link in links.values() if (port := self._port(link))}
        gone = {link.serial: self._port(link) for link in self._links.gone()}
        self._gone = {serial: port.owner for serial, port in gone.items() if port and port.owner}
        self._present = self._find_present()
        self._owners = {}
        self._tell_of_taps(links.values())

    def _tell_of_taps(self, links: Iterable[Link]) -> None:
        """Veths come and go all the time, and nobody has to look at his VMs again for that."""
        taps = {(link.serial, link.name, link.carrier) for link in links if link.kind == "tun"}
        if taps != self._taps:
            self._taps = taps
            for source in self._sources:
                source.taps_changed()

    def _claims_now(self, links: Iterable[Link]) -> dict[bool, list[Claim]]:
        """What holds of what the sources say, by whether it is hearsay."""
        now = _World(links, self._cgroups)
        claims: dict[bool, list[Claim]] = {False: [], True: []}
        for source in self._sources:
            if source.away:
                then = self._worlds.get(source, now)
                claims[source.hearsay] += (left for claim in source.claims if (left := now.left(claim, then)))
            else:
                self._worlds[source] = now
                claims[source.hearsay] += source.claims
        return claims

    def _told_names(self, links: Iterable[Link]) -> dict[int, str]:
        """Serial → name by which the sources know an interface, where that is not the one that it has now.

        What is renamed is its workload's as before; whoever is given its old name is not, until that is said.
        """
        told = {str(handle.key) for handle in self._joined.owners if handle.kind == "device"}
        told |= self._joined.hearsay.keys()
        found: dict[int, str] = {}
        for link in links:
            former = next((name for name in link.former if name in told), None)
            if former and link.name not in told:
                found[link.serial] = former
        taken = set(found.values())
        return found | {link.serial: "" for link in links if link.name in taken}

    def _port(self, link: Link) -> HostPort | None:
        name = self._known_as.get(link.serial, link.name)
        joined, heard = self._joined, self._joined.hearsay.get(name)
        owner = joined.owners.get(Handle("device", name))
        if owner is None and link.nsid is not None and (space := link.namespace):
            owner = joined.owners.get(Handle("namespace", space.cookie)) or self._named(space.owner)
        elif owner is None and heard and heard.identity and link.nsid is None:
            owner = joined.workloads.get(heard.identity, heard)
        if owner is None and link.nsid is None and link.serial not in self._kept:
            return None
        if owner and heard and heard is not owner:
            owner = replace(owner, facts=owner.facts.over(heard.facts))
        return HostPort(link.ifindex, link.name, link.mac, owner, link.serial)

    def _named(self, found: Found | None) -> Found | None:
        """What sources know of a workload that the kernel gave away."""
        if found is None:
            return None
        known = self._joined.workloads.get(found.identity)
        if known is None or known.cgroup:
            return known or found
        return replace(known, cgroup=found.cgroup)

    def _find_present(self) -> dict[str, Present]:
        present = {identity: Present(found) for identity, found in self._joined.workloads.items()}
        for found in self._cgroups.workloads().values():
            present.setdefault(found.identity, Present(found))
        for port in sorted(self._ports.values(), key=lambda port: port.name):
            if port.owner is None:
                continue
            one = present.setdefault(port.owner.identity, Present(port.owner))
            one.ports.append(Port(port.name, port.ifindex, port.mac))
            # Where its ports are on several networks, the first one's is the workload's.
            if (facts := one.found.facts.over(port.owner.facts)) != one.found.facts:
                one.found = replace(one.found, facts=facts)
        return present

    @property
    def ports(self) -> dict[int, HostPort]:
        """ifindex → port of a workload, owner None where it is not known yet."""
        return self._ports

    @property
    def complete(self) -> bool:
        """Whether every source that is there has spoken since the start."""
        return not any(source.unheard for source in self._sources)

    def keep(self, ifindex: int) -> HostPort | None:
        """An interface that was a workload's port when the probe was started before.

        It is one until all sources have spoken, though nobody claims it; None: they have, or it is gone.
        """
        link = self._links.all().get(ifindex)
        if link is None or self.complete:
            return None
        self._kept.add(link.serial)
        return self._ports.setdefault(ifindex, HostPort(ifindex, link.name, link.mac, None, link.serial))

    def gone_owner(self, serial: int | None) -> Found | None:
        """Whose a port was that went not long ago, by the interface's serial."""
        return self._gone.get(serial or 0)

    @property
    def present(self) -> dict[str, Present]:
        """Identity → workload that is there."""
        return self._present

    # -- cgroups -------------------------------------------------------------------------------------------

    def cgroups(self) -> Iterable[int]:
        """Every cgroup there is that is a workload, by id."""
        return self._cgroups.workloads().keys() | self._cgroups.at(self._claimed.keys())

    def every_cgroup(self) -> Iterable[int]:
        """Every cgroup that is there or was removed not long ago, workload or not, by id."""
        return self._cgroups.ids()

    def knows(self, cgroup: int) -> bool:
        """Whether a cgroup is there, or was removed not long ago."""
        return self._cgroups.path(cgroup) is not None

    def settled(self, cgroup: int) -> bool:
        """Whether it has been there so long that a source would have claimed it."""
        return self._cgroups.settled(cgroup)

    def removed_before(self, moment: float) -> set[int]:
        """Cgroups removed before `moment` (monotonic seconds); they are forgotten with this."""
        return self._cgroups.removed_before(moment)

    def owner(self, cgroup: int) -> Found | None:
        """The nearest workload at or above a cgroup; None: there is none, or the cgroup is not known."""
        if cgroup not in self._owners:
            self._owners[cgroup] = self._find_owner(cgroup)
        return self._owners[cgroup]

    def _find_owner(self, cgroup: int) -> Found | None:
        found = self._cgroups.owner(cgroup)
        path = self._cgroups.path(cgroup) if self._claimed else None
        while path and not (found and path == found.cgroup):
            if path in self._claimed:
                return self._claimed[path]
            path = path.rpartition("/")[0]
        return self._claimed.get(path or "") or self._named(found)


class _World:
    """What the kernel has at a moment, and by what it tells one thing from the next of the same name."""

    def __init__(self, links: Iterable[Link], cgroups: Cgroups) -> None:
        self._devices, self._namespaces = dict[str, int](), set[int]()
        for link in links:
            for name in link.former:
                self._devices.setdefault(name, link.serial)
        for link in links:
            self._devices[link.name] = link.serial
            if link.namespace:
                self._namespaces.add(link.namespace.cookie)
        self._cgroups = cgroups.by_path()

    def left(self, claim: Claim, then: "_World") -> Claim | None:
        """What still holds of a claim that was made `then`: names are given again."""
        devices = (one for one in claim.devices if self._devices.get(one, 0) == then._devices.get(one))
        number = self._cgroups.get(claim.cgroup, 0)
        left = replace(
            claim,
            devices=frozenset(devices),
            netns=claim.netns if claim.netns in self._namespaces else 0,
            cgroup=claim.cgroup if number == then._cgroups.get(claim.cgroup) else "",
        )
        return left if left.devices or left.netns or left.cgroup else None


async def _first_failure(tasks: Iterable[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)
