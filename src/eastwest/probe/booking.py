"""Books every account to a workload: brings what the kernel counts and what the inventory knows together.

`reconcile` is called when the inventory changes and at every cut. It compares what is with what should be
and changes only the difference, so that calling it once too often does no harm.
"""

import errno
import logging
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from eastwest.bus.messages import Port
from eastwest.errors import KernelError, StoreError
from eastwest.inventory.cgroups import Cgroups
from eastwest.inventory.model import Found, HostPort
from eastwest.inventory.ports import Ports
from eastwest.labels.registry import Registry
from eastwest.meter.accounts import Accounts
from eastwest.meter.drain import Drain
from eastwest.meter.meter import Meter, Source
from eastwest.meter.rows import LOSSES
from eastwest.probe.config import ProbeConfig
from eastwest.probe.journal import AccountRow, Journal

log = logging.getLogger(__name__)

_CUTS_TO_CLOSE = 2
"""After its source is gone: the cut that counts its last packets, and one that finds nothing more."""


@dataclass
class _Life:
    """An open account, and the source as the kernel has it."""

    row: AccountRow
    source: Source
    closing: int = 0


@dataclass
class Tally:
    """Packets of one label: seen by a hook, and without flow detail by the place where that was lost."""

    seen: int
    lost: dict[str, int]


def _add(tallies: dict[int, Tally], total: Any) -> None:
    tally = tallies.setdefault(int(total["label"]), Tally(0, {}))
    tally.seen += int(total["ingress_packets"]) + int(total["egress_packets"])
    for place in LOSSES:
        if packets := int(total[f"{place}_packets"]):
            tally.lost[place] = tally.lost.get(place, 0) + packets


