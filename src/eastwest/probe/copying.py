"""Copies packets for those taps that are to run now: programs, rings, deliveries, and what became of them.

Nothing is loaded and no memory is taken while no tap runs.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from eastwest.bus.taps import TapPoint, TapStream
from eastwest.errors import KernelError, RefusedError
from eastwest.kernel.rings import Rings
from eastwest.meter import pins
from eastwest.meter.check import cgroup_mount
from eastwest.probe.config import ProbeConfig
from eastwest.probe.tap import Running, Tap
from eastwest.probe.tappast import TapPast
from eastwest.tap import relay
from eastwest.tap.config import Attach, TapConfig
from eastwest.tap.delivery import Delivery
from eastwest.tap.heirs import named_apart
from eastwest.tap.points import Points, Source, Stream, Taking
from eastwest.tap.reading import Hook
from eastwest.tap.taps import PINNED, Endpoint, Note, Taps, remove_filters, unpin

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_DRAIN_SECONDS = 30.0
_STOP_SECONDS = 2.0
_MOST_SHOWN = 20


class Scope(NamedTuple):
    """Where packets are copied, as the meter has it. `handle`: of classic filters, not the meter's."""

    netns: Path | None
    cgroup_root: Path
    attach: Attach
    handle: int
    pins: Path
    inherits: bool
    """Whether new cgroups can be told from workloads by their names."""

    @classmethod
    def of(cls, config: ProbeConfig, tcx: bool) -> "Scope":
        """The meter's, which attaches by TCX or not."""
        directory, root = pins.directory(config.state_dir), config.cgroup_root or cgroup_mount()
        handle = pins.filter_handle(directory) ^ 1 or 2
        inherits = named_apart(config.cgroup_patterns)
        return cls(config.netns, root, "tcx" if tcx else "clsact", handle, directory, inherits)


