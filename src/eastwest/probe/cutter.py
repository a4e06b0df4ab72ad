"""Turns cuts into numbered messages in the outbox, each cut in one transaction."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv6Address
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from eastwest.bus.messages import (
    EVIDENCE,
    FLOWS,
    TOTALS,
    WORKLOADS,
    HookCount,
    PendingMessage,
    ProbeLedger,
)
from eastwest.kernel.records import enumeration
from eastwest.labels.registry import ADDRESSES_KEPT, Registry
from eastwest.meter.accounts import Accounts, Held
from eastwest.meter.drain import Counters, Cut, Drain, Flows
from eastwest.meter.rows import FLOW_ROW, sum_by_label
from eastwest.probe.booking import Booking
from eastwest.probe.config import ProbeConfig
from eastwest.probe.evidence import EvidenceReader
from eastwest.probe.journal import Journal, Outgoing
from eastwest.probe.lives import Lives, Tally

log = logging.getLogger(__name__)

ROWS_PER_MESSAGE = 4096
_STEP = 8 * ROWS_PER_MESSAGE
WORKLOADS_PER_MESSAGE = 256
EVIDENCE_PER_MESSAGE = 512
_ETHERTYPE_LOWEST = 1500
_REMEMBERED = 3600 * 10**9
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio (Knuth, 6.4)


class Cutter:
    """Everything between the kernel's idle half and the outbox. One task drives it."""

    def __init__(
        self,
        *,
        config: ProbeConfig,
        boot: int,
        drain: Drain,
        accounts: Accounts,
        booking: Booking,
        lives: Lives,
        registry: Registry,
        evidence: EvidenceReader,
        journal: Journal,
    ) -> None:
        self._config = config
        self._boot = boot
        self._drain = drain
        self._accounts = accounts
        self._booking = booking
        self._lives = lives
        self._registry = registry
        self._evidence = evidence
        self._journal = journal
        self._waiting: Cut | None = None
        self._recorded = journal.number("recorded")
        """Flows of the cut that waits whose rows are on disk."""
        self._senders: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._safe: Flows | None = None
        self._lost = False
        self._at = time.time_ns()
        self.held = _read_held(journal)
        self.hooks: Counters | None = None
        self.sequence = journal.number("cut")
        """Of the message that ended the last cut."""
        self.ledger: dict[int, Tally] = {}
        """label → what was seen and lost, as of that cut."""
        self.time = 0

    def hook_counts(self) -> list[HookCount]:
        """What the hooks saw, as of the last cut; empty before the first."""
        if self.hooks is None:
            return []
        rows, numbers = self.hooks.astype(object), enumeration("hook")
        return [
            HookCount("port", *rows[numbers["HOOK_PORT"]]),
            HookCount("cgroup", *rows[numbers["HOOK_CGROUP"]]),
        ]

    @property
    def held_packets(self) -> int:
        """Packets in rows that wait for their workload."""
        return int(np.sum(self.held.rows["packets"]))

    async def answer(self, _: bytes) -> bytes:
        """What was seen, lost and is on its way, as a `ProbeLedger`."""
        unsent = self._journal.unsent(self._boot)
        ledger = ProbeLedger(
            host=self._config.host,
            boot=self._boot,
            cut=self.sequence,
            seen={label: tally.seen for label, tally in self.ledger.items()},
            lost={label: tally.lost for label, tally in self.ledger.items() if tally.lost},
            held=self.held_packets,
            outbox=[PendingMessage(sequence, packets) for sequence, packets in unsent],
        )
        return msgspec.json.encode(ledger)

    def adopt(self) -> None:
        """Go on where the probe before this one stopped, between whichever two steps that was."""
        drained = self._journal.number("drained")
        self._booking.reconcile()
        if self._drain.generation > drained:
            # It flipped, and stopped before this was safe. Totals follow with the first cut.
            self._record(self._drain.idle_flows())
        self._drain.clear(self._drain.idle_flows())

    def cut(self) -> Cut | None:
        """Flip and read; None where an earlier cut could not be written yet. Blocks: call in a thread."""
        if self._waiting:
            return None
        self.clear()
        return self._drain.cut()

    def clear(self) -> None:
        """Have the kernel forget what is recorded, before the next cut at the latest. Blocks."""
        if self._safe:
            self._drain.clear(self._safe)
            self._safe = None

    def record(self, cut: Cut | None) -> Iterator[None]:
        """Put a cut into the outbox, a large one in steps: what is there already can be sent between them.

        Raises StoreError: then what is left of it waits for the next call.
        """
        if cut:
            self._at = time.time_ns()
            self._accounts.update(cut.accounts, self._at)
            self._waiting = cut
        self._booking.reconcile()
        if cut:
            self._lost = self._journal.outbox_bytes() > self._config.outbox_max_bytes
            if self._lost:
                self._accounts.lose(cut.flows)
        if self._waiting:
            yield from self._record_ahead(self._waiting.flows)
            self._record(self._waiting.flows, totals=True)
            self.time, self.hooks = self._at, self._waiting.hooks
            self._safe, self._waiting = self._waiting.flows, None
            self._lives.after_cut()

    def _record_ahead(self, flows: Flows) -> Iterator[None]:
        """All of a large cut but its last rows, in transactions of their own.

        Killed in between: the next probe reads the same half, which nobody writes, in the same order, and
        goes on behind what is recorded.
        """
        while not self._lost and len(flows.keys) - self._recorded > _STEP:
            done = self._recorded + _STEP
            rows = self._accounts.rows(flows.part(self._recorded, done), _clock_offset(), ROWS_PER_MESSAGE)
            parts = [self._accounts.release(part) for part in rows]
            if any(len(kept.rows) for _, kept in parts):
                return  # what is held is written with the rest, at once
            with self._journal.transaction():
                senders = [self._send_flows(ready) for ready, _ in parts]
                self._journal.set_number("recorded", done)
            self._recorded = done
            self._senders += senders
            yield

    def _record(self, flows: Flows, totals: bool = False) -> None:
        rest, offset = flows.part(self._recorded), _clock_offset()
        fresh = iter(()) if self._lost else self._accounts.rows(rest, offset, ROWS_PER_MESSAGE)
        waiting, senders = [], [*self._senders]
        with self._journal.transaction():
            for part in chain(self.held.parts(ROWS_PER_MESSAGE), fresh):
                ready, kept = self._accounts.release(part)
                if len(kept.rows):
                    waiting.append(kept)
                if len(ready):
                    senders.append(self._send_flows(ready))
            held = Held.joined(waiting)
            self._note_addresses(senders)
            if totals:
                self._send_evidence(offset)
                self._lives.keep_counts()
                self._send_state(flows=bool(senders))
            self._journal.hold(_held_blobs(held))
            self._journal.set_number("recorded", 0)
            self._journal.set_number("drained", flows.generation + 1)
        self.held, self._recorded, self._senders = held, 0, []
        if totals:
            self._accounts.sent()
            self._evidence.sent()
            self._registry.told()
            self._registry.forget_gone(self._at - _REMEMBERED)
            self.sequence = self._journal.number("cut")
            self.ledger = self._lives.ledger()

    def _send_evidence(self, clock_offset: int) -> None:
        found = self._evidence.ready(self._accounts, clock_offset)
        if self._lost:
            self._evidence.give_up()  # no room for flows either
            return
        for start in range(0, len(found), EVIDENCE_PER_MESSAGE):
            self._send(EVIDENCE, msgspec.json.encode(found[start : start + EVIDENCE_PER_MESSAGE]), {})

    def _send_state(self, flows: bool) -> None:
        workloads = self._registry.changed()
        for start in range(0, len(workloads), WORKLOADS_PER_MESSAGE):
            self._send(WORKLOADS, msgspec.json.encode(workloads[start : start + WORKLOADS_PER_MESSAGE]), {})
        changed = self._accounts.changed_totals()
        # After flows there are totals, if empty ones: the outbox sends flows side by side, and then these.
        for start in range(0, max(len(changed), flows), ROWS_PER_MESSAGE):
            self._send(TOTALS, changed[start : start + ROWS_PER_MESSAGE].tobytes(), {})
        self._journal.set_number("cut", self._journal.number("sequence"))

    def _send_flows(self, rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Into the outbox; who sent, as `_senders` has it."""
        self._send(FLOWS, rows.tobytes(), sum_by_label(rows))
        return _senders(rows)

    def _send(self, kind: str, payload: bytes, packets: dict[int, int]) -> None:
        sequence = self._journal.take("sequence")
        subject = f"{kind}.{self._config.host}"
        self._journal.send(Outgoing(self._boot, sequence, subject, payload, packets))

    def _note_addresses(self, parts: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> None:
        """Addresses that workloads sent from, of what `_senders` found."""
        if not parts:
            return
        labels, sources = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        chosen = _distinct(labels, sources)
        labels, sources = labels[chosen], sources[chosen]
        for label in _runs(labels):
            # One that sends from more at a time makes them up; no more are remembered anyway.
            addresses = _addresses(sources[label][:ADDRESSES_KEPT])
            self._registry.saw_addresses(int(labels[label.start]), addresses, self._at)


def _clock_offset() -> int:
    """Unix less monotonic, ns."""
    return time.time_ns() - time.monotonic_ns()


def _senders(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels of workloads that sent, and from where: each pair once, found without a look at a row."""
    egress = enumeration("direction")["DIRECTION_EGRESS"]
    sent = (rows["direction"] == egress) & (rows["label"] != 0) & (rows["protocol"] < _ETHERTYPE_LOWEST)
    labels, sources = rows["label"][sent], rows["src"][sent]
    chosen = _distinct(labels, sources)
    return labels[chosen], sources[chosen]


def _distinct(labels: NDArray[Any], sources: NDArray[Any]) -> NDArray[Any]:
    """Where each pair stands once, by label: faster than numpy.unique, and without numpy.ma (6 MB)."""
    words = np.ascontiguousarray(sources).view("<u8").reshape(-1, 2)
    # Equal pairs have equal hashes, so they stand together; should others be among them, one comes twice.
    order = np.argsort((words[:, 0] * _SPREAD ^ words[:, 1]) * _SPREAD + labels)
    first = np.ones(len(order), np.bool_)
    first[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    first[1:] |= labels[order[1:]] != labels[order[:-1]]
    chosen = order[first]
    return np.asarray(chosen[np.argsort(labels[chosen], kind="stable")])


def _runs(labels: NDArray[Any]) -> list[slice]:
    """Each stretch of one label."""
    ends = [*(np.flatnonzero(np.diff(labels)) + 1), len(labels)] if len(labels) else []
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _addresses(raw: Iterable[Any]) -> list[str]:
    parsed = (IPv6Address(bytes(one)) for one in raw)
    # A host that looks for duplicates of its address sends from the unspecified one.
    return [str(one.ipv4_mapped or one) for one in parsed if not one.is_unspecified]


def _held_blobs(held: Held) -> list[bytes]:
    """Rows, their accounts, and how a row is laid out: another version may read them."""
    if not len(held.rows):
        return []
    return [held.rows.tobytes(), held.accounts.tobytes(), msgspec.json.encode(FLOW_ROW.descr)]


def _read_held(journal: Journal) -> Held:
    blobs = journal.held()
    if not blobs:
        return Held.none()
    layout = np.dtype([(name, kind) for name, kind in msgspec.json.decode(blobs[2])])
    old = np.frombuffer(blobs[0], layout)
    rows = np.zeros(len(old), FLOW_ROW)
    for name in set(layout.names or ()) & set(FLOW_ROW.names or ()):
        rows[name] = old[name]
    return Held(rows, np.frombuffer(blobs[1], np.uint32).copy())


def next_due(due: float, now: float, interval: float) -> float:
    """When the next cut is due, after one that was due at `due` or came early."""
    return min(max(due + interval, now), now + interval)


def close_boot(journal: Journal, host: str, boot: int) -> None:
    """The kernel's counters of a boot are gone: what was still held goes out under label 0."""
    held = _read_held(journal)
    with journal.transaction():
        held.rows["label"] = 0
        for start in range(0, len(held.rows), ROWS_PER_MESSAGE):
            rows = held.rows[start : start + ROWS_PER_MESSAGE]
            sequence = journal.take("sequence")
            journal.send(Outgoing(boot, sequence, f"{FLOWS}.{host}", rows.tobytes(), sum_by_label(rows)))
        journal.hold([])
        journal.drop_accounts()
        journal.set_number("recorded", 0)
        journal.set_number("drained", 0)
