"""What users declare suspect and order to be dropped: kept on the bus, where every probe watches it."""

import asyncio
import logging
import time
from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

import msgspec

from eastwest.bus.background import Working
from eastwest.bus.client import Bus
from eastwest.bus.messages import (
    ENFORCE_BUCKET,
    MOST_ENTRIES,
    SUSPECT_BUCKET,
    EnforceAnswer,
    EnforceOrder,
    SuspectAnswer,
    SuspectOrder,
    enforce_subject,
    suspect_subject,
)
from eastwest.bus.taps import TAPS_BUCKET
from eastwest.errors import BusError, NotFoundError, RefusedError
from eastwest.labels import suspect
from eastwest.labels.selector import Selector

log = logging.getLogger(__name__)

_MOST_SUSPECTS = 100_000
_MOST_ENFORCED = 1_000
_ANSWER_SECONDS = 4.0
_EXPIRY_SECONDS = 5.0
_LATEST = 1 << 62
_PURGE_SECONDS = 3600.0
_MARKER_SECONDS = 30 * 86400
"""How long a probe may be away and still learn what was taken back."""
_MOST_PROBLEMS = 5
_REPEATED = 100
"""Characters of why an answer is refused."""
_TOLD = "; probes that follow it all the same are told to stop"
"""An order that a bus lost goes on at the probes: taking it back works without the manager knowing it."""

T = TypeVar("T", SuspectOrder, EnforceOrder)
Answer = TypeVar("Answer", SuspectAnswer, EnforceAnswer)