class Copying:
    """The taps that run. Who changes anything holds `lock`; what blocks is done in a thread meanwhile."""

    def __init__(self, host: str, config: TapConfig, scope: Scope) -> None:
        self.host = host
        self.config = config
        self._scope = scope
        self.lock = asyncio.Lock()
        self._kernel: Taps | None = None
        self._points: Points | None = None
        self._running: dict[int, Running] = {}
        self._outgoing: list[Running] = []
        self._draining: set[Running] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._past = TapPast(scope.pins.parent / "taps.json")
        self._known: dict[str, set[Endpoint]] = {}
        self._dialled: dict[int, Endpoint] = {}
        self._own_problem = ""
        self._failure: asyncio.Future[None] | None = None
        self._tell: Callable[[], None] = _nobody

    async def run(self, freed: Callable[[], None]) -> None:
        """Until cancelled; then nothing is copied any more. `freed`: there is room for another tap.

        Ends by itself only if a delivery fails for a reason it does not handle.
        """
        self._failure = asyncio.get_running_loop().create_future()
        self._tell = freed
        try:
            await self._failure
        finally:
            await self._stop()

    async def clean_up(self) -> None:
        """Take away what a probe that was killed has left in the kernel, and take over what it counted."""
        scope = self._scope
        if scope.attach == "clsact":
            await whole(remove_filters, scope.netns, scope.handle)
        try:
            await whole(relay.remove_leftover, relay.note(scope.pins.parent))
        except KernelError as error:
            log.warning("the relay of an earlier probe is still there: %s", error)
        await whole(self._past.read)
        if not any((scope.pins / name).exists() for name in PINNED):
            return
        try:
            found = await whole(self._remains)
        except KernelError as error:
            log.warning("what an earlier probe counted for taps cannot be read: %s", error)
            found = []
        unpin(scope.pins)
        for note, counts in found:
            self._past.points.setdefault(note.tap, Counter()).update(counts)
            lost = {"unconfirmed": note.unconfirmed, "probe_killed": 0}
            lost["probe_killed"] = max(0, counts["written"] - note.confirmed - note.unconfirmed)
            self._past.remember(
                TapStream(
                    tap=note.tap,
                    connected=False,
                    pending=0,
                    unanswered=0,
                    confirmed=note.confirmed,
                    lost={place: packets for place, packets in lost.items() if packets},
                    sent_bytes=note.sent_bytes,
                    reconnects=note.reconnects,
                )
            )
        await whole(self._past.write)

    def _remains(self) -> list[tuple[Note, Counter[str]]]:
        with self._loaded() as kernel:
            return kernel.remains()

    def _loaded(self) -> Taps:
        scope = self._scope
        return Taps(self.config, scope.netns, attach=scope.attach, handle=scope.handle, pins=scope.pins)

    @property
    def room(self) -> int:
        """Taps that may yet begin."""
        return self.config.most - len(self._running)

    # -- what is copied --------------------------------------------------------------------------------------

    async def begin(self, served: Mapping[Tap, set[Hook]]) -> None:
        """Have each run, with filters for these hooks. Raises KernelError."""
        opened = await whole(self._prepare, served)
        for tap, (number, rings) in opened.items():
            self._deliver(tap, number, rings)
        if any(tap.hopeless(hooks) for tap, hooks in served.items()):
            self._tell()

    async def apply(
        self,
        wanted: Mapping[Source, Sequence[Taking]],
        refused: Mapping[Stream, str],
        known: Set[int],
    ) -> None:
        """Copy this and nothing else (see `Points.apply`); whom `part` named is over then.

        Raises KernelError.
        """
        if self._points:
            await whole(self._points.apply, wanted, refused, known)
            await whole(self._past.write)
        for running in self._outgoing:
            self._release(running, _DRAIN_SECONDS)
        self._outgoing.clear()
        await self._close_unused()

    def part(self, tap: Tap) -> None:
        """At the next `apply` nothing is copied for it any more."""
        if tap.running:
            self._outgoing.append(tap.running)
            tap.running = None

    # -- streams ---------------------------------------------------------------------------------------------

    def _prepare(self, served: Mapping[Tap, set[Hook]]) -> dict[Tap, tuple[int, Rings]]:
        """Have filters compiled, and rings for those who have none. In a thread; raises KernelError."""
        opened: dict[Tap, tuple[int, Rings]] = {}
        free = [number for number in range(self.config.most) if number not in self._running]
        for tap, hooks in served.items():
            tap.retries = False
            try:
                tap.prepare(hooks)
                if tap.running is None:
                    kernel, number = self._open(), free[-1]
                    opened[tap] = number, kernel.open_destination(number, partial(self._wake, number))
                    free.pop()
            except (KernelError, RefusedError) as error:
                # One that cannot be had takes nothing from the others.
                tap.retries = isinstance(error, KernelError)
                tap.problem = f"tap '{tap.name}' copies nothing: {error}"
        return opened

    def _open(self) -> Taps:
        """The programs, loaded when they are first needed."""
        if self._kernel is None:
            self._kernel, note = self._loaded().__enter__(), relay.note(self._scope.pins.parent)
            self._points = Points(
                self._kernel, self._scope.cgroup_root, self._past.points, note, self._scope.inherits
            )
            self._leave_out()
        return self._kernel

    def _wake(self, number: int) -> None:
        if running := self._running.get(number):
            running.delivery.reader.wake()

    def _deliver(self, tap: Tap, number: int, rings: Rings) -> None:
        kernel = self._kernel
        assert kernel
        # The same as before, where it is watched already.
        asyncio.get_running_loop().add_reader(kernel.wake_fd, kernel.consume)
        delivery = Delivery(
            tap.name,
            rings,
            tap.section(self.host, self.config.enterprise),
            tap.peer,
            confirms=tap.order.receiver == "collector",
            ahead=partial(self._ahead, number),
            each_time=kernel.set_clock,
            note=partial(kernel.note, number),
            after=[one.delivery.over for one in self._running.values() if one.tap == tap.name],
        )
        task = asyncio.create_task(delivery.run(), name=f"delivery of {tap.name}")
        task.add_done_callback(self._ended)
        tap.running = self._running[number] = Running(tap.name, number, delivery, task)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A delivery that failed for a reason it does not handle ends the probe."""
        if (
            not task.cancelled()
            and (error := task.exception())
            and self._failure
            and not self._failure.done()
        ):
            self._failure.set_exception(error)

    def _release(self, running: Running, seconds: float) -> None:
        """Deliver what is left, for so long, and give back what it used."""
        self._draining.add(running)
        task = asyncio.create_task(self._end(running, seconds), name="end of a tap")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _end(self, running: Running, seconds: float) -> None:
        running.delivery.end()
        await asyncio.wait({running.task}, timeout=seconds)
        running.task.cancel()
        await asyncio.wait({running.task})
        async with self.lock:
            assert self._kernel
            del self._running[running.number]
            self._draining.discard(running)
            self._past.remember(running.delivery.status())
            await whole(self._past.write)
            self._kernel.note(running.number, None)
            self._dialled.pop(running.number, None)
            self._leave_out()
            await whole(self._kernel.close_destination, running.number)
            await self._close_unused()
        self._tell()

    async def _close_unused(self) -> None:
        if self._kernel and not self._running:
            kernel, points, self._kernel, self._points = self._kernel, self._points, None, None
            asyncio.get_running_loop().remove_reader(kernel.wake_fd)
            try:
                if points:
                    await whole(points.close)
            finally:
                await whole(kernel.__exit__)

    async def _stop(self) -> None:
        """Copy nothing any more, and deliver what there is, if that is soon done."""
        async with self.lock:
            if self._points:
                with suppress(KernelError):  # what is closed copies nothing either
                    await whole(self._points.apply, {}, {})
            leaving = {running.number for running in self._draining}
            for number, running in self._running.items():
                if number not in leaving:
                    self._release(running, _STOP_SECONDS)
                asyncio.get_running_loop().call_later(_STOP_SECONDS, running.task.cancel)
        await asyncio.gather(*self._leaving)

    # -- what is not copied ----------------------------------------------------------------------------------

    def leave_out(self, who: str, endpoints: Iterable[Endpoint]) -> None:
        """Ends of TCP at which somebody of eastwest's own listens."""
        self._known[who] = set(endpoints)
        self._leave_out()

    def _ahead(self, number: int, address: str, port: int) -> None:
        """A delivery is about to connect there."""
        self._dialled[number] = address, port
        self._leave_out()

    def _leave_out(self) -> None:
        """Copies on their way, and what else eastwest says to itself, are not copied."""
        if self._kernel is None:
            return
        try:
            self._kernel.leave_out({*chain(*self._known.values()), *self._dialled.values()})
            self._own_problem = ""
        except (KernelError, ValueError) as error:
            self._own_problem = f"not all of eastwest's own connections are left out of taps: {error}"

    # -- what became of it -----------------------------------------------------------------------------------

    @property
    def problems(self) -> list[str]:
        found = [running.delivery.problem for running in self._running.values()]
        if self._points:
            points = list(self._points.problems.items())[:_MOST_SHOWN]
            found += [f"tap '{of.tap}' takes nothing of label {of.label}: {why}" for of, why in points]
        return [problem for problem in (self._own_problem, *found) if problem]

    @property
    def taps(self) -> set[str]:
        """Those that run, or have run, or cannot."""
        troubled = {of.tap for of in self._points.problems} if self._points else set()
        return {running.tap for running in self._running.values()} | self._past.taps | troubled

    def points(self) -> list[TapPoint]:
        """Those there are."""
        return list(self._points.counts()) if self._points else []

    def streams(self) -> list[TapStream]:
        """Those that go on, or are being delivered to their end."""
        return [running.delivery.status() for running in self._running.values()]

    def past(self) -> tuple[list[TapPoint], list[TapStream]]:
        """What was counted at points that are gone, and of streams that are over: the last taps only."""
        return self._past.answer()


def _nobody() -> None:
    """Nobody is told."""


async def whole(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread; where this is cancelled, only once that has ended."""
    task = asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
