"""The probe: everything of one host, wired and kept running."""

import asyncio
import logging
import time
import zlib
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Self

import msgspec
import numpy as np

from eastwest import __version__
from eastwest.bus.client import Bus
from eastwest.bus.messages import (
    FACTS_BUCKET,
    HOSTS_BUCKET,
    LABELS_BUCKET,
    Facts,
    HostInterface,
    HostReport,
    Workload,
    enforce_subject,
    ledger_subject,
    refuse_impossible,
    suspect_subject,
)
from eastwest.bus.taps import taps_subject
from eastwest.errors import BusError, EastwestError, StoreError
from eastwest.inventory.inventory import Inventory
from eastwest.inventory.source import Source
from eastwest.kernel.netns import host_boot
from eastwest.labels.registry import Registry
from eastwest.labels.rules import Rule
from eastwest.meter import pins
from eastwest.meter.accounts import Accounts
from eastwest.meter.check import cgroup_mount
from eastwest.meter.drain import Cut, Drain
from eastwest.meter.enforcer import Enforcer
from eastwest.meter.interfaces import host_interfaces
from eastwest.meter.meter import Meter
from eastwest.meter.suspects import SuspectMaps
from eastwest.probe.booking import Booking
from eastwest.probe.config import ProbeConfig, SuspectConfig
from eastwest.probe.copying import Copying, Scope, whole
from eastwest.probe.cost import CostMeter
from eastwest.probe.cutter import Cutter, close_boot, next_due
from eastwest.probe.enforcement import Enforcement
from eastwest.probe.evidence import EvidenceReader
from eastwest.probe.journal import Journal
from eastwest.probe.lives import Lives, Tally
from eastwest.probe.outbox import Outbox
from eastwest.probe.recording import Recording
from eastwest.probe.suspectfiles import SuspectFiles
from eastwest.probe.suspects import Suspects
from eastwest.probe.taps import StandingTaps
from eastwest.tap.config import TapConfig

log = logging.getLogger(__name__)

_LABELS_LOW = 64
_RETRY_SECONDS = 1.0
_GATHER_SECONDS, _REST = 0.02, 3
"""Changes are gathered for so many seconds, or so many times as long as the last ones took to be taken over:
where there is very much, the rest of the probe has its turn."""


