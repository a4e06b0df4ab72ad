"""Port scans, address sweeps and SYN floods: patterns of flow rows that nobody has to declare.

All are about attempts that got no answer, and all need more unanswered than answered ones: a busy client, a
resolver, a load test or a monitoring system does the same, but is answered. What is found is named after the
workload that does it, a flood after the one it hits, where that end is one of ours. Seen from both ends it is
one finding.
"""

import time
from collections.abc import Iterable, Mapping, Sequence

from eastwest.bus.messages import Workload
from eastwest.errors import StoreError
from eastwest.store.detection import Limits, Pattern
from eastwest.store.store import Store
from eastwest.store.watching import NS, FlowFilter, Window
from eastwest.watch.alert import Finding, Key
from eastwest.watch.config import DetectConfig
from eastwest.watch.horizon import Horizons

_SHARE = 0.1
"""Of the store's time: where a look takes long, the next one waits."""
_SLOW_LOOKS = 3
"""So many in a row, and people are told: one may only have waited for something else."""


class Detectors:
    """Looks for what the settings have switched on."""

    def __init__(self, config: DetectConfig, store: Store, horizons: Horizons) -> None:
        self._config = config
        self._store = store
        self._horizons = horizons
        self._found: list[Finding] = []
        self._due = 0.0
        self._slow = 0
        self.problem: str | None = None
        """Why something may go undetected."""

    async def evaluate(self, workloads: Mapping[int, Workload]) -> list[Finding]:
        """What is found now; where the store takes too long, or fails, what was found last."""
        config = self._config
        begun = time.monotonic()
        if begun < self._due or not (config.port_scan or config.address_sweep or config.syn_flood):
            return self._found
        realms = _realms(workloads.values())
        window = Window(self._horizons.times, time.time_ns() // NS)
        try:
            patterns = await self._store.patterns(window, limits(config), realms)
            self._found = [self._finding(p, workloads) for p in _once(patterns, workloads)]
        except StoreError as error:
            # The watches have statements of their own, which may be well.
            self._due = begun + self.pause(time.monotonic() - begun)
            self.problem = f"scans and floods are not looked for: {error}"
            return self._found
        self._due = begun + self.pause(time.monotonic() - begun)
        return self._found

    def pause(self, seconds: float) -> float:
        """From the beginning of a look that took `seconds` until the next; notes where that is too long."""
        wait = seconds / _SHARE
        self._slow = self._slow + 1 if wait > self._config.window_seconds else 0
        self.problem = None
        if self._slow >= _SLOW_LOOKS:
            self.problem = (
                f"there are so many flows that scans and floods are looked for every {wait:.0f} s only;"
                " raise window_seconds of [detect], or switch detectors off"
            )
        return wait

    def _finding(self, pattern: Pattern, workloads: Mapping[int, Workload]) -> Finding:
        config = self._config
        labels = (pattern.src_label, pattern.dst_label)
        by_victim = pattern.kind == "syn_flood"
        label = (labels[1] or labels[0]) if by_victim else (labels[0] or labels[1])
        threshold, unit, figure, text = _told(pattern, config)
        seconds = config.window_seconds + config.settle_seconds
        flows = FlowFilter(
            [label],
            seconds,
            direction="egress" if label == pattern.src_label else "ingress",
            unanswered=True,
            src=pattern.src,
            dst=pattern.dst,
            dst_port=pattern.dst_port if by_victim else None,
        )
        target = f"{pattern.dst} port {pattern.dst_port}" if by_victim else pattern.dst
        return Finding(
            key=Key(pattern.kind, "", label, " to ".join(filter(None, (pattern.src, target)))),
            severity="critical" if by_victim else "warning",
            figure=figure,
            threshold=threshold,
            unit=unit,
            text=text,
            workload=workloads.get(label),
            flows=flows,
        )


def limits(config: DetectConfig) -> Limits:
    """The settings as the store wants them; what is switched off has the limit 0."""
    return Limits(
        seconds=config.window_seconds,
        settle=config.settle_seconds,
        ports=config.port_scan_ports if config.port_scan else 0,
        addresses=config.address_sweep_addresses if config.address_sweep else 0,
        syn_packets=config.syn_flood_packets_per_second * config.window_seconds if config.syn_flood else 0,
    )


def _told(pattern: Pattern, config: DetectConfig) -> tuple[float, str, float, str]:
    """Threshold, unit, figure, and all of it in words."""
    seconds, figure, answered = config.window_seconds, pattern.figure, pattern.answered
    if pattern.kind == "syn_flood":
        rate = figure / seconds
        text = (
            f"SYN flood on {pattern.dst} port {pattern.dst_port}: {rate:g} unanswered SYN packets/s from"
            f" {pattern.sources} addresses over {seconds} s, {answered} connections came about"
        )
        return float(config.syn_flood_packets_per_second), "packets/s", rate, text
    if pattern.kind == "port_scan":
        text = (
            f"port scan from {pattern.src} on {pattern.dst}: {figure} ports without an answer in {seconds} s,"
            f" {answered} answered"
        )
        return float(config.port_scan_ports), "ports", float(figure), text
    text = (
        f"address sweep from {pattern.src}: {figure} addresses without an answer in {seconds} s,"
        f" {answered} answered"
    )
    return float(config.address_sweep_addresses), "addresses", float(figure), text


def _realms(workloads: Iterable[Workload]) -> dict[int, int]:
    """Label → number of its realm: within one, an address is one workload's."""
    numbers: dict[tuple[str, str, str], int] = {}
    found = {}
    for workload in workloads:
        realm = (workload.tenant, workload.network, "" if workload.network else workload.host)
        found[workload.label] = numbers.setdefault(realm, len(numbers) + 1)
    return found


def _once(patterns: Sequence[Pattern], workloads: Mapping[int, Workload]) -> list[Pattern]:
    """Where two realms saw the same from its two ends, only what names the workload that matters."""
    named = [pattern for pattern in patterns if _matters(pattern)]
    known = {_ends(pattern, workloads) for pattern in named}
    return named + [p for p in patterns if not _matters(p) and _ends(p, workloads) not in known]


def _matters(pattern: Pattern) -> int:
    return pattern.dst_label if pattern.kind == "syn_flood" else pattern.src_label


def _ends(pattern: Pattern, workloads: Mapping[int, Workload]) -> tuple[object, ...]:
    labels = pattern.src_label, pattern.dst_label
    tenants = frozenset(workloads[label].tenant for label in labels if label in workloads)
    return pattern.kind, pattern.src, pattern.dst, pattern.dst_port, tenants