class Orders(Working):
    """Follows both buckets while it is entered, so that a listing need not read them."""

    def __init__(self, bus: Bus) -> None:
        super().__init__("orders")
        self._bus = bus
        self._suspects: dict[str, SuspectOrder] = {}
        self._enforced: dict[str, EnforceOrder] = {}
        self._refused: dict[str, dict[str, str]] = {}
        """kind of answer → host → why its last one was refused"""

    @property
    def problems(self) -> list[str]:
        """Whose probes answered, when they were asked last, what cannot be."""
        found = {host: why for refused in self._refused.values() for host, why in refused.items()}
        return [
            f"host {host}: its probe's answer is refused ({why}); see that it is of this version"
            for host, why in sorted(found.items())[:_MOST_PROBLEMS]
        ]

    @property
    def suspects(self) -> list[SuspectOrder]:
        """What is declared and has not expired, the oldest first."""
        now = time.time_ns()
        kept = (order for order in self._suspects.values() if not 0 < order.expires <= now)
        return sorted(kept, key=lambda order: (order.added, order.what))

    @property
    def enforced(self) -> list[EnforceOrder]:
        return sorted(self._enforced.values(), key=lambda order: (order.added, order.selector))

    async def declare(self, what: str, why: str, seconds: int | None) -> SuspectOrder:
        """Declare a prefix or flow suspect, for a time or until it is taken back. RefusedError, BusError."""
        target, now = suspect.parse(what), time.time_ns()
        if target.name not in self._suspects and len(self._suspects) >= _MOST_SUSPECTS:
            raise RefusedError(
                f"{_MOST_SUSPECTS} entries are declared", "name more of them in a file: [suspect] files"
            )
        expires = min(now + seconds * 10**9, _LATEST) if seconds else 0
        order = SuspectOrder(target.text, why, now, expires)
        await self._put(SUSPECT_BUCKET, target.name, order)
        self._suspects[target.name] = order
        return order

    async def take_back(self, what: str, hosts: list[str]) -> SuspectOrder:
        """It is not suspect any more. RefusedError, BusError.

        NotFoundError where that is not known to have been declared; probes of the hosts that follow it, or do
        not say, are told all the same.
        """
        target = suspect.parse(what)
        order = self._suspects.get(target.name)
        answers = [] if order else await self.ask_suspects(hosts)
        followed = any(answer is None or _tells(answer, target.text) for answer in answers)
        await self._delete(SUSPECT_BUCKET, target.name, bool(order) or followed)
        self._suspects.pop(target.name, None)
        if order is None:
            raise NotFoundError(
                f"'{target.text}' is not declared suspect{_TOLD if followed else ''}",
                "see: eastwest suspect list",
            )
        return order

    async def enforce(self, text: str) -> EnforceOrder:
        """Have the suspect packets of selected workloads dropped. RefusedError, BusError."""
        selector, name = _selector(text)
        if name not in self._enforced and len(self._enforced) >= _MOST_ENFORCED:
            raise RefusedError(f"{_MOST_ENFORCED} selectors are enforced", "take some back with --off")
        order = EnforceOrder(selector, time.time_ns())
        await self._put(ENFORCE_BUCKET, name, order)
        self._enforced[name] = order
        return order

    async def release(self, text: str, hosts: list[str]) -> EnforceOrder:
        """Drop nothing any more by this order. RefusedError, BusError.

        NotFoundError where that is not known to have been ordered; probes of the hosts that follow it, or do
        not say, are told all the same.
        """
        selector, name = _selector(text)
        order = self._enforced.get(name)
        answers = [] if order else await self.ask_enforced(hosts)
        followed = any(answer is None or selector in answer.selectors for answer in answers)
        await self._delete(ENFORCE_BUCKET, name, bool(order) or followed)
        self._enforced.pop(name, None)
        if order is None:
            raise NotFoundError(
                f"'{selector}' is not ordered{_TOLD if followed else ''}", "see: eastwest enforce --list"
            )
        return order

    async def _delete(self, bucket: str, name: str, known: bool) -> None:
        """A deletion leaves a marker: of what nobody knows there shall be none."""
        if known or await self._bus.bucket(bucket).get(name):
            await self._bus.bucket(bucket).delete(name)

    async def ask_suspects(self, hosts: list[str]) -> list[SuspectAnswer | None]:
        """What each probe answers; None where it does not."""
        return await self._ask(hosts, suspect_subject, SuspectAnswer)

    async def ask_enforced(self, hosts: list[str]) -> list[EnforceAnswer | None]:
        """What each probe answers; None where it does not."""
        return await self._ask(hosts, enforce_subject, EnforceAnswer)

    async def _ask(
        self, hosts: list[str], subject: Callable[[str], str], kind: type[Answer]
    ) -> list[Answer | None]:
        async def ask(host: str) -> Answer | None:
            try:
                reply = await self._bus.request(subject(host), b"", _ANSWER_SECONDS)
                answer = msgspec.json.decode(reply, type=kind)
                _refuse_impossible(answer, host)
            except BusError as error:
                log.debug("%s does not answer: %s", host, error)
                return None
            except (ValueError, RecursionError, RefusedError) as error:  # msgspec's errors are ValueErrors
                refused[host] = str(error)[:_REPEATED]
                return None
            return answer

        refused: dict[str, str] = {}
        answers = list(await asyncio.gather(*map(ask, hosts)))
        for host in refused.keys() - self._refused.get(kind.__name__, {}).keys():
            log.warning("the probe of %s answers what it should not: %s", host, refused[host])
        self._refused[kind.__name__] = refused
        return answers

    async def _put(self, bucket: str, name: str, order: SuspectOrder | EnforceOrder) -> None:
        await self._bus.bucket(bucket).put(name, msgspec.json.encode(order))

    # -- in the background -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(SUSPECT_BUCKET, self._suspects, SuspectOrder))
            group.create_task(self._follow(ENFORCE_BUCKET, self._enforced, EnforceOrder))
            group.create_task(self._expire())
            group.create_task(self._purge())

    async def _follow(self, bucket: str, known: dict[str, T], kind: type[T]) -> None:
        async for name, document in self._bus.bucket(bucket).watch():
            known.pop(name, None)
            if document is not None:
                try:
                    order = msgspec.json.decode(document, type=kind)
                    if isinstance(order, SuspectOrder):
                        suspect.named(name, order.what)
                    known[name] = order
                except (ValueError, RecursionError, RefusedError) as error:
                    log.warning("%s holds what it should not: %s", bucket, str(error)[:_REPEATED])

    async def _expire(self) -> None:
        """Probes heed the time themselves; this only keeps the bucket small."""
        while True:
            await asyncio.sleep(_EXPIRY_SECONDS)
            now = time.time_ns()
            for name, order in list(self._suspects.items()):
                if 0 < order.expires <= now:
                    await self._drop(name, order)

    async def _purge(self) -> None:
        """What was taken back leaves markers, for probes that are away."""
        while True:
            for bucket in (SUSPECT_BUCKET, ENFORCE_BUCKET, TAPS_BUCKET):
                try:
                    await self._bus.bucket(bucket).purge_markers(_MARKER_SECONDS)
                except BusError as error:
                    log.debug("old markers stay: %s", error)
            await asyncio.sleep(_PURGE_SECONDS)

    async def _drop(self, name: str, order: SuspectOrder) -> None:
        """Purge an entry that expired; not one that a user renews just now."""
        bucket = self._bus.bucket(SUSPECT_BUCKET)
        try:
            found = await bucket.get(name)
            if found and found[0] == msgspec.json.encode(order):
                await bucket.purge(name, found[1])
        except BusError as error:
            log.debug("an expired entry stays: %s", error)
            return
        if self._suspects.get(name) is order:
            del self._suspects[name]


def _tells(answer: SuspectAnswer, what: str) -> bool:
    """Whether a probe follows what a user declared, or has no room to say."""
    return len(answer.entries) >= MOST_ENTRIES or any(
        entry.what == what and "api" in entry.sources for entry in answer.entries
    )


def _refuse_impossible(answer: SuspectAnswer | EnforceAnswer, host: str) -> None:
    """Raises ValueError or RefusedError for what its types allow, and no honest probe says."""
    if answer.host != host:
        raise ValueError("it is another host's")
    if isinstance(answer, SuspectAnswer):
        told = [entry.what for entry in answer.entries]
        if len(set(told)) < len(told) or any(suspect.parse(what).text != what for what in told):
            raise ValueError("an entry is told twice, or not as it is written")


def _selector(text: str) -> tuple[str, str]:
    """A selector's conditions as they are written, and its name in the bucket."""
    conditions = Selector.parse(text).conditions
    if not conditions:
        raise RefusedError("a selector that is empty selects every workload", "say so with: name=*")
    written = ",".join(f"{key}={value}" for key, value in sorted(conditions))
    return written, sha256(written.encode()).hexdigest()[:32]
