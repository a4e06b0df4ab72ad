"""Carries out orders to copy packets: follows them, the workloads that they select, and the clock.

Without an order nothing is loaded and no memory is taken. What can block (libpcap, the verifier, the kernel's
waiting for programs to end) is done in a thread, by one task, a step at a time.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import NamedTuple

import msgspec

from eastwest.bus.address import host_port
from eastwest.bus.client import Bus
from eastwest.bus.taps import ENDPOINTS_BUCKET, TAPS_BUCKET, TapsAnswer, TapStream
from eastwest.errors import EastwestError, KernelError, RefusedError
from eastwest.inventory.inventory import Inventory
from eastwest.inventory.model import readable
from eastwest.labels.registry import Registry
from eastwest.probe.copying import Copying
from eastwest.probe.tap import Tap, decoded
from eastwest.tap.pcapng import ETHERNET, RAW_IP, Interface
from eastwest.tap.points import Source, Stream, Taking
from eastwest.tap.reading import Hook

log = logging.getLogger(__name__)

_MOST_SHOWN = 50
"""Problems in the host's report; the answer has all."""

_LOOK_SECONDS = 1.0
_GATHER_SECONDS = 0.02
_LINGER_SECONDS = 10.0
"""A workload that is gone may be back soon: so long its tap stays connected."""


class _Place(NamedTuple):
    """A source of packets, whose it is, and what it is called; `port` is empty for a cgroup."""

    source: Source
    label: int
    port: str
    name: str


_Chosen = tuple[_Place, list[Tap]]
"""A place, and the taps that take something there, eldest first."""


