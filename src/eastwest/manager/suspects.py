"""What the API says of suspect traffic and its enforcement: orders, and the probes' answers put together."""

from collections.abc import Iterable

from eastwest.bus.messages import SuspectAnswer, SuspectEntry, SuspectOrder
from eastwest.errors import RefusedError
from eastwest.manager import models, times, views
from eastwest.manager.fleet import Fleet
from eastwest.manager.orders import Orders
from eastwest.manager.views import rfc3339
from eastwest.store.store import Store

_MOST_SHOWN = 10_000


class SuspectDesk:
    """Questions and orders about suspect traffic. Raises RefusedError, BusError, StoreError."""

    def __init__(self, orders: Orders, fleet: Fleet, store: Store) -> None:
        self._orders = orders
        self._fleet = fleet
        self._store = store

    async def declare(self, said: models.SuspectOrder) -> models.Suspect:
        seconds = times.duration(said.lasts) if said.lasts is not None else None
        if seconds == 0:
            raise RefusedError("no time at all is no time to be suspect", "give --for 30s, 5m, 2h or 1d")
        return _merged(await self._orders.declare(said.what, said.why, seconds), [])

    async def take_back(self, what: str) -> models.Suspect:
        return _merged(await self._orders.take_back(what, self._hosts()), [])

    async def suspects(self) -> models.Suspects:
        """Everything declared, with its hits on the hosts that are alive."""
        hosts = self._hosts()
        answers = await self._orders.ask_suspects(hosts)
        return merge(self._orders.suspects, [a for a in answers if a], _silent(hosts, answers))

    async def enforce(self, said: models.EnforceOrder) -> models.EnforceOrdered:
        return await self._ordered((await self._orders.enforce(said.selector)).selector)

    async def release(self, selector: str) -> models.EnforceOrdered:
        return await self._ordered((await self._orders.release(selector, self._hosts())).selector)

    async def _ordered(self, selector: str) -> models.EnforceOrdered:
        workloads = await self._store.present_workloads()
        chosen = set(views.selected(selector, workloads) or ())
        found = [w for w in workloads if w.label in chosen]
        targets = [
            models.EnforceTarget(label=w.label, name=w.name, host=w.host, **{"class": w.traffic_class})
            for w in found
        ]
        return models.EnforceOrdered(selector=selector, workloads=targets)

    async def enforcement(self) -> models.Enforcement:
        """The orders, and every port and cgroup that they are about."""
        hosts = self._hosts()
        answers = await self._orders.ask_enforced(hosts)
        labels = {source.label for answer in answers if answer for source in answer.sources}
        names = await self._store.names(labels)
        sources = [
            models.EnforcedSource(
                label=source.label,
                name=names.get(source.label, f"label-{source.label}"),
                host=answer.host,
                port=source.port,
                hook=source.hook,
                state="refused" if source.refused else "enforced",
                reason=source.refused,
            )
            for answer in answers
            if answer
            for source in answer.sources
        ]
        selectors = [order.selector for order in self._orders.enforced]
        followed = {selector for answer in answers if answer for selector in answer.selectors}
        return models.Enforcement(
            selectors=selectors,
            stale=sorted(followed.difference(selectors)),
            sources=sorted(sources, key=lambda source: (source.label, source.host, source.port)),
            unanswered=_silent(hosts, answers),
        )

    def _hosts(self) -> list[str]:
        return [member.report.host for member in self._fleet.members if member.alive]


def _silent(hosts: list[str], answers: Iterable[object]) -> list[str]:
    return [host for host, answer in zip(hosts, answers, strict=True) if answer is None]


def merge(
    declared: list[SuspectOrder], answers: list[SuspectAnswer], unanswered: list[str]
) -> models.Suspects:
    """Entries with their hits on all hosts: what users declared, then what was met most, to a limit."""
    met: dict[str, list[tuple[str, SuspectEntry]]] = {order.what: [] for order in declared}
    for answer in answers:
        for entry in answer.entries:
            met.setdefault(entry.what, []).append((answer.host, entry))
    orders = {order.what: order for order in declared}
    listed = sorted(met.keys() - orders.keys(), key=lambda what: -sum(e.packets for _, e in met[what]))
    shown = [*orders, *listed][:_MOST_SHOWN]
    return models.Suspects(
        entries=[_merged(orders.get(what), met[what]) for what in shown],
        left_out=max((a.left_out for a in answers), default=0) + len(met) - len(shown),
        unanswered=unanswered,
    )


def _merged(order: SuspectOrder | None, found: list[tuple[str, SuspectEntry]]) -> models.Suspect:
    entries = [entry for _, entry in found]
    told = order or entries[0]
    sources = {source for entry in entries for source in entry.sources} | ({"api"} if order else set())
    return models.Suspect(
        what=told.what,
        why=told.why,
        sources=sorted(sources),
        added=rfc3339(told.added),
        expires=rfc3339(told.expires),
        hosts=sorted(host for host, entry in found if not entry.pending),
        pending=sorted(host for host, entry in found if entry.pending),
        packets=sum(entry.packets for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        last_hit=rfc3339(max((entry.last_hit for entry in entries), default=0)),
    )
