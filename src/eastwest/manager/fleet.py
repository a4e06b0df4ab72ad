"""The fleet: the last report of every probe."""

import time
from collections import Counter
from dataclasses import dataclass

import msgspec

from eastwest.bus.background import Working
from eastwest.bus.client import Bus
from eastwest.bus.messages import HOSTS_BUCKET, HostReport

_MISSED_REPORTS = 3
_LEAST_SECONDS = 5.0
FORGIVEN_SECONDS = 86400.0
_MOST_PROBLEMS = 5
# Far above what an honest probe reports.
_MANY, _LONG, _HUGE, _LATEST = 4096, 4096, 1 << 64, 1 << 63


@dataclass(frozen=True)
class Member:
    """A host's last report, and when it was received (monotonic seconds)."""

    report: HostReport
    received: float

    @property
    def age(self) -> float:
        """Seconds since the report; by this server's clock, as the host's may be wrong."""
        return max(0.0, time.monotonic() - self.received)

    @property
    def alive(self) -> bool:
        return self.age <= max(_LEAST_SECONDS, _MISSED_REPORTS * self.report.interval_seconds)

    @property
    def silence(self) -> str:
        """What is wrong where it is not alive, with the remedy."""
        if self.alive:
            return ""
        remedy = "see that its probe runs, and that the disk of the bus has room"
        return f"no report for {self.age:.0f} s; {remedy}"


class Fleet(Working):
    """Follows the hosts' reports while it is entered."""

    def __init__(self, bus: Bus) -> None:
        super().__init__("fleet")
        self._bus = bus
        self._members: dict[str, Member] = {}
        self.malformed: Counter[str] = Counter()
        """Reports that could not be read, by host."""
        self._unreadable: dict[str, str] = {}
        """Why the last report of a host could not be read."""

    @property
    def members(self) -> list[Member]:
        return [self._members[host] for host in sorted(self._members)]

    @property
    def problems(self) -> list[str]:
        """Hosts that fell silent not long ago; one that has been for longer may have been taken out."""
        silent = [m for m in self.members if not m.alive and m.age < FORGIVEN_SECONDS]
        unreadable = sorted(self._unreadable.items())[:_MOST_PROBLEMS]
        return [f"host {member.report.host}: {member.silence}" for member in silent] + [
            f"host {host}: its report cannot be read ({why}); see that its probe is of this version"
            for host, why in unreadable
        ]

    async def _run(self) -> None:
        async for host, document in self._bus.bucket(HOSTS_BUCKET).watch():
            self._unreadable.pop(host, None)
            if document is None:
                self._members.pop(host, None)
                continue
            try:
                report = msgspec.json.decode(document, type=HostReport)
                _refuse_impossible(report, host)
            except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
                self.malformed[host] += 1
                self._unreadable[host] = str(error)[:100]
                continue
            self._take(report)

    def _take(self, report: HostReport) -> None:
        before = self._members.get(report.host)
        if before is None:
            # The first may be old, written before this server ran: only its own time tells.
            age = max(0.0, time.time() - report.time / 1e9)
            self._members[report.host] = Member(report, time.monotonic() - age)
        elif before.report != report:
            self._members[report.host] = Member(report, time.monotonic())


def _refuse_impossible(report: HostReport, host: str) -> None:
    """Raises ValueError for what would break those who read it, whatever else it says."""
    if report.host != host:
        raise ValueError("it is another host's")
    if not all(0 <= at < _LATEST for at in (report.time, report.started_at, report.cost.sampled_at)):
        raise ValueError("a time is impossible")
    if not _sane(msgspec.to_builtins(report)):
        raise ValueError("a number or text is out of bounds")


def _sane(part: object) -> bool:
    if isinstance(part, dict):
        return len(part) <= _MANY and all(_sane(key) and _sane(value) for key, value in part.items())
    if isinstance(part, list):
        return len(part) <= _MANY and all(map(_sane, part))
    if isinstance(part, str):
        return len(part) <= _LONG
    return part is None or (isinstance(part, int | float) and abs(part) < _HUGE)
