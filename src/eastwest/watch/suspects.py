"""Alerts about suspect traffic, from the packets that hooks kept as evidence.

One alert per label and entry, however many packets there are: it goes on as long as evidence comes, and ends
when none came for a minute. The kernel limits how many packets it keeps, so their number is no measure of the
traffic; how much there is, the label's suspect counters say.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from eastwest.bus.messages import Evidence, Workload
from eastwest.manager.views import rfc3339
from eastwest.store.reads import Witnessed
from eastwest.store.store import Store
from eastwest.store.watching import NS, FlowFilter
from eastwest.watch.alert import MAX_EVIDENCE, Alert, Finding, Key

KIND = "suspect"
_QUIET_SECONDS = 60.0
_FLOW_SECONDS = 60


class Suspects:
    """Reads evidence as it is stored, each packet once, also over the server's restarts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watermark = 0
        self._counts: dict[Key, int] = {}
        self._last: dict[Key, tuple[float, Finding]] = {}

    def restore(self, alerts: Iterable[Alert], now: int) -> None:
        """Go on behind what the open alerts have told; what is older than that is no news."""
        ours = [alert for alert in alerts if alert.kind == KIND]
        self._watermark = max((a.watermark for a in ours), default=now - int(_QUIET_SECONDS) * NS)
        for alert in ours:
            self._counts[alert.key] = int(alert.figure)
            self._last[alert.key] = (time.monotonic(), _again(alert))

    async def evaluate(self, workloads: Mapping[int, Workload]) -> list[Finding]:
        """What holds now: where evidence came within the last minute. Raises StoreError."""
        now = time.monotonic()
        fresh: dict[Key, list[Witnessed]] = defaultdict(list)
        for seen in await self._store.evidence(self._watermark):
            self._watermark = seen.received
            key = Key(KIND, "", seen.evidence.label, seen.evidence.entry)
            fresh[key].append(seen)
        for key, packets in fresh.items():
            self._counts[key] = self._counts.get(key, 0) + len(packets)
            self._last[key] = (now, self._finding(key, packets, workloads.get(key.label)))
        found = [finding for _, finding in self._last.values()]
        quiet = [key for key, (last, _) in self._last.items() if now - last > _QUIET_SECONDS]
        for key in quiet:
            del self._last[key], self._counts[key]
        # The next evaluation must not tell of the same packets again.
        self._last = {k: (at, msgspec.structs.replace(f, evidence=[])) for k, (at, f) in self._last.items()}
        return [finding for finding in found if finding.key not in quiet]

    def _finding(self, key: Key, packets: list[Witnessed], workload: Workload | None) -> Finding:
        first = packets[0].evidence
        declared = f"entry {key.subject}" if key.subject else "its class is suspect"
        count = self._counts[key]
        return Finding(
            key=key,
            severity="critical",
            figure=float(count),
            threshold=0.0,
            unit="evidence packets",
            text=f"suspect traffic ({declared}): {_told(first)}; {count} packets kept as evidence",
            workload=workload,
            flows=FlowFilter([key.label], _FLOW_SECONDS, suspect=True),
            evidence=[_shown(seen.evidence) for seen in packets[:MAX_EVIDENCE]],
            watermark=packets[-1].received,
        )


def _again(alert: Alert) -> Finding:
    """What an alert was found with last."""
    return Finding(
        key=alert.key,
        severity=alert.severity,
        figure=alert.figure,
        threshold=alert.threshold,
        unit=alert.unit,
        text=alert.text.removeprefix(f"{alert.who}: "),
        watermark=alert.watermark,
    )


def _told(packet: Evidence) -> str:
    dropped = ", dropped" if packet.dropped else ""
    return (
        f"{packet.direction} {packet.src} port {packet.src_port} to {packet.dst} port {packet.dst_port},"
        f" protocol {packet.protocol}{dropped}"
    )


def _shown(packet: Evidence) -> dict[str, Any]:
    """As the API shows it: the packet in base64."""
    document: dict[str, Any] = msgspec.to_builtins(packet)
    return document | {"time": rfc3339(packet.time)}
