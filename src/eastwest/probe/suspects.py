"""Keeps the kernel's entries what users and files declare suspect, until they expire.

What users declare is remembered on disk: a probe that starts while the bus is away takes nothing back.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, islice
from typing import NamedTuple

import msgspec

from eastwest.bus.client import Bus
from eastwest.bus.messages import MOST_ENTRIES, SUSPECT_BUCKET, SuspectAnswer, SuspectEntry, SuspectOrder
from eastwest.errors import EastwestError, KernelError, StoreError
from eastwest.labels import suspect
from eastwest.labels.suspect import Target
from eastwest.meter.suspects import Hits, SuspectMaps
from eastwest.probe.journal import Journal
from eastwest.probe.refusals import Refusals
from eastwest.probe.suspectfiles import SuspectFiles

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_GATHER_SECONDS = 0.02
_SETTLE_SECONDS = 3.0
_NOTHING = Hits(0, 0, 0)
_NEVER = 1 << 63
_NO_ROOM = (
    "{} suspect entries find no room; set a larger [probe] suspect_entries, run eastwest down, and up again"
)


class Declared(NamedTuple):
    """What a user declared."""

    target: Target
    order: SuspectOrder


class Suspects:
    """All that is suspect on this host. `cut` makes the probe cut at once, which puts changes into effect."""

    def __init__(
        self,
        *,
        host: str,
        maps: SuspectMaps,
        files: SuspectFiles,
        journal: Journal,
        bus: Bus,
        cut: Callable[[], None],
    ) -> None:
        self._host = host
        self._maps = maps
        self._files = files
        self._journal = journal
        self._bus = bus
        self._cut = cut
        self._declared: dict[str, Declared] = {}
        self._due = asyncio.Event()
        self._settled = asyncio.Event()
        self._lock = asyncio.Lock()
        self._effective = 0
        self._fresh: dict[bytes, int] = {}
        """key → which of the changes brought it, while that is not known to be in effect"""
        self._expiry = _NEVER
        self._problems: dict[str, str | None] = {}
        self._refusals = Refusals("a suspect entry")
        self._left_out: str | None = None
        self.changes = 0
        """How often the kernel's entries were changed."""

    @property
    def problems(self) -> list[str]:
        found = [*self._problems.values(), *self._refusals.problems, self._left_out, *self._files.problems]
        return [problem for problem in found if problem]

    def adopt(self) -> None:
        """Go on with what an earlier probe knew. Raises StoreError."""
        for name, document in self._journal.orders(SUSPECT_BUCKET).items():
            self._take(name, document)
        self._forget()
        self._files.look()
        self._maps.adopt()
        self._applied(self._apply())

    async def run(self) -> None:
        """Follow orders, files and the clock until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="suspect orders")
            group.create_task(self._keep(), name="suspects")

    async def _follow(self) -> None:
        async for name, document in self._bus.bucket(SUSPECT_BUCKET).watch():
            self._take(name, document)
            try:
                self._journal.keep_order(SUSPECT_BUCKET, name, document)
                self._problems["journal"] = None
            except StoreError as e:
                self._problem("journal", e)
            self._due.set()

    def _take(self, name: str, document: bytes | None) -> None:
        self._declared.pop(name, None)
        self._refusals.settle(name)
        if document is None:
            return
        try:
            order = msgspec.json.decode(document, type=SuspectOrder)
            self._declared[name] = Declared(suspect.named(name, order.what), order)
        except (ValueError, RecursionError, msgspec.MsgspecError, EastwestError) as e:
            self._refusals.refuse(name, e)

    async def _keep(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._due.wait()
                await asyncio.sleep(_GATHER_SECONDS)  # orders come in crowds at first
            async with self._lock:
                due = self._due.is_set() or time.time_ns() >= self._expiry
                self._due.clear()
                if due:
                    self._forget()
                if self._effective >= self.changes:
                    self._fresh = {}
                if await asyncio.to_thread(self._files.look) or due:
                    self._applied(await asyncio.to_thread(self._apply))

    def _forget(self) -> None:
        """What has expired; the bucket says nothing of it any more."""
        now = time.time_ns()
        for name, declared in list(self._declared.items()):
            if 0 < declared.order.expires <= now:
                del self._declared[name]
                try:
                    self._journal.keep_order(SUSPECT_BUCKET, name, None)
                except StoreError as e:
                    self._problem("journal", e)

    def _applied(self, changed: bool) -> None:
        if changed:
            self.changes += 1
            self._cut()
        self._settled.set()

    # -- the kernel ----------------------------------------------------------------------------------------

    def _in_force(self) -> list[Declared]:
        now = time.time_ns()
        return [d for d in list(self._declared.values()) if not 0 < d.order.expires <= now]

    def _wanted(self) -> list[set[bytes]]:
        """Keys of prefixes and of flows. Where there is no room for all, what users declare comes first, then
        the files in the order of the settings, each from its first line on."""
        declared, contents = self._in_force(), self._files.contents.values()
        self._expiry = min((d.order.expires for d in declared if d.order.expires), default=_NEVER)
        found, left = [], 0
        for kind, most in zip(("prefix", "flow"), self._maps.most, strict=True):
            said = (d.target.keys for d in declared if d.target.kind == kind)
            listed = (c.prefixes if kind == "prefix" else c.flows for c in contents)
            every = dict.fromkeys(chain.from_iterable(chain(said, listed)))
            found.append(set(islice(every, most)))
            left += max(0, len(every) - most) // (1 if kind == "prefix" else 2)
        self._left_out = _NO_ROOM.format(left) if left else None
        return found

    def _apply(self) -> bool:
        """True where the kernel's entries may be others now."""
        wanted = self._wanted()
        for keys, loaded in zip(wanted, self._maps.loaded, strict=True):
            self._fresh |= dict.fromkeys(keys - loaded, self.changes + 1)
        try:
            changed = self._maps.replace(*wanted)
            self._problems["kernel"] = None
        except KernelError as e:
            self._problem("kernel", e)
            self._expiry = 0  # try again
            with suppress(KernelError):
                self._maps.adopt()
            return True
        return changed

    def took_effect(self, changes: int) -> None:
        """A cut was made after so many changes."""
        self._effective = max(self._effective, changes)
        self._settled.set()

    async def _until_settled(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                while not await self._is_settled():
                    await self._settled.wait()

    async def _is_settled(self) -> bool:
        async with self._lock:  # whoever changes the entries has it until that is counted
            self._settled.clear()
            return self._effective >= self.changes and not self._due.is_set()

    # -- what it tells -------------------------------------------------------------------------------------

    async def answer(self, _: bytes) -> bytes:
        """The entries, as a `SuspectAnswer`; waits a little for those that are not in effect yet."""
        await self._until_settled()
        async with self._lock:
            answer = await asyncio.to_thread(self._answer)
        return msgspec.json.encode(answer)

    def _answer(self) -> SuspectAnswer:
        hits = self._maps.hits(time.time_ns() - time.monotonic_ns())
        loaded = self._maps.loaded
        known = (d for d in self._in_force() if d.target.keys[0] in loaded[d.target.kind == "flow"])
        declared = {d.target.text: d for d in known}
        met = sorted(hits.keys() - declared.keys(), key=lambda text: -hits[text].packets)
        shown = [*declared, *met][:MOST_ENTRIES]
        entries = [self._entry(text, declared.get(text), hits.get(text, _NOTHING)) for text in shown]
        prefixes, flows = loaded
        return SuspectAnswer(self._host, entries, max(0, len(prefixes) + len(flows) // 2 - len(entries)))

    def _entry(self, text: str, declared: Declared | None, hits: Hits) -> SuspectEntry:
        key = suspect.parse(text).keys[0]
        files = [(path, c) for path, c in self._files.contents.items() if key in c.prefixes or key in c.flows]
        return SuspectEntry(
            what=text,
            why=declared.order.why if declared else "",
            sources=[*(["api"] if declared else []), *(str(path) for path, _ in files)],
            added=declared.order.added if declared else min((c.written for _, c in files), default=0),
            expires=declared.order.expires if declared else 0,
            packets=hits.packets,
            bytes=hits.bytes,
            last_hit=hits.last,
            pending=self._fresh.get(key, 0) > self._effective,
        )

    def _problem(self, about: str, error: EastwestError) -> None:
        if self._problems.get(about) != str(error):
            log.warning("%s", error)
        self._problems[about] = str(error)
