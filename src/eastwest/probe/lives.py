"""The lives of accounts: opened for a port or cgroup, booked to a label, closed, given back.

What is decided here is in the journal in the same transaction; what cannot be undone in the kernel (an
account given back) happens only once the journal has it.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from eastwest.labels.registry import Registry
from eastwest.meter.accounts import AccountRow, Accounts
from eastwest.meter.drain import Drain
from eastwest.meter.meter import Meter, Source
from eastwest.meter.rows import LOSSES
from eastwest.probe.enforcement import Enforcement
from eastwest.probe.journal import Journal

_CUTS_TO_CLOSE = 2
"""After its source is gone: the cut that counts its last packets, and one that finds nothing more."""


@dataclass
class Life:
    """An open account, and its source as the kernel has it."""

    row: AccountRow
    source: Source
    closing: int = 0
    serial: int | None = None
    """Of the interface that it is attached to, as the inventory numbers them; None: not known yet."""
    given_up: bool = False
    """Another workload has its source, for which no account is left: orders of this one do not hold."""
    unknown_since: float = 0.0
    """When its cgroup was first found to be one that the inventory does not know (monotonic s); 0: never."""


class Tally(msgspec.Struct, frozen=True):
    """Packets of one label: seen by a hook, and without flow detail by the place where that was lost."""

    seen: int = 0
    lost: dict[str, int] = msgspec.field(default_factory=dict)

    def __add__(self, other: "Tally") -> "Tally":
        lost = Counter(self.lost) + Counter(other.lost) if other.lost else self.lost
        return Tally(self.seen + other.seen, dict(lost))


def _tallies(totals: NDArray[Any]) -> dict[int, Tally]:
    """Sums of `TOTAL_ROW`s by label."""
    labels, at = np.unique(totals["label"], return_inverse=True)

    def sums(*fields: str) -> list[int]:
        total = np.zeros(len(labels), np.uint64)
        for one in fields:
            np.add.at(total, at, totals[one])
        return total.tolist()

    tallies = [Tally(seen) for seen in sums("ingress_packets", "egress_packets")]
    for place in LOSSES:
        for tally, packets in zip(tallies, sums(f"{place}_packets"), strict=True):
            if packets:
                tally.lost[place] = packets
    return dict(zip(labels.tolist(), tallies, strict=True))


class Lives:
    """Every open account, by what it counts. Driven by the probe, from one task only."""

    def __init__(
        self,
        *,
        meter: Meter,
        drain: Drain,
        accounts: Accounts,
        registry: Registry,
        enforcement: Enforcement,
        journal: Journal,
    ) -> None:
        self._meter = meter
        self._drain = drain
        self._accounts = accounts
        self._registry = registry
        self._enforcement = enforcement
        self._journal = journal
        self._open: dict[int, Life] = {}
        self.by_port: dict[int, Life] = {}
        self.by_cgroup: dict[int, Life] = {}
        self._retired = {
            label: Tally(seen, msgspec.json.decode(lost, type=dict[str, int]))
            for label, seen, lost in journal.retired()
        }

    # -- at the start --------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over the accounts of the probe before this one; the kernel went on counting in them."""
        free = self._meter.take_free_accounts()
        ports, cgroups = self._meter.port_sources(), self._meter.cgroup_sources()
        for row in self._journal.accounts():
            source = ports.get(row.ifindex) if row.ifindex else cgroups.get(row.cgroup)
            life = Life(row, source or Source(row.label, row.account))
            self._open[row.account] = life
            self._accounts.restore(row)
            if source is None or source.account != row.account:
                life.closing = _CUTS_TO_CLOSE
            elif row.ifindex:
                self.by_port[row.ifindex] = life
            elif row.cgroup:
                self.by_cgroup[row.cgroup] = life
        with self._journal.transaction():
            self._open_unwritten(ports)
        used = {0, *self._open} | {source.account for source in cgroups.values()}
        self._meter.give_free_accounts(free, used)

    def _open_unwritten(self, ports: dict[int, Source]) -> None:
        """Open what a probe was killed over before it could write it down; and label 0's own account."""
        for ifindex, source in ports.items():
            if source.account and source.account not in self._open:
                self.open(source.account, source, ifindex=ifindex)
        if 0 not in self._open:
            row = AccountRow(0, 0, 0, True, "", 0, 0, time.time_ns())
            self._open[0] = Life(row, Source(0, 0))
            self._accounts.restore(row)
            self._journal.keep_account(row)
        self._open[0].closing = 0

    # -- one account ---------------------------------------------------------------------------------------

    def known(self, account: int) -> bool:
        return account in self._open

    def open(
        self, account: int, source: Source, *, port: str = "", ifindex: int = 0, cgroup: int = 0
    ) -> Life:
        """Write down a new life of an account that the kernel counts in, or is about to."""
        row = AccountRow(
            account, self._journal.take("serial"), 0, False, port, ifindex, cgroup, time.time_ns()
        )
        life = Life(row, source)
        self._open[account] = life
        self._accounts.open(account, row.serial, port, row.first_seen)
        self._journal.keep_account(row)
        if ifindex:
            self.by_port[ifindex] = life
        else:
            self.by_cgroup[cgroup] = life
        return life

    def rename(self, life: Life, port: str) -> None:
        """Its port has another name now."""
        self._accounts.rename(life.row.account, port)
        self._keep(life, life.row._replace(port=port))

    def decide(self, life: Life, label: int) -> None:
        """Book an account to a label, for good."""
        self._accounts.decide(life.row.account, label)
        self._keep(life, life.row._replace(label=label, decided=True))
        self.tell_kernel(life)

    def tell_kernel(self, life: Life) -> None:
        """Give the hook what it must know of a decided account's source."""
        if life.closing:
            return
        suspect = self._registry.traffic_class(life.row.label) == "suspect"
        enforced = not life.given_up and self._enforcement.decide(life.row)
        source = Source(life.row.label, life.row.account, suspect, enforced)
        if source != life.source:
            if life.row.ifindex:
                self._meter.set_port(life.row.ifindex, source)
            else:
                self._meter.set_cgroup(life.row.cgroup, source)
            life.source = source
        if not enforced:
            self._enforcement.release(life.row)

    def rebook(self, old: Life, label: int) -> bool:
        """Give a source another account: what was counted stays where it is, from here on it is `label`'s.

        False where no account is left.
        """
        row = old.row
        self._enforcement.move(row)
        account = self._meter.open_account()
        if not account:
            old.given_up = True
            self.tell_kernel(old)
            return False
        life = self.open(account, Source(0, account), port=row.port, ifindex=row.ifindex, cgroup=row.cgroup)
        life.serial = old.serial
        self.decide(life, label)
        old.closing = _CUTS_TO_CLOSE
        return True

    def close(self, life: Life) -> None:
        """Its source is gone from the kernel: nothing opens or writes it after the next cut."""
        life.closing = _CUTS_TO_CLOSE
        self._enforcement.forget(life.row)
        for index, number in ((self.by_port, life.row.ifindex), (self.by_cgroup, life.row.cgroup)):
            if index.get(number) is life:
                del index[number]

    def closing(self) -> list[Life]:
        """Those whose sources are gone, until their last packets are out."""
        return [life for life in self._open.values() if life.closing]

    def _keep(self, life: Life, row: AccountRow) -> None:
        life.row = row
        self._journal.keep_account(row)

    # -- at a cut ------------------------------------------------------------------------------------------

    def keep_counts(self) -> None:
        """Write what a cut changed of losses and times, within its transaction."""
        for account in self._accounts.moved():
            life = self._open.get(account)
            if life:
                last_seen, packets, lost_packets, lost_bytes = self._accounts.kept(account)
                row = life.row._replace(last_seen=last_seen, packets=packets)
                self._keep(life, row._replace(lost_packets=lost_packets, lost_bytes=lost_bytes))

    def after_cut(self) -> None:
        """Give back accounts whose sources have been gone for two cuts. Raises StoreError."""
        closing = {account: life for account, life in self._open.items() if life.closing}
        ended = [account for account, life in closing.items() if life.closing == 1]
        if not closing:
            return
        retired = dict(self._retired)
        with self._journal.transaction():
            for life in closing.values():
                if not life.row.decided:
                    # Its last chance passed with its source; rows that still wait go to label 0.
                    self._accounts.decide(life.row.account, 0)
                    self._keep(life, life.row._replace(decided=True))
            for label, tally in _tallies(self._accounts.totals()[ended]).items():
                retired[label] = retired.get(label, Tally()) + tally
                self._keep_retired(label, retired[label])
            for account in ended:
                self._journal.drop_account(account)
        self._retired = retired
        for life in closing.values():
            life.closing -= 1
        for account in ended:
            del self._open[account]
            self._accounts.close(account)
            self._drain.forget_account(account)
            self._meter.free_account(account)

    def _keep_retired(self, label: int, tally: Tally) -> None:
        self._journal.keep_retired(label, tally.seen, msgspec.json.encode(tally.lost))

    def ledger(self) -> dict[int, Tally]:
        """label → packets seen and lost in this boot, as of the last cut, accounts given back included."""
        tallies = dict(self._retired)
        for label, tally in _tallies(self._accounts.totals()[self._accounts.table["open"]]).items():
            tallies[label] = tallies.get(label, Tally()) + tally
        return tallies

    def save_all(self) -> None:
        """A transaction was undone on disk, but not in the kernel and not here: write everything again."""
        self._journal.save_series()
        self._journal.drop_accounts()
        for life in self._open.values():
            self._journal.keep_account(life.row)
        for label, tally in self._retired.items():
            self._keep_retired(label, tally)
        self._registry.save_all()
