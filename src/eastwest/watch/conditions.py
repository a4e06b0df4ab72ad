"""The conditions of watches, held against what is stored.

Windows end at each host's horizon (see `watch.horizon`). What cannot be judged is unknown, and is never
taken for silence: a host that is away, one that came back less than a window ago, a workload that came less
than a window ago, and a workload whose peers have not been learned for long enough.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from eastwest.bus.messages import Watch, Workload
from eastwest.manager import views
from eastwest.manager.fleet import FORGIVEN_SECONDS
from eastwest.store.store import Store
from eastwest.store.watching import NS, FlowFilter, Pair, Traffic, Window
from eastwest.watch.alert import Finding, Key
from eastwest.watch.horizon import Horizons

_MAX_KNOWN = 200_000
_SHOWN_PEERS = 8
_WAYS = {"ingress": "received", "egress": "sent", "both": "sent and received"}


@dataclass
class Verdict:
    """What an evaluation of all watches found."""

    findings: list[Finding] = field(default_factory=list)
    unknown: dict[tuple[str, int], str] = field(default_factory=dict)
    """Watch and label of what cannot be judged → why."""
    trouble: set[tuple[str, int]] = field(default_factory=set)
    """Of these what needs mending; the rest only needs time, or its host may have been taken out."""


@dataclass(frozen=True)
class Case:
    """A watch and a workload that it selects, which can be judged."""

    watch: Watch
    workload: Workload

    def finding(self, figure: float, unit: str, text: str, flows: FlowFilter, subject: str = "") -> Finding:
        watch = self.watch
        return Finding(
            key=Key(watch.condition, watch.name, self.workload.label, subject),
            severity=watch.severity,
            figure=figure,
            threshold=watch.threshold,
            unit=unit,
            text=text,
            workload=self.workload,
            flows=flows,
            hold_seconds=watch.for_seconds,
        )


class Conditions:
    """Evaluates watches; remembers since when workloads are here and which peers are known."""

    def __init__(self, store: Store, horizons: Horizons) -> None:
        self._store = store
        self._horizons = horizons
        self._present: dict[int, float] = {}
        self._known: dict[tuple[str, int, str], None] = {}
        self._news: dict[tuple[str, int], dict[str, int]] = {}
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
                    if self._horizons.away.get(workload.host, FORGIVEN_SECONDS) < FORGIVEN_SECONDS:
                        verdict.trouble.add((watch.name, workload.label))
                else:
                    by_condition[watch.condition].append(Case(watch, workload))
        window = Window(self._horizons.times, time.time_ns() // NS)
        flow_cases = [c for k in ("rate_above", "rate_below", "suspect_share") for c in by_condition[k]]
        verdict.findings += await self._traffic(flow_cases, window)
        verdict.findings += await self._silence(by_condition["silence"])
        await self._peers(by_condition["new_peer"], window, verdict)
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
            age = self._horizons.away.get(host)
            if age is None or age == float("inf"):
                return f"host {host} has not reported to this server yet"
            return f"host {host} has not reported for {age:.0f} s"
        if watch.condition in ("rate_below", "silence"):
            watched = min(self._horizons.steady(host, now), now - self._present[workload.label])
            if watched < watch.window_seconds:
                return f"watched for {watched:.0f} of {watch.window_seconds} s"
        return ""

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

    async def _peers(self, cases: Sequence[Case], window: Window, verdict: Verdict) -> None:
        """New ones count as new for the watch's window after they were met first."""
        alike: dict[tuple[int, int], list[Case]] = defaultdict(list)
        for case in cases:
            alike[case.watch.window_seconds, case.watch.learn_seconds].append(case)
        for (seconds, learn), group in alike.items():
            labels = sorted({case.workload.label for case in group})
            fresh = await self._store.fresh_peers(window, seconds, labels)
            wanted = [p for p in fresh if any((c.watch.name, *p) not in self._known for c in group)]
            met, oldest = await self._store.known_peers(window, seconds, learn, wanted)
            since = (min(window.horizons.values()) // NS if window.horizons else 0) - seconds - learn
            by_label: dict[int, list[str]] = defaultdict(list)
            for pair in set(wanted) - met:
                by_label[pair[0]].append(pair[1])
            for case in group:
                label, name = case.workload.label, case.watch.name
                if oldest.get(label, 0) > since and label in by_label:
                    verdict.unknown[name, label] = f"its peers are not known for {learn} s yet"
                    continue
                self._remember(name, label, [p for p in met if p[0] == label])
                self._note_new(case, by_label[label], verdict)

    def _remember(self, watch: str, label: int, pairs: Iterable[Pair]) -> None:
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()  # the store still knows
        self._known.update(((watch, label, peer), None) for _, peer in pairs)

    def _note_new(self, case: Case, peers: Sequence[str], verdict: Verdict) -> None:
        label, name, seconds = case.workload.label, case.watch.name, case.watch.window_seconds
        now = self._horizons.times[case.workload.host]
        news = self._news.setdefault((name, label), {})
        for peer in peers:
            if (name, label, peer) not in self._known:
                news[peer] = now
        self._remember(name, label, [(label, peer) for peer in peers])
        for peer in [peer for peer, met in news.items() if met <= now - seconds * NS]:
            del news[peer]
        if not news:
            del self._news[name, label]
            return
        shown = sorted(news)
        more = f" and {len(shown) - _SHOWN_PEERS} more" if len(shown) > _SHOWN_PEERS else ""
        text = f"new peer {', '.join(shown[:_SHOWN_PEERS])}{more}"
        flows = FlowFilter([label], 2 * seconds, peers=shown[:_SHOWN_PEERS])
        verdict.findings.append(case.finding(float(len(shown)), "peers", text, flows))


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
