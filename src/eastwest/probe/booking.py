"""Books every account to a workload: brings what the kernel counts and what the inventory knows together.

`reconcile` compares what is with what should be and changes only the difference, so that calling it once
too often does no harm.
"""

import errno
import time

import numpy as np

from eastwest.errors import KernelError
from eastwest.inventory.inventory import Inventory
from eastwest.inventory.model import Found, HostPort
from eastwest.labels.registry import Registry
from eastwest.meter.meter import Meter, Source
from eastwest.probe.config import ProbeConfig
from eastwest.probe.journal import Journal
from eastwest.probe.lives import Life, Lives


class Booking:
    """Whose each port and cgroup is. Driven by the probe, from one task only."""

    def __init__(
        self,
        *,
        config: ProbeConfig,
        meter: Meter,
        lives: Lives,
        registry: Registry,
        journal: Journal,
        inventory: Inventory,
    ) -> None:
        self._config = config
        self._meter = meter
        self._lives = lives
        self._registry = registry
        self._journal = journal
        self._inventory = inventory
        self.problem: str | None = None

    def adopt(self) -> None:
        """Take over what the probe before this one left; ports that are others by now start anew."""
        self._lives.adopt()
        for ifindex, life in list(self._lives.by_port.items()):
            if not self._still_attached(ifindex, life):
                self._close_port(ifindex)

    def _still_attached(self, ifindex: int, life: Life) -> bool:
        port = self._inventory.ports.get(ifindex) or self._inventory.keep(ifindex)
        if port is None or port.name != life.row.port:
            return False
        life.serial = port.serial
        try:
            # A link that was made just now means that this is another interface with an old number.
            return self._meter.attach_port(ifindex) or not self._meter.tcx
        except KernelError:
            return False

    def reconcile(self, discover: bool = True) -> None:
        """Make the kernel's sources what the inventory says; `discover`: look for accounts that it opened.

        Raises StoreError; then what was done is written at the next call.
        """
        self.problem = None
        self._inventory.join()
        with self._journal.transaction():
            if self._journal.undone:
                self._lives.save_all()
            self._reconcile_ports()
            if discover:
                self._discover_cgroups()
            self._reconcile_cgroups()
            self._registry.observe(self._inventory.present, time.time_ns(), self._inventory.complete)
        self._journal.undone = False

    # -- ports ---------------------------------------------------------------------------------------------

    def _reconcile_ports(self) -> None:
        there = self._inventory.ports
        for ifindex, metered in list(self._lives.by_port.items()):
            # A number that is used again, before anybody looked, is another interface's.
            if ifindex not in there or there[ifindex].serial != metered.serial:
                self._close_port(ifindex)
        for ifindex, port in there.items():
            life = self._lives.by_port.get(ifindex) or self._open_port(port)
            if life and life.row.port != port.name:
                self._lives.rename(life, port.name)
            if life:
                self._book(life, port.owner, settled=False)
        for life in self._lives.closing():
            # It went before it was known whose it was.
            if not life.row.decided and (owner := self._inventory.gone_owner(life.serial)):
                self._book(life, owner, settled=True)

    def _open_port(self, port: HostPort) -> Life | None:
        account = self._meter.open_account()
        if not account:
            self.problem = f"no account is left for port {port.name}; set a larger [probe] accounts"
        try:
            # The source comes before the hook: a number that was used before must not bring its old one.
            self._meter.set_port(port.ifindex, Source(0, account))
            self._meter.attach_port(port.ifindex)
        except KernelError as e:
            self._meter.detach_port(port.ifindex)
            if e.errno != errno.ENODEV:
                self.problem = f"port {port.name} is not metered: {e}"
            if account:
                # One direction may have counted already: it is closed like any other.
                self._lives.close(self._lives.open(account, Source(0, account), ifindex=port.ifindex))
            return None
        if not account:
            return None
        life = self._lives.open(account, Source(0, account), port=port.name, ifindex=port.ifindex)
        life.serial = port.serial
        return life

    def _close_port(self, ifindex: int) -> None:
        self._meter.detach_port(ifindex)
        self._lives.close(self._lives.by_port[ifindex])

    # -- cgroups -------------------------------------------------------------------------------------------

    def _discover_cgroups(self) -> None:
        """Write down accounts that the kernel opened at the first packet of a cgroup."""
        numbers, accounts = self._meter.cgroup_accounts()
        for at in np.flatnonzero(accounts):
            account, number = int(accounts[at]), int(numbers[at])
            if not self._lives.known(account):
                self._lives.open(account, Source(0, account), cgroup=number)

    def _reconcile_cgroups(self) -> None:
        by_cgroup = self._lives.by_cgroup
        for number in set(self._inventory.cgroups()) - by_cgroup.keys():
            self._enter_cgroup(number)
        now = time.monotonic()
        for number in self._inventory.removed_before(now - self._config.linger_seconds):
            self._close_cgroup(number)
        for number, life in list(by_cgroup.items()):
            if self._inventory.knows(number):
                life.unknown_since = 0.0
            elif not life.unknown_since:
                life.unknown_since = now
            elif now - life.unknown_since > self._config.linger_seconds:
                # Removed before this probe could hear of it, or used again after it was forgotten.
                self._close_cgroup(number)
                continue
            self._book(life, self._inventory.owner(number), self._inventory.settled(number))

    def _enter_cgroup(self, number: int) -> None:
        account = self._meter.open_account()
        if not account:
            self.problem = "no account is left for a new cgroup; set a larger [probe] accounts"
        elif self._meter.add_cgroup(number, Source(0, account)):
            self._lives.open(account, Source(0, account), cgroup=number)
        else:
            # Its first packet opened an account just now: the next cut finds that one.
            self._meter.free_account(account)

    def _close_cgroup(self, number: int) -> None:
        if life := self._lives.by_cgroup.get(number):
            self._meter.remove_cgroup(number)
            self._lives.close(life)

    # -- either --------------------------------------------------------------------------------------------

    def _book(self, life: Life, owner: Found | None, settled: bool) -> None:
        """Decide whose an account is; a source that has become another's gets another account."""
        label = self._registry.label(owner) if owner else None
        if not life.row.decided:
            too_late = time.time_ns() - life.row.first_seen > self._config.hold_seconds * 1e9
            if label is not None:
                self._lives.decide(life, label)
            elif too_late or (settled and owner is None):
                self._lives.decide(life, 0)
        elif label is not None and label != life.row.label:
            if not self._lives.rebook(life, label):
                self.problem = (
                    "no account is left for a workload that became known; set a larger [probe] accounts"
                )
        else:
            life.given_up &= label is None
            # Also where nobody claims it for the moment: what users say of its label holds.
            self._lives.tell_kernel(life)
