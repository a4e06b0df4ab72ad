"""How far the knowledge of each host reaches.

A probe reports its last cut; once that cut's last message is stored, everything the host counted until the
report's time is stored as well. That time, by the host's own clock, is its *horizon*: windows end there, so
that rows which come some seconds late are neither missed nor taken for silence. A host whose horizon does
not move on is *away*: nothing can be said of its workloads, neither that they are well nor that they are not.
Where its reports come and only its rows do not, these are *late*.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from eastwest.manager.fleet import Member
from eastwest.store.store import Store
from eastwest.store.watching import Cut

_REMEMBERED = 16
_LEAST_SECONDS = 10.0
_MISSED_REPORTS = 5


@dataclass(frozen=True)
class Report:
    """What a host's report says of its last cut. `received`: monotonic seconds of this process."""

    cut: Cut
    time: int
    received: float


@dataclass
class Host:
    """`interval`: seconds between its cuts; `patience`: without a move, until it is away; `since`: from when
    on (monotonic seconds) it has moved without a gap."""

    interval: float = 0.0
    patience: float = 0.0
    reports: list[Report] = field(default_factory=list)
    reached: Report | None = None
    since: float = 0.0


class Horizons:
    """The horizons of all hosts, as of the last update."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hosts: dict[str, Host] = {}
        self.times: dict[str, int] = {}
        """Host → horizon, of hosts that are not away."""
        self.away: dict[str, float] = {}
        """Host → seconds since its horizon last moved."""
        self.late: dict[str, float] = {}
        """Host → seconds for which what it counted has not been stored, though it reports."""

    async def update(self, members: Iterable[Member], interval: float) -> None:
        """Take the latest reports; `interval`: seconds between updates. Raises StoreError."""
        for member in members:
            self._note(member, interval)
        pending = {report.cut for host in self._hosts.values() for report in host.reports}
        # A cut 0: nothing was ever counted there, so nothing is missing.
        stored = await self._store.stored_cuts({cut for cut in pending if cut[2]})
        now = time.monotonic()
        self.times, self.away, self.late = {}, {}, {}
        for name, host in self._hosts.items():
            _advance(host, stored)
            age = now - host.reached.received if host.reached else float("inf")
            if host.reached is None or age > host.patience:
                self.away[name], host.since = age, 0.0
            else:
                host.since = host.since or now
                self.times[name] = host.reached.time
            if waiting := _waiting(host, now):
                self.late[name] = waiting

    def steady(self, host: str, now: float) -> float:
        """For how many seconds (`now`: monotonic) the host's horizon has moved without a gap."""
        known = self._hosts.get(host)
        return now - known.since if known and host in self.times else 0.0

    def interval(self, host: str) -> float:
        """Seconds between the host's cuts, as it reports; 0 where it never did."""
        known = self._hosts.get(host)
        return known.interval if known else 0.0

    def _note(self, member: Member, interval: float) -> None:
        report = member.report
        host = self._hosts.setdefault(report.host, Host())
        host.interval = report.interval_seconds
        host.patience = max(_LEAST_SECONDS, _MISSED_REPORTS * report.interval_seconds, 3 * interval)
        cut = (report.host, report.boot, report.cut)
        if not host.reports or host.reports[-1].time != report.time:
            if len(host.reports) >= _REMEMBERED:
                # The oldest stay, or the horizon of a host whose rows come late would never move.
                del host.reports[2::2]
            host.reports.append(Report(cut, report.time, member.received))


def _advance(host: Host, stored: set[Cut]) -> None:
    """Up to the latest report whose cut is stored; those before it are of no more use."""
    for index in range(len(host.reports) - 1, -1, -1):
        report = host.reports[index]
        if not report.cut[2] or report.cut in stored:
            host.reached = report
            del host.reports[:index]
            return


def _waiting(host: Host, now: float) -> float:
    """For how many seconds reports have come (and still do) whose cut is not stored; 0: as ever."""
    waiting = [report for report in host.reports if report is not host.reached]
    if not waiting or now - waiting[-1].received > host.patience:
        return 0.0
    seconds = now - waiting[0].received
    return seconds if seconds > host.patience else 0.0
