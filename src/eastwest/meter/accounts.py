"""Whose each account is: open, waiting for its workload, booked to a label, given back.

An account belongs to one port or cgroup for its whole life, and is booked to one label: to the workload's
where that became known in time, else to 0 for good. A life has a serial that is never given again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eastwest.kernel.records import record
from eastwest.meter.drain import Counters, Flows
from eastwest.meter.rows import FLOW_ROW, PORT_NAME_SIZE, TOTAL_ROW

_COUNTERS = record("account").names or ()
_PACKETS = [_COUNTERS.index(name) for name in ("ingress_packets", "egress_packets")]

_ACCOUNT = np.dtype(
    [
        ("serial", "<u8"),
        ("label", "<u4"),
        ("open", "?"),
        ("decided", "?"),
        ("port", f"S{PORT_NAME_SIZE}"),
        ("first_seen", "<i8"),
        ("last_seen", "<i8"),
        ("lost_packets", "<u8"),
        ("lost_bytes", "<u8"),
        ("packets", "<u8"),
    ]
)


class AccountRow(NamedTuple):
    """What is remembered of an open account. It has an ifindex or a cgroup; account 0 has neither."""

    account: int
    serial: int
    label: int
    decided: bool
    port: str
    ifindex: int
    cgroup: int
    first_seen: int
    last_seen: int = 0
    packets: int = 0
    lost_packets: int = 0
    lost_bytes: int = 0


@dataclass
class Held:
    """Flow rows whose accounts are not decided, in the order in which they came."""

    rows: NDArray[Any]
    accounts: NDArray[np.uint32]

    @classmethod
    def none(cls) -> "Held":
        return cls(np.empty(0, FLOW_ROW), np.empty(0, np.uint32))

    @classmethod
    def joined(cls, parts: Sequence["Held"]) -> "Held":
        """One behind the other."""
        if not parts:
            return cls.none()
        return cls(np.concatenate([p.rows for p in parts]), np.concatenate([p.accounts for p in parts]))

    def parts(self, size: int) -> Iterator["Held"]:
        """The same in pieces of up to `size` rows."""
        for start in range(0, len(self.rows), size):
            yield Held(self.rows[start : start + size], self.accounts[start : start + size])


class Accounts:
    """All accounts by number; account 0 is always open and booked to label 0."""

    def __init__(self, size: int) -> None:
        self.table = np.zeros(size, _ACCOUNT)
        self.table[0]["open"] = self.table[0]["decided"] = True
        self._counters: Counters = np.zeros((size, len(_COUNTERS)), np.uint64)
        self._sent = np.zeros(size, TOTAL_ROW)
        self._moved = np.zeros(size, np.bool_)

    def open(self, account: int, serial: int, port: str, first_seen: int) -> None:
        """A new life. Counters may be there already: the kernel opens accounts, too."""
        self.table[account] = (serial, 0, True, False, port.encode(), first_seen, first_seen, 0, 0, 0)
        self._sent[account] = 0

    def restore(self, kept: AccountRow) -> None:
        """A life that an earlier probe opened."""
        self.table[kept.account] = (
            kept.serial,
            kept.label,
            True,
            kept.decided,
            kept.port.encode(),
            kept.first_seen,
            kept.last_seen,
            kept.lost_packets,
            kept.lost_bytes,
            kept.packets,
        )

    def decide(self, account: int, label: int) -> None:
        """Book to a label, for good."""
        self.table[account]["label"] = label
        self.table[account]["decided"] = True

    def rename(self, account: int, port: str) -> None:
        """The port has another name now."""
        self.table[account]["port"] = port.encode()

    def close(self, account: int) -> None:
        """Forget an account whose totals have gone out."""
        self.table[account] = 0
        self._counters[account] = 0

    def update(self, counters: Counters, now: int) -> None:
        """Take over the totals of a cut; `now`: unix ns."""
        packets = counters[:, _PACKETS].sum(axis=1)
        self._moved = packets != self.table["packets"]
        self.table["last_seen"][self._moved] = now
        self.table["packets"] = packets
        self._counters = counters

    def moved(self) -> list[int]:
        """Accounts that counted something in the last cut."""
        return [int(account) for account in np.flatnonzero(self._moved)]

    def kept(self, account: int) -> tuple[int, int, int, int]:
        """What is to be remembered: last_seen, packets, lost_packets, lost_bytes."""
        row = self.table[account]
        return int(row["last_seen"]), int(row["packets"]), int(row["lost_packets"]), int(row["lost_bytes"])

    def lose(self, flows: Flows) -> None:
        """Count flows as lost for want of room in the outbox."""
        np.add.at(self.table["lost_packets"], flows.keys["account"], flows.counters["packets"])
        np.add.at(self.table["lost_bytes"], flows.keys["account"], flows.counters["bytes"])

    def totals(self) -> NDArray[Any]:
        """`TOTAL_ROW` of every open account."""
        rows = np.zeros(len(self.table), TOTAL_ROW)
        for field in ("serial", "label", "first_seen", "last_seen"):
            rows[field] = self.table[field]
        for column, field in enumerate(_COUNTERS):
            rows[field] = self._counters[:, column]
        rows["outbox_full_packets"] = self.table["lost_packets"]
        rows["outbox_full_bytes"] = self.table["lost_bytes"]
        return rows

    def changed_totals(self) -> NDArray[Any]:
        """`TOTAL_ROW` of the open accounts that changed since the last call of `sent`."""
        rows = self.totals()
        changed: NDArray[Any] = rows[(rows != self._sent) & self.table["open"]]
        return changed

    def sent(self) -> None:
        """The totals as they are now will reach the store."""
        self._sent = self.totals()

    def rows(self, flows: Flows, clock_offset: int, size: int) -> Iterator[Held]:
        """Flow rows of a generation, labels not yet filled in; `clock_offset`: unix less monotonic, ns.

        In pieces of up to `size`: small ones stay in the processor's cache from field to field.
        """
        for start in range(0, len(flows.keys), size):
            yield self._rows(flows.part(start, start + size), clock_offset)

    def _rows(self, flows: Flows, clock_offset: int) -> Held:
        rows = np.zeros(len(flows.keys), FLOW_ROW)
        for field in ("src", "dst", "src_port", "dst_port", "protocol", "direction", "class"):
            rows[field] = flows.keys[field]
        for field in ("packets", "bytes", "tcp_flags"):
            rows[field] = flows.counters[field]
        rows["start"] = flows.counters["first"].astype(np.int64) + clock_offset
        rows["end"] = flows.counters["last"].astype(np.int64) + clock_offset
        accounts = flows.keys["account"].astype(np.uint32)
        rows["port"] = self.table["port"][accounts]
        return Held(rows, accounts)

    def release(self, held: Held) -> tuple[NDArray[Any], Held]:
        """Rows whose accounts are decided, labelled; and those that go on waiting."""
        decided = self.table["decided"][held.accounts]
        if decided.all():
            # As nearly always: then no row is copied.
            held.rows["label"] = self.table["label"][held.accounts]
            return held.rows, Held.none()
        ready = held.rows[decided]
        ready["label"] = self.table["label"][held.accounts[decided]]
        return ready, Held(held.rows[~decided], held.accounts[~decided])