class StandingTaps:
    """The orders of this host. `look` when workloads may have changed."""

    def __init__(self, copying: Copying, inventory: Inventory, registry: Registry, bus: Bus) -> None:
        self._copying = copying
        self._host = copying.host
        self._inventory = inventory
        self._registry = registry
        self._bus = bus
        self._taps: dict[str, Tap] = {}
        self._refused: dict[str, str] = {}
        self._due = asyncio.Event()
        self._problems: dict[str, str | None] = {}

    async def run(self) -> None:
        """Follow orders, workloads and the clock until cancelled; then nothing is copied any more."""
        await self._copying.clean_up()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._copying.run(self._due.set), name="copying")
            group.create_task(self._follow_orders(), name="tap orders")
            group.create_task(self._follow_endpoints(), name="own endpoints")
            group.create_task(self._keep(), name="taps")

    def look(self) -> None:
        """Workloads, their ports or cgroups may have changed."""
        if self._taps:
            self._due.set()

    # -- orders ----------------------------------------------------------------------------------------------

    async def _follow_orders(self) -> None:
        async for name, document in self._bus.bucket(TAPS_BUCKET).watch():
            async with self._copying.lock:
                self._take(name, document)
            self._due.set()

    def _take(self, name: str, document: bytes | None) -> None:
        before, after = self._taps.pop(name, None), None
        self._refused.pop(name, None)
        if document is not None:
            try:
                after = self._taps[name] = Tap(decoded(name, document), self._copying.config)
            except EastwestError as error:
                self._refused[name] = f"tap '{readable(name)[:63]}' is refused: {error}"
                log.warning("%s", self._refused[name])
        if before and not (after and after.take_over(before)):
            self._copying.part(before)

    def _expire(self) -> None:
        """By this host's own clock; the bucket says nothing of it any more."""
        now = time.time_ns()
        for name, tap in list(self._taps.items()):
            if 0 < tap.order.expires <= now:
                self._copying.part(self._taps.pop(name))

    async def _follow_endpoints(self) -> None:
        async for who, document in self._bus.bucket(ENDPOINTS_BUCKET).watch():
            self._problems["endpoints"] = None
            try:
                said = msgspec.json.decode(document, type=list[str]) if document else []
                self._copying.leave_out(who, [host_port(one) for one in said])
            except (ValueError, RecursionError, msgspec.MsgspecError, EastwestError) as error:
                self._problem("endpoints", f"own endpoints of '{readable(who)[:63]}' are refused: {error}")

    # -- what is, and what should be -------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS if self._taps else None):
                    await self._due.wait()
                await asyncio.sleep(_GATHER_SECONDS)  # orders and workloads come in crowds
            self._copying.leave_out("", self._bus.peers)
            if not (self._due.is_set() or self._overdue()):
                continue
            self._due.clear()
            async with self._copying.lock:
                try:
                    await self._reconcile()
                    self._problems["kernel"] = None
                except KernelError as error:
                    self._problem("kernel", f"nothing is copied: {error}")

    def _overdue(self) -> bool:
        """Whether there is something to do that nobody tells of but the clock."""
        now = time.time_ns()
        waiting = any(tap.running and tap.running.unused_since for tap in self._taps.values())
        expired = any(0 < tap.order.expires <= now for tap in self._taps.values())
        failed = any(tap.retries for tap in self._taps.values()) or bool(self._problems.get("kernel"))
        return waiting or expired or failed

    async def _reconcile(self) -> None:
        self._expire()
        known = frozenset(self._inventory.every_cgroup())
        chosen = [(place, taps) for place in self._places() if (taps := self._selecting(place.label))]
        hooks: dict[Tap, set[Hook]] = {}
        for place, taps in chosen:
            for tap in taps:
                hooks.setdefault(tap, set()).add(place.source.hook)
        self._linger(hooks.keys())
        self._renew()
        if served := self._served(hooks):
            await self._copying.begin(served)
        await self._copying.apply(*self._takings(chosen), known)

    def _places(self) -> Iterator[_Place]:
        """Every source of packets whose workload is known."""
        for port in self._inventory.ports.values() if self._taps else ():
            if port.owner and (label := self._registry.given(port.owner.identity)):
                yield _Place(Source(Hook.PORT, port.ifindex, port.serial), label, port.name, port.name)
        for number in list(self._inventory.every_cgroup()) if self._taps else ():
            owner = self._inventory.owner(number)
            if owner and (label := self._registry.given(owner.identity)):
                name = PurePosixPath(owner.cgroup).name or owner.name
                yield _Place(Source(Hook.CGROUP, number), label, "", name)

    def _selecting(self, label: int) -> list[Tap]:
        """The taps of a workload, eldest first."""
        seen = self._registry.seen(label)
        taps = [tap for tap in self._taps.values() if seen and tap.selector.matches(seen)]
        return sorted(taps, key=lambda tap: tap.age)

    def _linger(self, used: Iterable[Tap]) -> None:
        """Part with those that have had no workload here for some time."""
        now, here = time.monotonic(), set(used)
        for tap in self._taps.values():
            if tap.running and tap not in here:
                tap.running.unused_since = tap.running.unused_since or now
                if now - tap.running.unused_since > _LINGER_SECONDS:
                    self._copying.part(tap)
            elif tap.running:
                tap.running.unused_since = 0.0

    def _renew(self) -> None:
        """Begin a new stream where the old one's interfaces are mostly of ports that are gone."""
        for tap in self._taps.values():
            if tap.running and tap.running.crowded and self._copying.room:
                self._copying.part(tap)

    def _served(self, hooks: Mapping[Tap, set[Hook]]) -> dict[Tap, set[Hook]]:
        """Those that there is room for: who is running stays, then the eldest."""
        room = self._copying.room
        served = {}
        for tap in sorted(hooks, key=lambda tap: tap.age):
            if tap.hopeless(hooks[tap]):
                continue
            tap.problem = ""
            if tap.running or room > 0:
                served[tap] = hooks[tap]
                room -= not tap.running
            else:
                tap.problem = (
                    f"tap '{tap.name}' waits: {self._copying.config.most} others are on this host; end one, "
                    "or raise [tap] most"
                )
        return served

    def _takings(self, chosen: Sequence[_Chosen]) -> tuple[dict[Source, list[Taking]], dict[Stream, str]]:
        """What each source's taps take there, and why some take nothing."""
        wanted: dict[Source, list[Taking]] = {}
        refused: dict[Stream, str] = {}
        for tap in self._taps.values():
            if tap.running:
                tap.running.in_use.clear()
        for place, taps in chosen:
            for tap in taps:
                stream = Stream(tap.name, place.label, place.port)
                try:
                    if taking := self._taking(place, tap, stream):
                        wanted.setdefault(place.source, []).append(taking)
                except RefusedError as error:
                    refused[stream] = str(error)
        return wanted, refused

    def _taking(self, place: _Place, tap: Tap, stream: Stream) -> Taking | None:
        seen = self._registry.seen(place.label)
        if seen is None or tap.running is None:
            return None
        if tap.order.segment and place.source.hook is Hook.CGROUP:
            raise RefusedError(
                "no copies as on the wire of a workload on the host's network: the kernel lets no program "
                "clone packets at a cgroup (bpf_clone_redirect)",
                "order them without segment",
            )
        filter_ = tap.filter(place.source.hook)
        of = Interface(
            name=place.name,
            host=self._host,
            workload=str(seen["name"]),
            tenant=str(seen["tenant"]),
            network=str(seen["network"]),
            label=place.label,
            link_type=ETHERNET if place.source.hook is Hook.PORT else RAW_IP,
            filter=tap.order.filter,
            snaplen=tap.order.snaplen,
        )
        service, interface = tap.order.service_id, tap.running.interface(of)
        tap.running.in_use.add(interface)
        return Taking(
            stream=stream,
            destination=tap.running.number,
            interface=interface,
            service=int(str(seen["service_id"])) if service is None else service,
            snaplen=tap.snaplen,
            filter=filter_,
            segment=tap.order.segment,
            direction=tap.order.direction,
        )

    # -- what it tells ---------------------------------------------------------------------------------------

    @property
    def problems(self) -> list[str]:
        waiting = [tap.problem for tap in self._taps.values()]
        found = [*self._problems.values(), *self._copying.problems, *self._refused.values(), *waiting]
        return [problem for problem in found if problem][:_MOST_SHOWN]

    @property
    def concerned(self) -> list[str]:
        """The orders of which there is more to say here than that they are followed."""
        known = self._copying.taps
        return [*self._refused, *(name for name, tap in self._taps.items() if name in known or tap.problem)]

    async def answer(self, _: bytes) -> bytes:
        """What is copied here, as a `TapsAnswer`."""
        waiting = {tap.name: tap.problem for tap in self._taps.values() if tap.problem and not tap.running}
        idle = [_idle(name, why) for name, why in (waiting | self._refused).items()]
        points, streams = self._copying.past()
        answer = TapsAnswer(
            host=self._host,
            points=self._copying.points(),
            streams=self._copying.streams() + idle,
            past=points,
            past_streams=streams,
            taps=list(self._taps),
        )
        return msgspec.json.encode(answer)

    def _problem(self, about: str, problem: str) -> None:
        if self._problems.get(about) != problem:
            log.warning("%s", problem)
        self._problems[about] = problem


def _idle(tap: str, problem: str) -> TapStream:
    """Of an order that is not carried out."""
    return TapStream(
        tap=tap,
        connected=False,
        pending=0,
        unanswered=0,
        confirmed=0,
        lost={},
        sent_bytes=0,
        reconnects=0,
        problem=problem,
    )
