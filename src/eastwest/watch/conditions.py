"""The conditions of watches, held against what is stored.

Windows end at each host's horizon (see `watch.horizon`). What cannot be judged is unknown, and is never
taken for silence: a host that is away, one that came back less than a window ago, a workload that came less
than a window ago, a workload whose peers have not been learned for long enough, and a rate over a window
of few of the host's intervals.
"""

import math
import time
from collections import defaultdict
from collections.abc import Sequence

from eastwest.bus.messages import Watch, Workload
from eastwest.manager import views
from eastwest.manager.fleet import FORGIVEN_SECONDS
from eastwest.store.store import Store
from eastwest.store.watching import NS, FlowFilter, Traffic, Window
from eastwest.watch.alert import Finding
from eastwest.watch.horizon import Horizons
from eastwest.watch.peers import Peers
from eastwest.watch.verdict import Case, Verdict

_LEAST_INTERVALS = 5
"""A flow row counts in the window in which it ends: over fewer a rate would be wrong by a fifth or more."""
_WAYS = {"ingress": "received", "egress": "sent", "both": "sent and received"}


class Conditions:
    """Evaluates watches; remembers since when workloads are here."""

    def __init__(self, store: Store, horizons: Horizons) -> None:
        self._store = store
        self._horizons = horizons
        self._peers = Peers(store)
        self._present: dict[int, float] = {}
        self._workloads: Sequence[Workload] = ()
        self._chosen: dict[str, list[Workload]] = {}

    async def evaluate(self, watches: Sequence[Watch], workloads: Sequence[Workload]) -> Verdict:
        """One look at all of them. Raises StoreError."""
        now = time.monotonic()
        if workloads is not self._workloads:
            self._workloads, self._chosen = workloads, {}
        self._present = {w.label: self._present.get(w.label, now) for w in workloads if w.present}
        verdict = Verdict()
        by_condition: dict[str, list[Case]] = defaultdict(list)
        for watch in watches:
            for workload in self.chosen(watch.match):
                reason = self._blind(watch, workload, now)
                if reason:
                    verdict.unknown[watch.name, workload.label] = reason
                    away = self._horizons.away.get(workload.host, FORGIVEN_SECONDS)
                    late = workload.host in self._horizons.late
                    if late or away < FORGIVEN_SECONDS or self._too_short(watch, workload.host):
                        verdict.trouble.add((watch.name, workload.label))
                else:
                    by_condition[watch.condition].append(Case(watch, workload))
        window = Window(self._horizons.times, time.time_ns() // NS)
        flow_cases = [c for k in ("rate_above", "rate_below", "suspect_share") for c in by_condition[k]]
        verdict.findings += await self._traffic(flow_cases, window)
        verdict.findings += await self._silence(by_condition["silence"])
        await self._peers.evaluate(by_condition["new_peer"], window, self._horizons.times, verdict)
        return verdict

    def chosen(self, match: str) -> list[Workload]:
        """The present workloads that a selector chooses, as of the last evaluation."""
        if match not in self._chosen:
            self._chosen[match] = [w for w in select(match, self._workloads) if w.present]
        return self._chosen[match]

    def _blind(self, watch: Watch, workload: Workload, now: float) -> str:
        """Why nothing can be said of a workload; empty: something can."""
        host = workload.host
        if host not in self._horizons.times:
            if late := self._horizons.late.get(host):
                return f"what host {host} counted {late:.0f} s ago is not stored yet"
            age = self._horizons.away.get(host)
            if age is None or age == float("inf"):
                return f"host {host} has not reported to this server yet"
            return f"host {host} has not reported for {age:.0f} s"
        if least := self._too_short(watch, host):
            return (
                f"host {host} counts every {self._horizons.interval(host):g} s only; set window_seconds to"
                f" {least} or more"
            )
        if watch.condition in ("rate_below", "silence"):
            watched = min(self._horizons.steady(host, now), now - self._present[workload.label])
            if watched < watch.window_seconds:
                return f"watched for {watched:.0f} of {watch.window_seconds} s"
        return ""

    def _too_short(self, watch: Watch, host: str) -> int:
        """What a rate's window (seconds) must be for this host, where it is shorter; else 0."""
        least = math.ceil(_LEAST_INTERVALS * self._horizons.interval(host))
        rate = watch.condition in ("rate_above", "rate_below")
        return least if rate and watch.window_seconds < least else 0

    async def _traffic(self, cases: Sequence[Case], window: Window) -> list[Finding]:
        lengths = sorted({case.watch.window_seconds for case in cases})
        labels = sorted({case.workload.label for case in cases})
        rows = await self._store.traffic(window, lengths, labels) if cases else []
        counted = {(row.label, row.seconds): row for row in rows}
        found = []
        for case in cases:
            seconds, label = case.watch.window_seconds, case.workload.label
            row = counted.get((label, seconds), Traffic(label, seconds, 0, 0, 0, 0, 0, 0))
            if finding := _share(case, row) if case.watch.condition == "suspect_share" else _rate(case, row):
                found.append(finding)
        return found

    async def _silence(self, cases: Sequence[Case]) -> list[Finding]:
        labels = sorted({case.workload.label for case in cases})
        last = await self._store.last_packets(labels) if cases else {}
        found = []
        for case in cases:
            workload, seconds = case.workload, case.watch.window_seconds
            horizon = self._horizons.times[workload.host]
            quiet = (horizon - last.get(workload.label, workload.first_seen)) / NS
            if quiet >= seconds:
                text = f"no packet for {seconds} s"
                flows = FlowFilter([workload.label], min(int(quiet) + 60, 86400))
                found.append(case.finding(round(quiet, 3), "seconds", text, flows))
        return found


def select(match: str, workloads: Sequence[Workload]) -> list[Workload]:
    """The workloads, gone ones too, that a selector chooses."""
    labels = views.selected(match, workloads)
    if labels is None:
        return list(workloads)
    wanted = set(labels)
    return [w for w in workloads if w.label in wanted]


def _rate(case: Case, row: Traffic) -> Finding | None:
    watch = case.watch
    parts = {
        "ingress": getattr(row, f"ingress_{watch.unit}"),
        "egress": getattr(row, f"egress_{watch.unit}"),
    }
    total = sum(parts.values()) if watch.direction == "both" else parts[watch.direction]
    rate = total / watch.window_seconds
    above = watch.condition == "rate_above"
    if not (rate > watch.threshold if above else rate < watch.threshold):
        return None
    text = (
        f"{_WAYS[watch.direction]} {rate:g} {watch.unit}/s over {watch.window_seconds} s,"
        f" {'above' if above else 'below'} {watch.threshold:g}"
    )
    direction = "" if watch.direction == "both" else watch.direction
    flows = FlowFilter([row.label], row.seconds, direction)
    return case.finding(rate, f"{watch.unit}/s", text, flows)


def _share(case: Case, row: Traffic) -> Finding | None:
    packets = row.ingress_packets + row.egress_packets
    share = row.suspect_packets / packets if packets else 0.0
    if share <= case.watch.threshold:
        return None
    text = (
        f"{row.suspect_packets} of {packets} packets suspect in {row.seconds} s"
        f" ({share:.4g}), above {case.watch.threshold:g}"
    )
    return case.finding(share, "share", text, FlowFilter([row.label], row.seconds, suspect=True))
