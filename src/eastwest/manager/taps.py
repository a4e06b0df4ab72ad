"""What users order to be copied: kept on the bus, where probes and collectors watch it."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable

import msgspec

from eastwest.bus.background import Working
from eastwest.bus.client import Bus
from eastwest.bus.taps import TAPS_BUCKET, TapOrder, TapsAnswer, taps_subject
from eastwest.errors import BusError, NotFoundError, RefusedError

log = logging.getLogger(__name__)

_MOST = 256
"""As many destinations as a host has."""

_ANSWER_SECONDS = 4.0
_EXPIRY_SECONDS = 1.0
_ATTEMPTS = 5
_LATEST = 1 << 62
_UNREADABLE = (ValueError, RecursionError)  # msgspec's errors are ValueErrors


class TapOrders(Working):
    """Follows the bucket while it is entered, so that a listing need not read it."""

    def __init__(self, bus: Bus) -> None:
        super().__init__("tap orders")
        self._bus = bus
        self._known: dict[str, TapOrder] = {}
        self._markers: dict[str, int] = {}
        """What was taken back → when nobody would follow it any more, unix ns."""

    @property
    def all(self) -> list[TapOrder]:
        """Those that have not expired, the oldest first."""
        kept = (order for order in self._known.values() if lasts(order))
        return sorted(kept, key=lambda order: (order.added, order.name))

    def find(self, name: str) -> TapOrder:
        """Raises NotFoundError."""
        order = self._known.get(name)
        if order is None or not lasts(order):
            raise NotFoundError(f"there is no tap '{name}'", "see: eastwest tap list")
        return order

    async def add(self, wanted: TapOrder, seconds: int | None) -> TapOrder:
        """Order what is wanted for a time or until it is taken back; the same again: for another time.

        `key`, `added` and `expires` are given here. Raises RefusedError, BusError.
        """
        bucket = self._bus.bucket(TAPS_BUCKET)
        for _ in range(_ATTEMPTS):
            found = await bucket.get(wanted.name)
            before = self._decoded(found[0]) if found else None
            order = self._order(wanted, before if before and lasts(before) else None, seconds)
            revision = found[1] if found else None
            if await bucket.create_or_update(order.name, msgspec.json.encode(order), revision):
                self._known[order.name] = order
                self._markers.pop(order.name, None)
                return order
        raise BusError(f"others change the tap '{wanted.name}' all the time", "try again")

    def _order(self, wanted: TapOrder, before: TapOrder | None, seconds: int | None) -> TapOrder:
        now = time.time_ns()
        expires = 0 if seconds is None else min(now + seconds * 10**9, _LATEST)
        if before is None:
            if len(self.all) >= _MOST:
                raise RefusedError(f"there are {_MOST} taps already", "remove some: eastwest tap rm")
            key = secrets.token_urlsafe(24)
            return msgspec.structs.replace(wanted, key=key, added=now, expires=expires)
        if not same(wanted, before):
            raise RefusedError(
                f"there is another tap '{wanted.name}'", "choose another name, or remove it: eastwest tap rm"
            )
        return msgspec.structs.replace(before, expires=expires)

    async def remove(self, name: str, hosts: Iterable[str]) -> TapOrder:
        """Copy nothing any more by this order. Raises BusError.

        NotFoundError where it is not known; probes of the hosts that follow it, or do not say, are told all
        the same.
        """
        order, bucket = self._known.get(name), self._bus.bucket(TAPS_BUCKET)
        answers = [] if order else await self.ask(hosts)
        followed = any(answer is None or name in answer.taps for answer in answers)
        # A deletion leaves a marker: of what nobody knows there shall be none.
        if order or followed or await bucket.get(name):
            await bucket.delete(name)
        self._known.pop(name, None)
        if order is None or not lasts(order):
            raise NotFoundError(f"there is no tap '{name}'", "see: eastwest tap list")
        if order.expires:
            self._markers[name] = order.expires
        return order

    async def ask(self, hosts: Iterable[str]) -> list[TapsAnswer | None]:
        """What each probe answers; None where it does not."""

        async def ask(host: str) -> TapsAnswer | None:
            try:
                reply = await self._bus.request(taps_subject(host), b"", _ANSWER_SECONDS)
                answer = msgspec.json.decode(reply, type=TapsAnswer)
                _refuse_impossible(answer, host)
            except BusError as error:
                log.debug("%s does not answer: %s", host, error)
                return None
            except _UNREADABLE as error:
                log.warning("the probe of %s answers what it should not: %s", host, error)
                return None
            return answer

        return list(await asyncio.gather(*map(ask, hosts)))

    # -- in the background -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._expire())

    async def _follow(self) -> None:
        async for name, document in self._bus.bucket(TAPS_BUCKET).watch():
            order = None if document is None else self._decoded(document)
            self._known.pop(name, None)
            if order is not None and order.name == name:
                self._known[name] = order

    @staticmethod
    def _decoded(document: bytes) -> TapOrder | None:
        try:
            return msgspec.json.decode(document, type=TapOrder)
        except _UNREADABLE:
            # Not what it says: a key may be in it.
            log.warning("%s holds what is no order", TAPS_BUCKET)
            return None

    async def _expire(self) -> None:
        """Probes heed the time themselves; this only keeps the bucket small."""
        while True:
            await asyncio.sleep(_EXPIRY_SECONDS)
            now = time.time_ns()
            try:
                for name in [name for name, until in self._markers.items() if until <= now]:
                    await self._bus.bucket(TAPS_BUCKET).forget(name)
                    del self._markers[name]
                for order in [order for order in self._known.values() if not lasts(order)]:
                    await self._drop(order)
            except BusError as error:
                log.debug("an expired order stays: %s", error)

    async def _drop(self, order: TapOrder) -> None:
        """Purge an order that expired; not one that a user renews just now."""
        bucket = self._bus.bucket(TAPS_BUCKET)
        found = await bucket.get(order.name)
        if found and found[0] == msgspec.json.encode(order):
            await bucket.purge(order.name, found[1])
        if self._known.get(order.name) is order:
            del self._known[order.name]


def _refuse_impossible(answer: TapsAnswer, host: str) -> None:
    """Raises ValueError for what its types allow, and no honest probe says."""
    if answer.host != host:
        raise ValueError("it is another host's")
    counts: list[int] = []
    for point in (*answer.points, *answer.past):
        counts += [point.matched, point.not_matched, point.written, point.own, *point.lost.values()]
    for stream in (*answer.streams, *answer.past_streams):
        counts += [stream.pending, stream.unanswered, stream.confirmed, *stream.lost.values()]
        counts += [stream.sent_bytes, stream.reconnects]
    labels = [point.label for point in answer.points]
    if not all(0 <= count < 1 << 64 for count in counts) or not all(0 <= label < 1 << 32 for label in labels):
        raise ValueError("a number is out of bounds")


def lasts(order: TapOrder) -> bool:
    """Whether it has not expired."""
    return not 0 < order.expires <= time.time_ns()


def same(one: TapOrder, other: TapOrder) -> bool:
    """Whether they order the same, for whatever time."""
    return _without_times(one) == _without_times(other)


def _without_times(order: TapOrder) -> TapOrder:
    return msgspec.structs.replace(order, key="", added=0, expires=0)
