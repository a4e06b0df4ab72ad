"""Labels and their history: which number each workload of this host has, for good.

Numbers come in blocks that no two probes can lease (a compare-and-set on the bus), so a label is unique in
the whole fleet and never given twice. A workload that comes back under the same identity has its old one.
"""

import re
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from eastwest.bus.messages import Facts, Port, TrafficClass, Workload
from eastwest.errors import BusError
from eastwest.inventory.model import Found, Present
from eastwest.labels.rules import Rule

BLOCK = 1024
"""Labels in one lease."""

_KEY = "next"
ADDRESSES_KEPT = 64
_PORTS_KEPT = 64
_FRESH = 3600 * 10**9


def _first(value: bytes) -> int:
    if not re.fullmatch(rb"[1-9][0-9]{0,9}", value):
        # Starting again at 1 would give labels that others have.
        raise BusError(
            "what the bus says of labels given so far is no number", f"put the first free label into '{_KEY}'"
        )
    return int(value)


class Memory(Protocol):
    """Where the registry keeps what must last."""

    def transaction(self) -> AbstractContextManager[None]: ...
    def number(self, name: str) -> int: ...
    def set_number(self, name: str, value: int) -> None: ...
    def present_workloads(self) -> list[bytes]: ...
    def workload(self, identity: str) -> bytes | None: ...
    def keep_workload(self, identity: str, label: int, present: bool, history: bytes) -> None: ...


class Bucket(Protocol):
    """The bucket of leases, as the bus has it."""

    async def get(self, key: str) -> tuple[bytes, int] | None: ...
    async def create_or_update(self, key: str, value: bytes, revision: int | None) -> bool: ...


class History(msgspec.Struct):
    """What is remembered of a workload. Addresses and ports: when each was last seen, unix ns."""

    identity: str
    label: int
    kind: str
    name: str
    cgroup: str
    first_seen: int
    last_seen: int
    present: bool = True
    ports: list[Port] = msgspec.field(default_factory=list)
    past_ports: list[str] = msgspec.field(default_factory=list)
    addresses: dict[str, int] = msgspec.field(default_factory=dict)
    facts: Facts = msgspec.field(default_factory=Facts)
    """What its sources say."""
    said: Facts = msgspec.field(default_factory=Facts)
    """What users say."""


