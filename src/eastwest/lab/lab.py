"""The lab: a whole topology with real traffic, made by entering it and gone without a trace after leaving it.

    async with Lab(LabConfig()) as lab:      # everything stands, nothing has been sent
        await lab.start()                    # traffic, until …
        record = await lab.pause()           # … all has arrived: final, to the packet and byte

What it will make is written down before it is made (`state`), so that a lab whose owner was killed at any
moment can be cleared away.
"""

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from eastwest.errors import EastwestError, MissingPrivilege
from eastwest.lab import crew, machine, place
from eastwest.lab.crew import Actor
from eastwest.lab.plan import Container, Group, Guest, Kind, Machine, Workload, plan
from eastwest.lab.podman import Podman
from eastwest.lab.record import Record, Unsettled, WorkloadRecord, pair_record, seen_outside
from eastwest.lab.state import MACHINE, PODMAN, STATE_DIR, LabState, Owned, claim, remove, save, started_at
from eastwest.lab.switch import Switch

POLL = 0.05


class LabConfig(msgspec.Struct, frozen=True):
    """`name`: empty for a random one. `deadline`: seconds for anything that should take a fraction of one.

    `alone`: this process does nothing but keep the lab, and ends with it. `containers`, `machine`: whether it
    has a pair of podman containers, and a QEMU VM; their packages must be installed.
    """

    name: str = ""
    alone: bool = False
    state_dir: Path = STATE_DIR
    deadline: float = 15.0
    containers: bool = False
    machine: bool = False


class Lab:
    """One lab. Inert until entered."""

    def __init__(self, config: LabConfig) -> None:
        self._config = config
        self.plan = plan(config.name, containers=config.containers, machine=config.machine)
        self.directory = config.state_dir / self.plan.name
        self.podman = Podman(self.directory / PODMAN, self.plan)
        self._actors: dict[str, Actor] = {}
        self._exit = AsyncExitStack()

    @property
    def name(self) -> str:
        return self.plan.name

    # ---- making it

    async def __aenter__(self) -> Self:
        if os.geteuid() != 0:
            raise MissingPrivilege(
                "a lab makes namespaces and links, which needs CAP_NET_ADMIN", "run as root"
            )
        async with AsyncExitStack() as stack:
            claim(self.directory)
            switch = Switch(self.plan.bridge, self.directory)
            stack.push_async_callback(switch.reap)
            stack.push_async_callback(remove, self.directory)
            slice_directory = place.cgroup_root() / self.plan.slice
            owner = Owned(os.getpid(), started_at(os.getpid()))
            switch_state = await switch.choose()
            state = LabState(self.plan, owner, self._config.alone, str(slice_directory), switch_state)
            save(self.directory, state)
            await switch.start()
            place.make_cgroup(slice_directory)
            if self.plan.containers:
                self.podman.prepare()
                stack.push_async_callback(self.podman.stop)
                await self.podman.serve()
            boot = await asyncio.to_thread(self._make_memory) if self.plan.machines else []
            # A VM takes its time: it boots while the others are made.
            for workload in [*self.plan.machines, *self.plan.workloads]:
                if workload.name not in self._actors:
                    actor = self._actors[workload.name] = self._actor(workload, slice_directory, boot)
                    stack.push_async_callback(actor.stop)
                    await self._start(workload, actor, slice_directory, switch)
            for one in self.plan.machines:
                await self._actors[one.name].settle(machine.BOOT_SECONDS)
            await self._brief()
            self._exit = stack.pop_all()
        return self

    def _make_memory(self) -> list[str]:
        (self.directory / MACHINE).mkdir()
        return machine.build(self.directory / MACHINE)

    def _actor(self, workload: Workload, slices: Path, boot: list[str]) -> Actor:
        common: dict[str, Any] = {"log": self.directory / "actors.log", "deadline": self._config.deadline}
        match workload:
            case Container():
                command, environment = self.podman.command(workload), self.podman.environment
                return Actor(workload.name, command, environment=environment, **common)
            case Machine():
                command, prompt = machine.command(workload, slices, boot), machine.PROMPT.encode()
                return Actor(workload.name, command, prompt=prompt, **common)
            case _:
                return Actor(workload.name, crew.command(workload, slices), **common)

    async def _start(self, workload: Workload, actor: Actor, slices: Path, switch: Switch) -> None:
        match workload:
            case Guest():
                await self._make_guest(workload, actor, switch)
            case Group():
                place.make_cgroup(slices / workload.directory)
                await actor.start()
            case Machine():
                place.make_cgroup(slices / workload.directory)
                await actor.spawn()
            case Container():
                await actor.start()

    async def _make_guest(self, guest: Guest, actor: Actor, switch: Switch) -> None:
        await place.make_namespace(guest.name)
        await actor.start()
        await place.make_link(guest)
        await actor.ask("offload-off")
        await switch.add_port(guest.port, guest.tag)
        await place.raise_link(guest)

    async def _brief(self) -> None:
        """Servers listen and clients know what to do; not a packet is sent by that."""
        for pair in self.plan.pairs:
            ports = await self._actors[pair.server.name].ask("listen", offers=pair.offers())
            await self._actors[pair.client.name].ask("plan", flows=pair.orders(ports))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()

    # ---- traffic

    async def start(self) -> None:
        """Let traffic flow (again)."""
        await self._clients("run")

    resume = start

    async def pause(self) -> Record:
        """Send no more, wait until all has arrived and been acknowledged, and return the final record.

        EastwestError: what was sent and what arrived do not agree within the deadline.
        """
        await self._clients("pause")
        return await self.record()

    async def send(self, kind: Kind, count: int) -> None:
        """While paused, or never started: exactly `count` rounds of `kind` on every pair that has it.

        A round is one datagram (udp), a question and its answer (dns), a request and its page (http), or one
        write (bulk).
        """
        await self._clients("send", kind=kind, count=count)

    async def record(self) -> Record:
        """The record, as soon as two readings in a row agree; EastwestError after the deadline."""
        end = time.monotonic() + self._config.deadline
        previous: list[WorkloadRecord] | None = None
        why = "traffic is still flowing"
        while time.monotonic() < end:
            try:
                current = await self._read()
            except Unsettled as unsettled:
                previous, why = None, str(unsettled)
            else:
                if current == previous:
                    return Record(self.name, current)
                previous = current
            await asyncio.sleep(POLL)
        raise EastwestError(
            f"the lab {self.name} does not settle: {why}", "pause it first; is the host overloaded?"
        )

    async def _read(self) -> list[WorkloadRecord]:
        records: list[WorkloadRecord] = []
        for pair in self.plan.pairs:
            names = (pair.client.name, pair.server.name)
            client, server = await asyncio.gather(*(self._actors[name].report() for name in names))
            if isinstance(pair.client, Machine):
                client = seen_outside(client, server)
            records += pair_record(names, (client, server))
        return records

    async def _clients(self, order: str, **arguments: object) -> None:
        clients = [self._actors[pair.client.name] for pair in self.plan.pairs]
        await asyncio.gather(*(actor.ask(order, **arguments) for actor in clients))
