"""The watcher: every few seconds it holds what is stored against watches, and keeps the book of alerts."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import msgspec

from eastwest.bus.background import Background
from eastwest.bus.client import Bus
from eastwest.bus.messages import SILENCES_BUCKET, WATCHES_BUCKET, Silence, Watch, Workload
from eastwest.errors import BusError, StoreError
from eastwest.manager.fleet import Fleet
from eastwest.store.alerts import StoredAlert
from eastwest.store.store import Store
from eastwest.store.watching import NS, Window
from eastwest.watch.alert import Alert, Finding
from eastwest.watch.book import Book, Changes, Moment
from eastwest.watch.conditions import Conditions, select
from eastwest.watch.config import AlertsConfig, DetectConfig
from eastwest.watch.definition import Definition, check_silence
from eastwest.watch.desired import Kept, Silences, Watches
from eastwest.watch.detectors import Detectors
from eastwest.watch.horizon import Horizons
from eastwest.watch.outputs import Output, Way
from eastwest.watch.suspects import Suspects
from eastwest.watch.syslog import Syslog
from eastwest.watch.telling import Telling
from eastwest.watch.verdict import Verdict
from eastwest.watch.webhook import Webhook, header

log = logging.getLogger(__name__)

_MOST_STORED = 100_000
_MOST_LATE = 5
_GONE_SECONDS = 7200
"""So long a workload that has gone is still known, by the time of storing: its rows may be in a window, its
alert still open."""


class Watcher:
    """Raises and ends alerts while it is entered, as `fleet` is. What it cannot do now is in `problems`."""

    def __init__(
        self,
        config: AlertsConfig,
        bus: Bus,
        store: Store,
        fleet: Fleet,
        *,
        watches: Sequence[Definition] = (),
        detect: DetectConfig | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._fleet = fleet
        self._kept_watches = Kept(bus, WATCHES_BUCKET, Definition, lambda watch: None)
        self._kept_silences = Kept(bus, SILENCES_BUCKET, Silence, check_silence)
        self.watches = Watches(watches, self._kept_watches)
        self.silences = Silences(self._kept_silences)
        self._horizons = Horizons(store)
        self._conditions = Conditions(store, self._horizons)
        self._suspects = Suspects(store)
        self._detectors = Detectors(detect or DetectConfig(), store, self._horizons)
        self._book = Book(config.max_open)
        self._outputs = _outputs(config)
        self._telling = Telling(self._outputs, config.max_open)
        self._workloads: list[Workload] = []
        self._verdict = Verdict()
        self._unwritten: dict[str, Alert] = {}
        self._shown: list[Alert] = []
        self._problem: str | None = None
        self.evaluations = 0
        """How often it has looked at everything."""
        self._stack = AsyncExitStack()
        self._work = Background()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._kept_watches)
            await stack.enter_async_context(self._kept_silences)
            for output in self._outputs:
                await stack.enter_async_context(output)
            self._stack = stack.pop_all()
        await self._work.start(self._run(), "watcher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._work.stop(kind, error, trace)
        finally:
            await self._stack.__aexit__(kind, error, trace)

    # -- what others ask -----------------------------------------------------------------------------------

    @property
    def problems(self) -> list[str]:
        """What cannot be watched now, each with its reason."""
        found = [f"watching: {self._problem}"] if self._problem else []
        found += _late(self._horizons.late)
        found += [self._detectors.problem] if self._detectors.problem else []
        found += [output.problem for output in self._outputs if output.problem]
        if self._book.refused:
            found.append(
                f"{self._book.refused} alerts are not raised: {len(self._shown)} of at most"
                f" {self._config.max_open} are open, and some room is left for other tenants;"
                " raise max_open of [alerts], or narrow the watches"
            )
        for kept in (self._kept_watches, self._kept_silences):
            found += [f"{key} on the bus cannot be used: {why}" for key, why in kept.unreadable.items()]
        for watch in self.watches.all:
            unknown = self.unknown(watch.name).items()
            trouble = {n: why for n, why in unknown if (watch.name, n) in self._verdict.trouble}
            partial = {n: why for (name, n), why in self._verdict.partial.items() if name == watch.name}
            found += _told(f"watch {watch.name} cannot judge", trouble)
            found += _told(f"watch {watch.name} does not look at all of", partial)
        return found

    def unknown(self, watch: str) -> dict[int, str]:
        """Labels that a watch cannot judge now → why."""
        return {label: why for (name, label), why in self._verdict.unknown.items() if name == watch}

    def matched(self, watch: Watch) -> int:
        """How many present workloads a watch selects."""
        return len(self._conditions.chosen(watch.match))

    @property
    def open_alerts(self) -> list[Alert]:
        """The latest to be raised first."""
        return sorted(self._shown, key=lambda alert: -alert.first_seen)

    async def alerts(self, since: int) -> list[Alert]:
        """Open alerts, and those that ended since (unix ns). Raises StoreError."""
        found = self.open_alerts
        known = {alert.id for alert in found}
        stored = _readable(await self._store.alerts(False, since, _MOST_STORED))
        return found + [a for a in stored if a.id not in known and a.state == "resolved"]

    # -- what it does --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        restored = False
        while True:
            begun = time.monotonic()
            try:
                if not restored:
                    await self._restore()
                    restored = True
                await self._evaluate()
                self.evaluations += 1
                await self.silences.expire()
                self._report(None)
            except (StoreError, BusError) as error:
                self._report(str(error))
            await asyncio.sleep(max(0.0, self._config.interval_seconds - (time.monotonic() - begun)))

    async def _restore(self) -> None:
        stored = _readable(await self._store.alerts(True, 0, 2 * self._config.max_open))
        self._telling.restore(alert for alert in stored if alert.state == "resolved")
        found = [alert for alert in stored if alert.state != "resolved"]
        self._book.restore(found, time.monotonic())
        self._suspects.restore(found, time.time_ns())
        self._shown = self._book.alerts

    async def _evaluate(self) -> None:
        """One look at everything. Raises StoreError; then nothing is raised and nothing ended."""
        workloads = await self._store.present_workloads(time.time_ns() - _GONE_SECONDS * NS)
        if workloads != self._workloads:
            self._workloads = workloads
        await self._horizons.update(self._fleet.members, self._config.interval_seconds)
        self._verdict = await self._conditions.evaluate(self.watches.all, self._workloads)
        by_label = {workload.label: workload for workload in self._workloads}
        findings = [
            *self._verdict.findings,
            *await self._suspects.evaluate(by_label),
            *await self._detectors.evaluate(by_label),
        ]
        alerts, labels = self._silenced()
        moment = Moment(
            now=time.time_ns(),
            monotonic=time.monotonic(),
            silenced=lambda alert: alert.id in alerts or alert.label in labels,
            unknown=self._is_unknown,
        )
        changes = self._book.apply(findings, moment)
        self._unwritten |= changes.changed
        await self._show_flows(changes, findings)
        self._shown = self._book.alerts
        self._tell(changes)
        await self._write()

    def _tell(self, changes: Changes) -> None:
        """Tell people; what they were told is written with the rest."""
        for alert in changes.resolved:
            self._telling.ended(alert, alert.id in changes.silenced)
        told = self._telling.learn(self._shown) + self._telling.tell(self._shown, time.time_ns())
        self._unwritten |= {alert.id: alert for alert in told}

    def _silenced(self) -> tuple[set[str], set[int]]:
        """Ids of alerts, and labels, that are silenced now."""
        silences = self.silences.all
        chosen = [select(s.match, self._workloads) for s in silences if s.match is not None]
        return {s.alert for s in silences if s.alert}, {w.label for group in chosen for w in group}

    def _is_unknown(self, alert: Alert) -> bool:
        if alert.watch and (alert.watch, alert.label) in self._verdict.unknown:
            return True
        return bool(alert.host) and alert.host not in self._horizons.times

    async def _show_flows(self, changes: Changes, findings: Sequence[Finding]) -> None:
        """The flows behind what has just been raised; later ones would only say the same again."""
        window = Window(self._horizons.times, time.time_ns() // NS)
        wanted = {finding.key: finding.flows for finding in findings}
        for alert in changes.raised:
            if (flows := wanted.get(alert.key)) is None or alert.flows:
                continue
            try:
                alert.flows = await self._store.top_flows(window, flows, self._config.flows)
            except StoreError as error:
                log.warning("no flows for alert %s: %s", alert.id, error)  # an alert all the same

    async def _write(self) -> None:
        states = [
            StoredAlert(alert.id, self._is_open(alert), alert.last_seen, msgspec.json.encode(alert))
            for alert in self._unwritten.values()
        ]
        await self._store.put_alerts(states)
        self._unwritten = {}

    def _is_open(self, alert: Alert) -> bool:
        """Whether it is to be read again at the next start."""
        return alert.state != "resolved" or self._telling.owed(alert)

    def _report(self, problem: str | None) -> None:
        if problem != self._problem and problem is not None:
            log.warning("nothing is watched: %s", problem)
        self._problem = problem


def _late(hosts: Mapping[str, float]) -> list[str]:
    """`hosts`: → seconds. The latest ones by name."""
    latest = sorted(hosts, key=lambda host: -hosts[host])
    found = [
        f"host {host}: its rows come late: what it counted {hosts[host]:.0f} s ago is not stored yet;"
        " see that the bus and the store's disk keep up"
        for host in latest[:_MOST_LATE]
    ]
    more = len(latest) - len(found)
    return [*found, f"the rows of {more} other hosts come late, too"] if more else found


def _told(what: str, reasons: Mapping[int, str]) -> list[str]:
    """One line at most. `reasons`: label → why."""
    if not reasons:
        return []
    label, reason = min(reasons.items())
    more = f" (and {len(reasons) - 1} other labels)" if len(reasons) > 1 else ""
    return [f"{what} label {label}{more}: {reason}"]


def _readable(documents: Iterable[bytes]) -> list[Alert]:
    """Alerts as stored; one that another version wrote and this one cannot read is left out."""
    found = []
    for stored in documents:
        try:
            found.append(msgspec.json.decode(stored, type=Alert))
        except msgspec.MsgspecError as error:
            log.warning("an alert in the store cannot be read: %s", error)
    return found


def _outputs(config: AlertsConfig) -> list[Output]:
    """Those that the settings name. Raises ConfigError."""
    ways: list[Way] = []
    if config.webhook_url:
        if config.webhook_header_file is not None:
            header(config.webhook_header_file)
        ways.append(Webhook(config.webhook_url, config.webhook_header_file, config.webhook_timeout_seconds))
    if config.syslog:
        ways.append(Syslog(config.syslog, config.syslog_facility))
    return [Output(way, config.queue, config.per_minute, config.attempts) for way in ways]