class Probe:
    """The agent of one host. Counting goes on when it ends; `eastwest down` ends it."""

    def __init__(
        self,
        config: ProbeConfig,
        rules: list[Rule],
        bus: Bus,
        sources: Sequence[Source] = (),
        *,
        suspect: SuspectConfig | None = None,
        tap: TapConfig | None = None,
    ) -> None:
        self._config = config
        self._rules = rules
        self._bus = bus
        self._sources = sources
        self._suspect = suspect or SuspectConfig()
        self._tap = tap or TapConfig()
        self._stack = AsyncExitStack()
        self._changed = asyncio.Event()
        self._cut_due = asyncio.Event()
        self._report_due = asyncio.Event()
        self._problems: dict[str, str | None] = {}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _open(self, stack: AsyncExitStack) -> None:
        config = self._config
        self._journal = stack.enter_context(Journal(config.state_dir / "probe.db"))
        self._outbox = Outbox(config.host, self._journal, self._bus)
        self._meter = self._enter_meter(stack)
        self._drain = Drain(self._meter)
        self._accounts = Accounts(self._meter.map("accounts").max_entries // 2)
        self._registry = Registry(config.host, self._rules, self._journal)
        self._check_host_boot()
        mount = cgroup_mount()
        self._inventory = await stack.enter_async_context(
            Inventory(
                scope=config.netns,
                mount=mount,
                root=config.cgroup_root or mount,
                patterns=config.cgroup_patterns,
                sources=self._sources,
                changed=self._changed.set,
            )
        )
        self._enforcer = Enforcer(config, pins.directory(config.state_dir))
        stack.callback(self._enforcer.close)
        self._evidence = stack.enter_context(EvidenceReader(self._meter))
        self._assemble_orders()
        self._assemble()
        self._enforcement.adopt()
        self._suspects.adopt()
        self._booking.adopt()
        self._cutter.adopt()
        self._cost = CostMeter(self._meter.programs())
        self._started_at = time.time_ns()

    def _assemble_orders(self) -> None:
        """What users want besides counting."""
        host, journal, bus = self._config.host, self._journal, self._bus
        self._suspects = Suspects(
            host=host,
            maps=SuspectMaps(self._meter),
            files=SuspectFiles(self._suspect.files, self._config.state_dir),
            journal=journal,
            bus=bus,
            cut=self._cut_due.set,
        )
        self._enforcement = Enforcement(
            host=host,
            enforcer=self._enforcer,
            registry=self._registry,
            journal=journal,
            bus=bus,
            changed=self._changed.set,
        )
        copying = Copying(host, self._tap, Scope.of(self._config, self._meter.tcx))
        self._taps = StandingTaps(copying, self._inventory, self._registry, bus)

    def _assemble(self) -> None:
        """Between the kernel and the inventory: lives, booking, cuts."""
        config = self._config
        self._lives = Lives(
            meter=self._meter,
            drain=self._drain,
            accounts=self._accounts,
            registry=self._registry,
            enforcement=self._enforcement,
            journal=self._journal,
        )
        self._booking = Booking(
            config=config,
            meter=self._meter,
            lives=self._lives,
            registry=self._registry,
            journal=self._journal,
            inventory=self._inventory,
        )
        self._cutter = Cutter(
            config=config,
            boot=self._meter.boot,
            drain=self._drain,
            accounts=self._accounts,
            booking=self._booking,
            lives=self._lives,
            registry=self._registry,
            evidence=self._evidence,
            journal=self._journal,
        )
        self._recording = Recording(self._cutter, self._outbox, partial(self._problem, "journal"))

    def _check_host_boot(self) -> None:
        """After a power cut the disk may be behind what was told to the fleet."""
        boot = zlib.crc32(host_boot().encode())
        if boot != self._journal.number("host_boot"):
            self._registry.discard_lease()
            with self._journal.transaction():
                self._journal.set_number("host_boot", boot)

    def _enter_meter(self, stack: AsyncExitStack) -> Meter:
        """The meter whose counters the journal knows: adopted, or else a new one."""
        config, known = self._config, self._journal.number("boot")
        meter = Meter(config, pins.directory(config.state_dir))
        stack.enter_context(meter)
        same_scope = meter.scope == self._journal.number("scope")
        if meter.adopted and not (meter.boot == known and same_scope):
            log.warning("the counters in the kernel are of another scope or journal: starting anew")
            meter.__exit__()
            pins.remove(config.state_dir)
            meter = Meter(config, pins.directory(config.state_dir))
            stack.enter_context(meter)
        if meter.boot != known:
            close_boot(self._journal, config.host, known)
            with self._journal.transaction():
                self._journal.set_number("boot", meter.boot)
                self._journal.set_number("scope", meter.scope)
        return meter

    @property
    def boot(self) -> int:
        """The life of the counters, unix ns of when their maps were made."""
        return self._meter.boot

    @property
    def held_packets(self) -> int:
        """Packets in rows that wait for their workload."""
        return self._cutter.held_packets

    @property
    def open_accounts(self) -> int:
        """Accounts in use, label 0's own included."""
        return int(np.sum(self._accounts.table["open"]))

    @property
    def pending_bytes(self) -> int:
        """Of messages that the stream has not acknowledged."""
        return self._journal.outbox_bytes()

    def ledger(self) -> dict[int, Tally]:
        """label → what was seen and lost as of the last cut; empty before the first."""
        return self._cutter.ledger

    def ports(self) -> list[str]:
        """Names of the ports that are counted, their workloads known or not."""
        return [life.row.port for life in self._lives.by_port.values()]

    def interfaces(self) -> list[HostInterface]:
        """The host's own interfaces that are metered, now."""
        return host_interfaces(self._meter, self._config)

    def workloads(self) -> list[Workload]:
        """The workloads of this host, there or gone not long ago."""
        return self._registry.workloads()

    async def run(self) -> None:
        """Work until cancelled. A task that fails for a reason it does not handle ends the probe."""
        # Before the first cut there is no ledger to tell: until then what is stored speaks for this host.
        await self._cut_and_record()
        host = self._config.host
        await self._bus.serve(ledger_subject(host), self._cutter.answer)
        await self._bus.serve(suspect_subject(host), self._suspects.answer)
        await self._bus.serve(enforce_subject(host), self._enforcement.answer)
        await self._bus.serve(taps_subject(host), self._taps.answer)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._inventory.watch(), name="inventory")
            group.create_task(self._cost.sample_for_ever(), name="cost")
            group.create_task(self._lease_labels(), name="labels")
            group.create_task(self._follow_facts(), name="facts")
            group.create_task(self._follow_inventory(), name="booking")
            group.create_task(self._suspects.run(), name="suspects")
            group.create_task(self._enforcement.run(), name="enforcement")
            group.create_task(self._taps.run(), name="taps")
            group.create_task(self._outbox.run(), name="outbox")
            group.create_task(self._report_for_ever(), name="report")
            group.create_task(self._cut_for_ever(), name="cuts")

    # -- tasks ---------------------------------------------------------------------------------------------

    async def _cut_for_ever(self) -> None:
        """One cut an interval, and one more at the end so that a clean stop leaves little behind."""
        due = time.monotonic()
        while True:
            due = next_due(due, time.monotonic(), self._config.interval_seconds)
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(due - time.monotonic(), 0)):
                        await self._cut_due.wait()
            except asyncio.CancelledError:
                self._recording.finish(self._cutter.cut())
                raise
            await self._inventory.resolve()
            await self._cut_and_record()

    async def _cut_and_record(self) -> None:
        self._cut_due.clear()
        changes = self._suspects.changes
        cut = await self._cut()
        if cut:
            self._suspects.took_effect(changes)
        await self._recording.run(cut)
        self._report_due.set()
        await whole(self._cutter.clear)  # while the outbox sends

    async def _cut(self) -> Cut | None:
        """A cut, off the event loop. Once begun it is finished and recorded, also when this is cancelled."""
        cut = asyncio.create_task(asyncio.to_thread(self._cutter.cut))
        try:
            return await asyncio.shield(cut)
        except asyncio.CancelledError:
            self._recording.finish(await cut)
            raise

    async def _follow_inventory(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            begun = time.monotonic()
            await self._inventory.resolve()
            try:
                self._booking.reconcile(discover=False)
                self._taps.look()
            except StoreError as e:
                self._problem("journal", e)
            # The first change at once, those in its wake together.
            await asyncio.sleep(max(_GATHER_SECONDS, _REST * (time.monotonic() - begun)))

    async def _lease_labels(self) -> None:
        while True:
            if self._registry.labels_left < _LABELS_LOW:
                try:
                    await self._registry.lease(self._bus.bucket(LABELS_BUCKET))
                    self._problems["labels"] = None
                    self._changed.set()
                except EastwestError as e:
                    self._problem("labels", e)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _follow_facts(self) -> None:
        async for key, value in self._bus.bucket(FACTS_BUCKET).watch():
            try:
                facts = msgspec.json.decode(value, type=Facts) if value else Facts()
                refuse_impossible(facts)
                with self._journal.transaction():
                    self._registry.say(int(key), facts)
                self._changed.set()
            except StoreError as e:
                self._problem("journal", e)
            except (ValueError, RecursionError, msgspec.MsgspecError) as e:
                self._problem("facts", EastwestError(f"facts of label '{key[:20]}' are refused: {e}"))

    def _problem(self, about: str, error: EastwestError | None) -> None:
        if error and self._problems.get(about) != str(error):
            log.warning("%s", error)
        self._problems[about] = str(error) if error else None

    # -- what it tells -------------------------------------------------------------------------------------

    async def _report_for_ever(self) -> None:
        """After each cut, but not in its way: the bus may take its time to answer or to be away."""
        while True:
            await self._report_due.wait()
            self._report_due.clear()
            await self._report()

    async def _report(self) -> None:
        problems = [
            *self._problems.values(),
            self._outbox.problem,
            self._booking.problem,
            *self._inventory.problems,
            *self._suspects.problems,
            *self._enforcement.problems,
            *self._taps.problems,
        ]
        report = HostReport(
            host=self._config.host,
            boot=self._meter.boot,
            cut=self._cutter.sequence,
            time=self._cutter.time,
            started_at=self._started_at,
            version=__version__,
            interval_seconds=self._config.interval_seconds,
            hooks=self._cutter.hook_counts(),
            interfaces=self.interfaces(),
            malformed=self._drain.malformed(),
            cost=self._cost.cost(),
            evidence_lost=self._evidence.lost,
            taps=self._taps.concerned,
            problems=[problem for problem in problems if problem],
        )
        try:
            await self._bus.bucket(HOSTS_BUCKET).put(self._config.host, msgspec.json.encode(report))
            self._problems["report"] = None
        except BusError as e:
            self._problem("report", e)
