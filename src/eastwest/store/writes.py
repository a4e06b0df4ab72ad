"""Writing: each message once, whatever happens in between.

Rows go first and the message's number last. A crash between the two leaves rows without a number: an insert
of flows is one part, so either all rows of its messages are there or none, and `reconcile` adds the numbers.
Totals, workloads and evidence are replaced by key, so writing them twice is harmless.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from eastwest.store import sums
from eastwest.store.batch import Batch, block
from eastwest.store.binary import integers, string
from eastwest.store.engine import Database
from eastwest.store.schema import DATABASE, FLOWS, TOTALS, statements

_BATCHES = ("host", "boot", "sequence", "kind", "rows", "packets", "stored_at")
_WORKLOADS = ("label", "host", "present", "version", "document")
_EVIDENCE = ("host", "boot", "sequence", "place", "received", "document")


@dataclass(frozen=True)
class Written:
    """What became of a group of batches."""

    batches: Sequence[Batch]
    """Those that are stored now and were not before."""
    repeats: int

    @property
    def stored(self) -> int:
        return len(self.batches)

    @property
    def rows(self) -> int:
        return sum(batch.count for batch in self.batches)

    @property
    def packets(self) -> int:
        return sum(batch.packets for batch in self.batches)


class Clock:
    """Time of storing, which never goes back: the last insert is the one with the highest."""

    def __init__(self) -> None:
        self._last = 0

    def now(self) -> int:
        """Unix ns."""
        self._last = max(self._last + 1, time.time_ns())
        return self._last

    def pass_by(self, seconds: int) -> None:
        """What was stored at this time lies behind."""
        self._last = max(self._last, seconds * 1_000_000_000)


def prepare(database: Database, clock: Clock) -> None:
    """Make the tables; finish what a crash left half done."""
    for statement in statements():
        database.command(statement)
    sums.keep(database)
    reconcile(database)
    (latest,) = database.query(f"SELECT toUnixTimestamp(max(stored_at)) FROM {DATABASE}.batches")[0]
    clock.pass_by(int(latest))


def reconcile(database: Database) -> None:
    """Number the messages whose flows are stored and whose numbers are not: those of the last insert."""
    database.command(
        f"""
        INSERT INTO {DATABASE}.batches ({", ".join(_BATCHES)})
        SELECT host, boot, sequence, 'flows', count(), sum(packets), max(received)
        FROM {DATABASE}.flows
        WHERE received = (SELECT max(received) FROM {DATABASE}.flows)
          AND (host, boot, sequence) NOT IN (
              SELECT host, boot, sequence FROM {DATABASE}.batches
              WHERE stored_at >= (SELECT max(received) FROM {DATABASE}.flows)
          )
        GROUP BY host, boot, sequence
        """
    )


def write(database: Database, fresh: Sequence[Batch], clock: Clock) -> None:
    """Store batches that never were. Raises StoreError; then `reconcile` before the next write."""
    now = clock.now()
    seconds = now // 1_000_000_000
    flows = [batch for batch in fresh if batch.kind == "flows"]
    if rows := block(FLOWS, flows, seconds):
        database.insert(f"{DATABASE}.flows", list(FLOWS), rows, "Native")
    if rows := block(TOTALS, (batch for batch in fresh if batch.kind == "totals")):
        database.insert(f"{DATABASE}.totals", list(TOTALS), rows, "Native")
    if rows := _workloads(fresh, now):
        database.insert(f"{DATABASE}.workloads", _WORKLOADS, rows)
    if rows := _evidence(fresh, now):
        database.insert(f"{DATABASE}.evidence", _EVIDENCE, rows)
    if fresh:
        database.insert(f"{DATABASE}.batches", _BATCHES, _numbers(fresh, seconds))


def fresh(database: Database, batches: Sequence[Batch]) -> list[Batch]:
    """Those of the batches that were never stored, each once."""
    unique: dict[tuple[str, int, int], Batch] = {}
    for batch in batches:
        unique.setdefault(batch.number, batch)
    if not unique:
        return []
    hosts, boots, sequences = (sorted(set(part)) for part in zip(*unique, strict=True))
    known = database.query(
        f"""
        SELECT host, boot, sequence FROM {DATABASE}.batches
        WHERE host IN {{hosts:Array(String)}} AND boot IN {{boots:Array(UInt64)}}
          AND sequence IN {{sequences:Array(UInt64)}}
        """,
        {"hosts": hosts, "boots": boots, "sequences": sequences},
    )
    for host, boot, sequence in known:
        unique.pop((str(host), int(boot), int(sequence)), None)
    return list(unique.values())


def _numbers(batches: Sequence[Batch], seconds: int) -> bytes:
    return b"".join(
        string(batch.host.encode())
        + integers("<u8", batch.boot, batch.sequence)
        + string(batch.kind.encode())
        + integers("<u4", batch.count)
        + integers("<u8", batch.packets)
        + integers("<u4", seconds)
        for batch in batches
    )


def _workloads(batches: Sequence[Batch], now: int) -> bytes:
    # Documents are few and change seldom; a later one in the same message wins by its higher version.
    documents = [w for batch in batches for w in batch.workloads]
    return b"".join(
        integers("<u4", workload.label)
        + string(workload.host.encode())
        + bytes([workload.present])
        + integers("<u8", now + order)
        + string(msgspec.json.encode(workload))
        for order, workload in enumerate(documents)
    )


def _evidence(batches: Sequence[Batch], now: int) -> bytes:
    # Packets are few: the kernel limits how many it samples.
    return b"".join(
        string(batch.host.encode())
        + integers("<u8", batch.boot, batch.sequence)
        + integers("<u4", place)
        + integers("<i8", now)
        + string(msgspec.json.encode(evidence))
        for batch in batches
        for place, evidence in enumerate(batch.evidence)
    )
