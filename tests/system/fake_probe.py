"""A probe made of numbers: it publishes rows and answers for a ledger, as the real one would."""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from eastwest.bus.client import Bus
from eastwest.bus.messages import (
    EVIDENCE,
    FLOWS,
    HOSTS_BUCKET,
    TOTALS,
    WORKLOADS,
    Cost,
    Evidence,
    HookCount,
    HostInterface,
    HostReport,
    PendingMessage,
    Port,
    ProbeLedger,
    ProgramCost,
    Workload,
    ledger_subject,
)
from eastwest.meter.rows import FLOW_ROW, TOTAL_ROW

START = 1_700_000_000_000_000_000


def mapped(address: bytes) -> np.void:
    """An IPv4 address as the kernel maps it into IPv6."""
    return np.void(bytes(10) + b"\xff\xff" + address)


def flow_rows(labels: list[int], packets: list[int], start: int = START) -> NDArray[Any]:
    """One row per label; 100 bytes per packet, 10.0.0.1:1000 → 10.0.0.2:80, TCP, egress of veth0."""
    rows = np.zeros(len(labels), FLOW_ROW)
    rows["src"], rows["dst"] = mapped(b"\x0a\x00\x00\x01"), mapped(b"\x0a\x00\x00\x02")
    rows["src_port"], rows["dst_port"], rows["protocol"], rows["direction"] = 1000, 80, 6, 1
    rows["label"], rows["packets"], rows["port"] = labels, packets, b"veth0"
    rows["bytes"] = rows["packets"] * 100
    rows["start"], rows["end"], rows["tcp_flags"] = start, start + 1_000_000_000, 0x1B
    return rows


def total_rows(seen: dict[int, int], lost: dict[int, int] | None = None) -> NDArray[Any]:
    """One account per label (serial = label) whose packets all left; lost: flow_map_full."""
    rows = np.zeros(len(seen), TOTAL_ROW)
    rows["serial"] = rows["label"] = list(seen)
    rows["egress_packets"] = list(seen.values())
    rows["egress_bytes"] = rows["egress_packets"] * 100
    rows["flow_map_full_packets"] = [(lost or {}).get(label, 0) for label in seen]
    rows["first_seen"], rows["last_seen"] = START, START + 5_000_000_000
    return rows


def workload(label: int, name: str, **other: Any) -> Workload:
    """A namespace with one port, tenant a, service web."""
    told: dict[str, Any] = {
        "label": label, "name": name, "kind": "netns", "host": "h", "tenant": "a", "network": "n",
        "service": "web", "service_id": 7, "traffic_class": "normal",
        "ports": [Port(f"veth{label}", 10 + label, "02:00:00:00:00:01")], "addresses": ["10.0.0.1"],
        "past_ports": ["old0"], "past_addresses": ["10.0.0.9"], "cgroup": "", "present": True,
        "first_seen": START, "last_seen": START + 1,
    }  # fmt: skip
    return Workload(**(told | other))


class FakeProbe:
    """Counts like a probe, on orders of the test."""

    interval = 1.0

    def __init__(self, bus: Bus, host: str = "h", boot: int = 1) -> None:
        self._bus = bus
        self.host = host
        self.boot = boot
        self.sequence = 0
        self.cut = 0
        self.seen: dict[int, int] = {}
        self.lost: dict[int, int] = {}
        self.held = 0
        self.outbox: list[PendingMessage] = []
        self.taps: list[str] = []

    async def flows(self, labels: list[int], packets: list[int], start: int = START) -> int:
        """Count and publish flows; the message's sequence."""
        self._count(labels, packets)
        return await self.send(FLOWS, flow_rows(labels, packets, start).tobytes())

    def keep(self, labels: list[int], packets: list[int]) -> int:
        """Count flows whose message is in the outbox."""
        self._count(labels, packets)
        self.sequence += 1
        message = PendingMessage(self.sequence, dict(zip(labels, packets, strict=True)))
        self.outbox.append(message)
        return self.sequence

    async def totals(self) -> None:
        """End a drain."""
        self.cut = await self.send(TOTALS, total_rows(self.seen, self.lost).tobytes())

    async def workloads(self, *workloads: Workload) -> None:
        await self.send(WORKLOADS, msgspec.json.encode(list(workloads)))

    async def evidence(self, *packets: Evidence) -> None:
        await self.send(EVIDENCE, msgspec.json.encode(list(packets)))

    async def send(self, subject: str, payload: bytes, sequence: int | None = None) -> int:
        """Publish any payload, with the next sequence or a given one."""
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        await self._bus.publish(
            f"{subject}.{self.host}", payload, host=self.host, boot=self.boot, sequence=sequence
        )
        return sequence

    async def answer(self) -> None:
        """Answer for the ledger from now on."""

        async def ledger(_: bytes) -> bytes:
            return msgspec.json.encode(
                ProbeLedger(
                    host=self.host,
                    boot=self.boot,
                    cut=self.cut,
                    seen=self.seen,
                    lost={label: {"flow_map_full": n} for label, n in self.lost.items()},
                    held=self.held,
                    outbox=self.outbox,
                )
            )

        await self._bus.serve(ledger_subject(self.host), ledger)

    async def report(self, time: int) -> None:
        """Write the host's report."""
        report = HostReport(
            host=self.host, boot=self.boot, cut=self.cut, time=time, started_at=START, version="0",
            interval_seconds=self.interval, hooks=[HookCount("port", 1, 2, 3, 4)],
            interfaces=[HostInterface("eth0", 10, 20, 1, 2)], malformed={"truncated": 3},
            cost=Cost(1.5, 1000, [ProgramCost("ingress", 10, 99.5)], 0), problems=["none; really"],
            taps=self.taps,
        )  # fmt: skip
        await self._bus.bucket(HOSTS_BUCKET).put(self.host, msgspec.json.encode(report))

    def _count(self, labels: list[int], packets: list[int]) -> None:
        for label, n in zip(labels, packets, strict=True):
            self.seen[label] = self.seen.get(label, 0) + n