class Booking:
    """Open accounts and whose they are. Not a component: the probe drives it, from one task only."""

    def __init__(
        self,
        *,
        config: ProbeConfig,
        meter: Meter,
        drain: Drain,
        accounts: Accounts,
        registry: Registry,
        journal: Journal,
        ports: Ports,
        cgroups: Cgroups,
    ) -> None:
        self._config = config
        self._meter = meter
        self._drain = drain
        self._accounts = accounts
        self._registry = registry
        self._journal = journal
        self._ports = ports
        self._cgroups = cgroups
        self._lives: dict[int, _Life] = {}
        self._by_port: dict[int, _Life] = {}
        self._by_cgroup: dict[int, _Life] = {}
        self._retired = {
            label: Tally(seen, msgspec.json.decode(lost, type=dict[str, int]))
            for label, seen, lost in journal.retired()
        }
        self._unsaved = False
        self.problem: str | None = None

    # -- at the start --------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over the accounts of the probe before this one; the kernel went on counting in them."""
        ports, cgroups = self._meter.port_sources(), self._meter.cgroup_sources()
        for row in self._journal.accounts():
            source = ports.get(row.ifindex) if row.ifindex else cgroups.get(row.cgroup)
            life = _Life(row, source or Source(row.label, row.account))
            self._lives[row.account] = life
            self._accounts.open(row.account, row.serial, row.port, row.first_seen)
            self._accounts.restore_losses(row.account, row.lost_packets, row.lost_bytes)
            if row.decided:
                self._accounts.decide(row.account, row.label)
            if source is None or source.account != row.account:
                life.closing = _CUTS_TO_CLOSE
            elif row.ifindex:
                self._by_port[row.ifindex] = life
            else:
                self._by_cgroup[row.cgroup] = life
        with self._journal.transaction():
            # Opened by a probe that was killed before it could write that down.
            for ifindex, source in ports.items():
                if source.account and source.account not in self._lives:
                    port = self._ports.all().get(ifindex)
                    name = port.name if port else ""
                    self._by_port[ifindex] = self._open(source.account, source, port=name, ifindex=ifindex)
        for ifindex in [n for n, life in self._by_port.items() if not self._still_attached(n, life)]:
            self._close_port(ifindex)

    def _still_attached(self, ifindex: int, life: _Life) -> bool:
        port = self._ports.all().get(ifindex)
        if port is None or port.name != life.row.port:
            return False
        try:
            # A link that was made just now means that this is another interface with an old number.
            return self._meter.attach_port(ifindex) or not self._meter.tcx
        except KernelError:
            return False

    # -- all the time --------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Make the kernel's sources what the inventory says. Raises StoreError; then try again later."""
        self.problem = None
        try:
            with self._journal.transaction():
                if self._unsaved:
                    self._save_all()
                self._reconcile_ports()
                self._reconcile_cgroups()
                self._registry.observe(self._present(), time.time_ns())
                self._unsaved = False
        except StoreError:
            self._unsaved = True
            raise

    def _save_all(self) -> None:
        """A transaction was undone on disk, but not in the kernel and not here: write everything again."""
        self._journal.drop_accounts()
        for life in self._lives.values():
            self._journal.keep_account(life.row)
        for label, tally in self._retired.items():
            self._journal.keep_retired(label, tally.seen, msgspec.json.encode(tally.lost))
        self._registry.save_all()

    def _present(self) -> dict[str, list[Port]]:
        present: dict[str, list[Port]] = {found.identity: [] for found in self._cgroups.workloads().values()}
        for port in self._ports.all().values():
            if port.owner:
                present.setdefault(port.owner.identity, []).append(Port(port.name, port.ifindex, port.mac))
        return present

    def _reconcile_ports(self) -> None:
        there = self._ports.all()
        for ifindex in [n for n, life in self._by_port.items() if there.get(n) is None]:
            self._close_port(ifindex)
        for ifindex, port in there.items():
            life = self._by_port.get(ifindex)
            if life and life.row.port != port.name:
                self._accounts.rename(life.row.account, port.name)
                self._keep(life, life.row._replace(port=port.name))
            if life is None:
                life = self._open_port(port)
            if life:
                self._book(life, port.owner, known=port.owner is not None)

    def _open_port(self, port: HostPort) -> _Life | None:
        account = self._meter.open_account()
        source = Source(0, account)
        try:
            # The source comes before the hook: a number that was used before must not bring its old one.
            if account:
                self._meter.set_port(port.ifindex, source)
            self._meter.attach_port(port.ifindex)
        except KernelError as e:
            self._meter.detach_port(port.ifindex)
            if account:
                self._meter.free_account(account)
            if e.errno != errno.ENODEV:
                self.problem = f"port {port.name} is not metered: {e}"
            return None
        if not account:
            self.problem = f"no account is left for port {port.name}; set a larger [probe] accounts"
            return None
        life = self._open(account, source, port=port.name, ifindex=port.ifindex)
        self._by_port[port.ifindex] = life
        return life

    def _close_port(self, ifindex: int) -> None:
        self._meter.detach_port(ifindex)
        self._by_port.pop(ifindex).closing = _CUTS_TO_CLOSE

    def _reconcile_cgroups(self) -> None:
        for number, source in self._meter.cgroup_sources().items():
            if source.account and source.account not in self._lives:
                self._by_cgroup[number] = self._open(source.account, source, cgroup=number)
        for number in self._cgroups.workloads().keys() - self._by_cgroup.keys():
            self._enter_cgroup(number)
        for number in self._cgroups.removed_before(time.monotonic() - self._config.linger_seconds):
            self._close_cgroup(number)
        for number, life in list(self._by_cgroup.items()):
            self._book(life, self._cgroups.owner(number), known=self._cgroups.knows(number))

    def _enter_cgroup(self, number: int) -> None:
        account = self._meter.open_account()
        if not account:
            self.problem = "no account is left for a new cgroup; set a larger [probe] accounts"
            return
        source = Source(0, account)
        if self._meter.add_cgroup(number, source):
            self._by_cgroup[number] = self._open(account, source, cgroup=number)
        else:
            # Its first packet opened an account just now: the next round finds that one.
            self._meter.free_account(account)

    def _close_cgroup(self, number: int) -> None:
        life = self._by_cgroup.pop(number, None)
        if life:
            self._meter.remove_cgroup(number)
            life.closing = _CUTS_TO_CLOSE

    # -- one account ---------------------------------------------------------------------------------------

    def _open(self, account: int, source: Source, port: str = "", ifindex: int = 0, cgroup: int = 0) -> _Life:
        now = time.time_ns()
        row = AccountRow(account, self._journal.take("serial"), 0, False, port, ifindex, cgroup, now)
        life = _Life(row, source)
        self._lives[account] = life
        self._accounts.open(account, row.serial, port, now)
        self._journal.keep_account(row)
        return life

    def _keep(self, life: _Life, row: AccountRow) -> None:
        life.row = row
        self._journal.keep_account(row)

    def _book(self, life: _Life, owner: Found | None, known: bool) -> None:
        """Decide an account; or give its source a new one, where its workload became known too late."""
        label = self._registry.label(owner) if owner else None
        too_late = time.time_ns() - life.row.first_seen > self._config.hold_seconds * 1e9
        if not life.row.decided:
            if label is not None:
                self._decide(life, label)
            elif too_late or (known and owner is None):
                self._decide(life, 0)
        elif label is not None and life.row.label == 0:
            self._rebook(life, label)
        elif label is not None:
            self._tell_kernel(life, label)

    def _decide(self, life: _Life, label: int) -> None:
        self._accounts.decide(life.row.account, label)
        self._keep(life, life.row._replace(label=label, decided=True))
        self._tell_kernel(life, label)

    def _tell_kernel(self, life: _Life, label: int) -> None:
        suspect = self._registry.traffic_class(label) == "suspect"
        source = Source(label, life.row.account, suspect)
        if source != life.source:
            life.source = source
            if life.row.ifindex:
                self._meter.set_port(life.row.ifindex, source)
            else:
                self._meter.set_cgroup(life.row.cgroup, source)

    def _rebook(self, old: _Life, label: int) -> None:
        """What was counted so far stays with label 0; from here on it is the workload's."""
        account = self._meter.open_account()
        if not account:
            self.problem = "no account is left to book a late workload; set a larger [probe] accounts"
            return
        row = old.row
        life = self._open(account, Source(0, account), row.port, row.ifindex, row.cgroup)
        if row.ifindex:
            self._by_port[row.ifindex] = life
        else:
            self._by_cgroup[row.cgroup] = life
        self._decide(life, label)
        old.closing = _CUTS_TO_CLOSE

    def after_cut(self) -> None:
        """Give back accounts whose sources have been gone for two cuts."""
        freed = []
        with self._journal.transaction():
            for account, life in list(self._lives.items()):
                if not life.closing:
                    continue
                if not life.row.decided:
                    # Its last chance passed with its source; rows still held go to label 0.
                    self._decide_gone(life)
                life.closing -= 1
                if life.closing == 0:
                    self._retire(account)
                    self._journal.drop_account(account)
                    del self._lives[account]
                    freed.append(account)
        # Only once that is on disk: an account given back twice would have two owners.
        for account in freed:
            self._accounts.close(account)
            self._meter.free_account(account)
            self._drain.forget_account(account)

    def ledger(self) -> dict[int, Tally]:
        """label → packets seen and lost in this boot, as of the last cut, accounts given back included."""
        tallies = {label: Tally(tally.seen, dict(tally.lost)) for label, tally in self._retired.items()}
        totals = self._accounts.totals()
        for account in (0, *self._lives):
            _add(tallies, totals[account])
        return tallies

    def _retire(self, account: int) -> None:
        row = self._accounts.totals()[account]
        _add(self._retired, row)
        tally = self._retired[int(row["label"])]
        self._journal.keep_retired(int(row["label"]), tally.seen, msgspec.json.encode(tally.lost))

    def _decide_gone(self, life: _Life) -> None:
        self._accounts.decide(life.row.account, 0)
        self._keep(life, life.row._replace(decided=True))

    def keep_losses(self) -> None:
        """Write losses of the outbox to the journal, within the transaction of a cut."""
        for account, life in self._lives.items():
            lost = self._accounts.losses(account)
            if lost != (life.row.lost_packets, life.row.lost_bytes):
                self._keep(life, life.row._replace(lost_packets=lost[0], lost_bytes=lost[1]))
