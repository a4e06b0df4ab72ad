"""Decides for which ports and cgroups suspect packets are dropped, and says where that cannot be.

What users ordered is remembered on disk: a probe that starts while the bus is away goes on dropping.
"""

import logging
from collections.abc import Callable

import msgspec

from eastwest.bus.client import Bus
from eastwest.bus.messages import ENFORCE_BUCKET, EnforceAnswer, Enforced, EnforceOrder
from eastwest.errors import EastwestError, KernelError, StoreError
from eastwest.labels.registry import Registry
from eastwest.labels.selector import Selector
from eastwest.meter.accounts import AccountRow
from eastwest.meter.enforcer import Enforcer
from eastwest.probe.journal import Journal
from eastwest.probe.refusals import Refusals

log = logging.getLogger(__name__)


class Enforcement:
    """The orders, and what became of them here. `changed` makes the probe look at every source again."""

    def __init__(
        self,
        *,
        host: str,
        enforcer: Enforcer,
        registry: Registry,
        journal: Journal,
        bus: Bus,
        changed: Callable[[], None],
    ) -> None:
        self._host = host
        self._enforcer = enforcer
        self._registry = registry
        self._journal = journal
        self._bus = bus
        self._changed = changed
        self._orders: dict[str, tuple[str, Selector]] = {}
        self._sources: dict[int, Enforced] = {}
        self._attached: set[int] = set()
        self._refusals = Refusals("an order to enforce")
        self._unkept: str | None = None

    @property
    def problems(self) -> list[str]:
        refused = [
            f"label {source.label} is not enforced at {source.port or 'its cgroup'}: {source.refused}"
            for source in self._sources.values()
            if source.refused
        ]
        return [*self._refusals.problems, *([self._unkept] if self._unkept else []), *refused]

    def adopt(self) -> None:
        """Go on with what an earlier probe knew. Raises StoreError."""
        for name, document in self._journal.orders(ENFORCE_BUCKET).items():
            self._take(name, document)
        self._attached = self._enforcer.attached()

    async def run(self) -> None:
        """Follow orders until cancelled."""
        async for name, document in self._bus.bucket(ENFORCE_BUCKET).watch():
            self._take(name, document)
            try:
                self._journal.keep_order(ENFORCE_BUCKET, name, document)
                self._unkept = None
            except StoreError as e:
                self._unkept = str(e)
                log.warning("%s", e)
            self._changed()

    def _take(self, name: str, document: bytes | None) -> None:
        self._orders.pop(name, None)
        self._refusals.settle(name)
        if document is None:
            return
        try:
            text = msgspec.json.decode(document, type=EnforceOrder).selector
            self._orders[name] = text, Selector.parse(text)
        except (ValueError, RecursionError, msgspec.MsgspecError, EastwestError) as e:
            self._refusals.refuse(name, e)

    # -- one source ----------------------------------------------------------------------------------------

    def decide(self, row: AccountRow) -> bool:
        """Whether a source's suspect packets are to be dropped; its hook is ready for that then."""
        if not self._wanted(row.label):
            self._sources.pop(row.account, None)
            return False
        refused = self._prepare(row.ifindex) if row.ifindex else ""
        state = Enforced(row.label, row.port, "port" if row.ifindex else "cgroup", refused)
        if refused and self._sources.get(row.account) != state:
            log.warning("label %d is not enforced at %s: %s", row.label, row.port, refused)
        self._sources[row.account] = state
        return not refused

    def _wanted(self, label: int) -> bool:
        if not self._orders or not label:
            return False
        seen = self._registry.seen(label)
        return seen is not None and any(selector.matches(seen) for _, selector in self._orders.values())

    def _prepare(self, ifindex: int) -> str:
        """Have the port's XDP program there; the reason where that is refused."""
        if ifindex in self._attached and self._enforcer.is_ready:
            return ""
        try:
            self._enforcer.attach(ifindex)
        except KernelError as e:
            self._attached.discard(ifindex)
            return str(e)
        self._attached.add(ifindex)
        return ""

    def release(self, row: AccountRow) -> None:
        """Its hook knows that nothing is to be dropped: take off what did."""
        if row.ifindex in self._attached:
            self._attached.discard(row.ifindex)
            self._enforcer.detach(row.ifindex)

    def move(self, row: AccountRow) -> None:
        """The source is another workload's now; its hooks are as they were."""
        self._sources.pop(row.account, None)

    def forget(self, row: AccountRow) -> None:
        """The source is gone, and its hooks with it."""
        self._sources.pop(row.account, None)
        self._attached.discard(row.ifindex)

    async def answer(self, _: bytes) -> bytes:
        """What is enforced here, as an `EnforceAnswer`."""
        selectors = [text for text, _ in self._orders.values()]
        return msgspec.json.encode(EnforceAnswer(self._host, list(self._sources.values()), selectors))
