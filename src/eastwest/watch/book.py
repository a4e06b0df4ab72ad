"""The book of alerts: which are open, and what becomes of them when something is found or found no more.

An alert ends when two evaluations in a row do not find it: a figure that swings about its threshold raises
one alert, not many. Where nothing can be said (the host is away) it stays as it is, for an hour.

One workload must not fill the book, or nobody would learn of the others: of one kind and label so many are
open, and the last of them says how many more there are. Nor must one tenant: it may have a few times as many
open as there is room left, so there is always some for another.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from eastwest.watch.alert import Alert, Finding, Key

_MISSES = 2
_UNKNOWN_SECONDS = 3600.0
_MOST_ALIKE = 20
_SHARE = 3
"""A tenant's alerts to the room left: one alone has three quarters of it all."""
_KEEP_SECONDS = 30.0
"""An alert that only goes on is written again this often."""


@dataclass
class Open:
    """An open alert, and how it fares. Times: monotonic seconds."""

    alert: Alert
    found: float
    written: float = 0.0
    misses: int = 0


@dataclass(frozen=True)
class Moment:
    """When an evaluation was (`now`: unix ns), and what is known of alerts that it did not find."""

    now: int
    monotonic: float
    silenced: Callable[[Alert], bool]
    unknown: Callable[[Alert], bool]
    """Of which alerts nothing can be said."""


@dataclass
class Changes:
    """What an evaluation changed."""

    raised: list[Alert] = field(default_factory=list)
    """Firing from now on, also where a silence has ended."""
    resolved: list[Alert] = field(default_factory=list)
    silenced: set[str] = field(default_factory=set)
    """Ids of those resolved while they were silenced."""
    changed: dict[str, Alert] = field(default_factory=dict)
    """By id: all whose document is to be written anew."""


class Book:
    """All open alerts, by key."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[Key, Open] = {}
        self._pending: dict[Key, float] = {}
        self._alike: Counter[tuple[object, ...]] = Counter()
        self._folded: Counter[tuple[object, ...]] = Counter()
        self._tenants: Counter[str] = Counter()
        self.refused = 0
        """Findings that the last evaluation raised no alert for: there is no room, or their tenant has its
        share of it."""

    @property
    def alerts(self) -> list[Alert]:
        return [entry.alert for entry in self._open.values()]

    def restore(self, alerts: Iterable[Alert], now: float) -> None:
        """Alerts that were open when the server was last there."""
        for alert in alerts:
            self._open[alert.key] = Open(alert, now, now)

    def apply(self, findings: Iterable[Finding], moment: Moment) -> Changes:
        """Take one evaluation's findings."""
        changes = Changes()
        found = {finding.key: finding for finding in findings}
        self.refused = 0
        self._alike, self._folded = Counter(map(_group, self._open)), Counter()
        self._tenants = Counter(entry.alert.tenant for entry in self._open.values())
        self._pending = {key: since for key, since in self._pending.items() if key in found}
        for key, finding in found.items():
            entry = self._open.get(key) or self._raise(finding, moment)
            if entry is not None:
                self._go_on(entry, finding, moment, changes)
        for key in self._open.keys() - found.keys():
            self._miss(self._open[key], moment, changes)
        for key in reversed(self._open):
            # What is found has just been given its text anew.
            if key in found and (more := self._folded.pop(_group(key), 0)):
                self._open[key].alert.text += f" (and {more} more)"
        return changes

    def _raise(self, finding: Finding, moment: Moment) -> Open | None:
        since = self._pending.setdefault(finding.key, moment.monotonic)
        if moment.monotonic - since < finding.hold_seconds:
            return None
        if self._alike[_group(finding.key)] >= _MOST_ALIKE:
            self._folded[_group(finding.key)] += 1
            return None
        tenant = finding.workload.tenant if finding.workload else ""
        room = self._limit - len(self._open)
        if room <= 0 or self._tenants[tenant] >= _SHARE * room:
            self.refused += 1
            return None
        del self._pending[finding.key]
        self._tenants[tenant] += 1
        self._alike[_group(finding.key)] += 1
        kind, watch, label, subject = finding.key
        alert = Alert(
            id=secrets.token_hex(6),
            kind=kind,
            watch=watch,
            label=label,
            subject=subject,
            state="resolved",
            severity=finding.severity,
            figure=finding.figure,
            threshold=finding.threshold,
            unit=finding.unit,
            text=finding.text,
            first_seen=moment.now,
            last_seen=moment.now,
        )
        entry = self._open[finding.key] = Open(alert, moment.monotonic)
        return entry

    def _go_on(self, entry: Open, finding: Finding, moment: Moment, changes: Changes) -> None:
        entry.alert.take(finding, moment.now)
        entry.misses, entry.found = 0, moment.monotonic
        _set_state(entry, moment, changes)
        # What comes with evidence is told once, so it must not be lost.
        if finding.evidence or moment.monotonic - entry.written >= _KEEP_SECONDS:
            _write(entry, moment, changes)

    def _miss(self, entry: Open, moment: Moment, changes: Changes) -> None:
        alert = entry.alert
        if moment.unknown(alert) and moment.monotonic - entry.found < _UNKNOWN_SECONDS:
            _set_state(entry, moment, changes)
            return
        entry.misses += 1
        if entry.misses < _MISSES:
            return
        del self._open[alert.key]
        if alert.state == "silenced":
            changes.silenced.add(alert.id)
        alert.state, alert.resolved_at = "resolved", moment.now
        _write(entry, moment, changes)
        changes.resolved.append(alert)


def _group(key: Key) -> tuple[object, ...]:
    """Whose findings are counted together; those of another watch never are."""
    return key.kind, key.watch, key.label


def _set_state(entry: Open, moment: Moment, changes: Changes) -> None:
    silenced = moment.silenced(entry.alert)
    if entry.alert.state == ("silenced" if silenced else "firing"):
        return
    entry.alert.state = "silenced" if silenced else "firing"
    _write(entry, moment, changes)
    if not silenced:
        changes.raised.append(entry.alert)


def _write(entry: Open, moment: Moment, changes: Changes) -> None:
    entry.written = moment.monotonic
    changes.changed[entry.alert.id] = entry.alert