class Registry:
    """The workloads of this host, there or gone not long ago; `changed` ones wait to be told to the fleet."""

    def __init__(self, host: str, rules: list[Rule], memory: Memory) -> None:
        self._host = host
        self._rules = rules
        self._memory = memory
        self._by_label: dict[int, History] = {}
        self._by_identity: dict[str, History] = {}
        self._changed: set[int] = set()
        self._said: dict[int, Facts] = {}
        self._classes: dict[int, TrafficClass] = {}
        self._seen: dict[int, Mapping[str, str | int | list[str]]] = {}
        self._observed: Mapping[str, Present] | None = None
        for data in memory.present_workloads():
            self._add(msgspec.json.decode(data, type=History))

    def _add(self, history: History) -> None:
        history.said = self._said.get(history.label, history.said)
        self._by_label[history.label] = self._by_identity[history.identity] = history
        self._changed.add(history.label)
        self._observed = None

    def _find(self, identity: str) -> History | None:
        history = self._by_identity.get(identity)
        if history is None and (data := self._memory.workload(identity)):
            history = msgspec.json.decode(data, type=History)
            self._add(history)
        return history

    def forget_gone(self, before: int) -> None:
        """Keep workloads gone before a moment (unix ns) on disk only: hosts see many come and go."""
        gone = [h for h in self._by_label.values() if not h.present and h.last_seen < before]
        for history in gone:
            if history.label not in self._changed:
                del self._by_label[history.label], self._by_identity[history.identity]
                self._classes.pop(history.label, None)
                self._seen.pop(history.label, None)

    # -- labels --------------------------------------------------------------------------------------------

    @property
    def labels_left(self) -> int:
        return self._memory.number("label_end") - self._memory.number("label_next")

    def discard_lease(self) -> None:
        """Give none of the labels left: after a power cut the disk may not know which ones were given."""
        with self._memory.transaction():
            self._memory.set_number("label_next", self._memory.number("label_end"))

    async def lease(self, bucket: Bucket) -> None:
        """Get another block of labels. Raises BusError where the bus cannot be asked."""
        for _ in range(100):
            entry = await bucket.get(_KEY)
            first = _first(entry[0]) if entry else 1
            if first + BLOCK > 1 << 32:
                raise BusError("all 4294967295 labels are given", "start a new fleet with an empty bus")
            if await bucket.create_or_update(_KEY, str(first + BLOCK).encode(), entry[1] if entry else None):
                with self._memory.transaction():
                    self._memory.set_number("label_next", first)
                    self._memory.set_number("label_end", first + BLOCK)
                return
        raise BusError("other probes took every block of labels that this one asked for", "it tries again")

    def label(self, found: Found) -> int | None:
        """The workload's label, a new one where it has none; None where none is left to give."""
        history = self._find(found.identity)
        if history is None:
            number = self._memory.number("label_next")
            if number >= self._memory.number("label_end"):
                return None
            self._memory.set_number("label_next", number + 1)
            now = time.time_ns()
            history = History(
                found.identity, number, found.kind, found.name, found.cgroup, now, now, facts=found.facts
            )
            self._add(history)
            self._keep(history)
        return history.label

    def given(self, identity: str) -> int:
        """The label that a workload of this host has, 0 where it has none or is long gone."""
        history = self._by_identity.get(identity)
        return history.label if history else 0

    # -- what is known -------------------------------------------------------------------------------------

    def observe(self, present: Mapping[str, Present], now: int, complete: bool = True) -> None:
        """Take over which workloads are there, by identity, with which names, facts and ports.

        Not `complete`: somebody has not spoken yet, and what was said of a workload before holds.

        Nothing is to be done where it is the same object as last time, and nobody came back meanwhile.
        """
        if present is self._observed:
            return
        for identity, history in self._by_identity.items():
            one = present.get(identity)
            ports = sorted(one.ports, key=lambda port: port.name) if one else []
            renamed = one is not None and self._rename(history, one.found, complete)
            if history.present == (one is not None) and history.ports == ports and not renamed:
                continue
            names = {port.name for port in ports}
            gone = [port.name for port in history.ports if port.name not in names]
            past = [name for name in history.past_ports if name not in names and name not in gone]
            history.past_ports = (past + gone)[-_PORTS_KEPT:]
            history.present, history.ports, history.last_seen = one is not None, ports, now
            self._keep(history)
        self._observed = present

    def _rename(self, history: History, found: Found, complete: bool) -> bool:
        """Take over what its sources call it by now; True where that is something else."""
        before = (history.kind, history.name, history.cgroup, history.facts)
        held = found.nameless or not complete
        history.facts = found.facts.over(history.facts) if held else found.facts
        if not found.nameless:
            history.kind, history.name = found.kind, found.name
        history.cgroup = found.cgroup or history.cgroup
        return before != (history.kind, history.name, history.cgroup, history.facts)

    def saw_addresses(self, label: int, addresses: Iterable[str], now: int) -> None:
        """Note addresses that a workload sent from."""
        history = self._by_label.get(label)
        if history is None:
            return
        history.last_seen = now
        any_new = False
        for address in addresses:
            is_new = address not in history.addresses
            if is_new and len(history.addresses) >= ADDRESSES_KEPT:
                del history.addresses[min(history.addresses, key=lambda a: history.addresses[a])]
            history.addresses[address] = now
            any_new |= is_new
        if any_new:
            self._keep(history)

    def say(self, label: int, facts: Facts) -> None:
        """Take over what a user said of a label."""
        # Also of one that is gone: it may come back.
        self._said[label] = facts
        history = self._by_label.get(label)
        if history and history.said != facts:
            history.said = facts
            self._keep(history)

    def save_all(self) -> None:
        """Write every history again."""
        for history in self._by_label.values():
            self._keep(history)

    def _keep(self, history: History) -> None:
        self._changed.add(history.label)
        self._classes.pop(history.label, None)
        self._seen.pop(history.label, None)
        data = msgspec.json.encode(history)
        self._memory.keep_workload(history.identity, history.label, history.present, data)

    def _own(self, history: History) -> dict[str, str | int | list[str]]:
        """What is known of a workload before anybody says anything, as selectors see it."""
        return {
            "label": history.label,
            "name": history.name,
            "kind": history.kind,
            "host": self._host,
            "port": [port.name for port in history.ports],
        }

    def _facts(self, history: History) -> Facts:
        seen = self._own(history)
        matching = [rule.facts for rule in self._rules if rule.selector.matches(seen)]
        facts = history.facts
        for one in (*matching, history.said):
            facts = one.over(facts)
        return facts

    def traffic_class(self, label: int) -> TrafficClass:
        """The class of all of a label's traffic."""
        if label not in self._classes:
            history = self._by_label.get(label)
            self._classes[label] = (self._facts(history).traffic_class if history else None) or "normal"
        return self._classes[label]

    def seen(self, label: int) -> Mapping[str, str | int | list[str]] | None:
        """A label's workload as selectors see it; None where it is not known."""
        if label not in self._seen and (history := self._by_label.get(label)):
            facts = self._facts(history)
            self._seen[label] = {
                **self._own(history),
                "tenant": facts.tenant or "",
                "network": facts.network or "",
                "service": facts.service or "",
                "service_id": facts.service_id or 0,
            }
        return self._seen.get(label)

    def workload(self, label: int) -> Workload:
        """What the fleet is told of a label."""
        history = self._by_label[label]
        facts = self._facts(history)
        fresh = [
            a
            for a, seen in history.addresses.items()
            if history.present and history.last_seen - seen < _FRESH
        ]
        return Workload(
            label=label,
            name=history.name,
            kind=history.kind,
            host=self._host,
            tenant=facts.tenant or "",
            network=facts.network or "",
            service=facts.service or "",
            service_id=facts.service_id or 0,
            traffic_class=facts.traffic_class or "normal",
            ports=history.ports,
            addresses=fresh,
            past_ports=history.past_ports,
            past_addresses=[a for a in history.addresses if a not in fresh],
            cgroup=history.cgroup,
            present=history.present,
            first_seen=history.first_seen,
            last_seen=history.last_seen,
        )

    def workloads(self) -> list[Workload]:
        """All of them."""
        return [self.workload(label) for label in sorted(self._by_label)]

    def changed(self) -> list[Workload]:
        """Workloads that are not as `told` says the fleet knows them."""
        return [self.workload(label) for label in sorted(self._changed)]

    def told(self) -> None:
        """What `changed` gave is on its way."""
        self._changed.clear()
