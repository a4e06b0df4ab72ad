"""The store: what the collector writes and the manager reads."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from eastwest.bus.background import Background
from eastwest.bus.messages import Workload
from eastwest.credentials import refuse_secrets
from eastwest.errors import ConfigError, StoreError
from eastwest.store import alerts, detection, reads, retention, talkers, watching, writes
from eastwest.store.alerts import StoredAlert
from eastwest.store.batch import Batch
from eastwest.store.detection import Limits, Pattern
from eastwest.store.engine import Engine
from eastwest.store.reads import (
    Account,
    Figures,
    FlowQuestion,
    LabelTotal,
    Minute,
    Stored,
    Totals,
    Witnessed,
)
from eastwest.store.watching import Cut, FlowFilter, Pair, Traffic, Window
from eastwest.store.writes import Clock, Written

log = logging.getLogger(__name__)

_RETENTION_SECONDS = 3600
_EVIDENCE_LIMIT = 10_000


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`path`: a directory for the embedded database; or `url` of a ClickHouse server, with `user` and
    `password_file` where it wants them."""

    path: Path | None = None
    url: str | None = None
    user: str = ""
    password_file: Path | None = None
    retention_days: int = 7
    rollup_days: int = 90
    community_id_seed: int = 0
    """Of Community IDs; others' tools must have the same."""


class Store:
    """The database. Every call takes its turn in one thread; all raise StoreError. Enter it before use."""

    def __init__(self, config: StoreConfig) -> None:
        if (config.path is None) == (config.url is None):
            raise ConfigError("the store needs a path or a url", "set one of [store] path and url")
        refuse_secrets(config.url or "", "store")
        if min(config.retention_days, config.rollup_days) < 1:
            raise ConfigError("the store keeps at least one day", "set retention_days and rollup_days >= 1")
        if not 0 <= config.community_id_seed < 1 << 16:
            raise ConfigError(
                f"community_id_seed = {config.community_id_seed} is out of range", "set 0 to 65535"
            )
        self._config = config
        self._engine = Engine(config.path, config.url, config.user, config.password_file)
        self._clock = Clock()
        self._in_doubt: set[tuple[str, int, int]] = set()
        self._work = Background()

    async def __aenter__(self) -> Self:
        try:
            await self._engine.open()
            await self._engine.run(writes.prepare, self._clock)
        except BaseException:
            await self._engine.close()
            raise
        await self._work.start(self._retain(), "retention")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._work.stop(kind, error, trace)
        finally:
            await self._engine.close()

    async def write(self, batches: Sequence[Batch]) -> Written:
        """Store the batches that never were stored, all of them or (StoreError) perhaps some."""
        if self._in_doubt:
            await self._engine.run(writes.reconcile)
        fresh = await self._engine.run(writes.fresh, batches)
        # What an attempt that failed has stored all the same was stored here, and is no repeat.
        known = {batch.number for batch in fresh}
        given = {batch.number: batch for batch in batches}
        settled = [b for n, b in given.items() if n in self._in_doubt and n not in known]
        self._in_doubt = {batch.number for batch in (*settled, *fresh)}
        await self._engine.run(writes.write, fresh, self._clock)
        self._in_doubt = set()
        stored = [*settled, *fresh]
        return Written(stored, repeats=len(batches) - len(stored))

    async def expire(self, today: date) -> list[int]:
        """Drop the days that retention does not keep; returns those of the flows, as yyyymmdd."""
        config = self._config
        return await self._engine.run(retention.expire, today, config.retention_days, config.rollup_days)

    async def workloads(self) -> list[Workload]:
        """The latest document of every label."""
        return await self._engine.ask(reads.workloads)

    async def present_workloads(self, or_since: int = reads.NEVER) -> list[Workload]:
        """The documents of workloads that are there, and of those of which one was stored since (unix ns);
        others are not read."""
        return await self._engine.ask(reads.present_workloads, or_since)

    async def names(self, labels: Collection[int]) -> dict[int, str]:
        """label → name of its workload, present or gone, as far as known."""
        return await self._engine.ask(reads.names, labels)

    async def evidence(self, since: int, limit: int = _EVIDENCE_LIMIT) -> list[Witnessed]:
        """First packets of suspect traffic received later than `since` (unix ns), the oldest first."""
        return await self._engine.ask(reads.evidence, since, limit)

    async def label_totals(self, gone_too: bool = True) -> list[LabelTotal]:
        """The counters of every label (or of those not known to be gone), summed over hosts and boots."""
        return await self._engine.ask(reads.label_totals, gone_too)

    async def figures(self) -> list[Figures]:
        """The counters of every label, and whose they are."""
        return await self._engine.ask(reads.figures)

    async def flows(self, asked: FlowQuestion, lines: bool = False) -> bytes:
        """Flows, latest first, as a JSON list or as JSON lines."""
        return await self._engine.ask(reads.flows, asked, self._config.community_id_seed, lines)

    async def talkers(self, asked: FlowQuestion) -> bytes:
        """Pairs of addresses by what a label's flows between them sum to, most bytes first: a JSON list."""
        return await self._engine.ask(talkers.talkers, asked)

    async def minutes(self, labels: Sequence[int] | None, since: int, until: int) -> list[Minute]:
        """Traffic by minute and label between two times (unix ns)."""
        return await self._engine.ask(reads.minutes, labels, since, until)

    async def totals(self) -> dict[Account, Totals]:
        """The accounts of every host and boot, as of its last totals message."""
        return await self._engine.look(reads.totals)

    async def stored(
        self, cuts: Mapping[Account, int], wanted: Mapping[Account, set[int]]
    ) -> dict[Account, Stored]:
        """Packets stored up to each boot's cut, and which of the `wanted` sequences are stored."""
        return await self._engine.look(reads.stored, cuts, wanted)

    async def stored_cuts(self, cuts: Collection[Cut]) -> set[Cut]:
        """Which of these messages are stored."""
        return await self._engine.look(watching.stored_cuts, cuts)

    async def traffic(self, window: Window, lengths: Sequence[int], labels: Sequence[int]) -> list[Traffic]:
        """Each label's traffic in windows of these lengths (seconds), where there is any."""
        return await self._engine.look(watching.traffic, window, lengths, labels)

    async def last_packets(self, labels: Sequence[int]) -> dict[int, int]:
        """When each label's counters last moved, unix ns by its host's clock."""
        return await self._engine.look(watching.last_packets, labels)

    async def fresh_peers(self, window: Window, seconds: int, labels: Sequence[int], most: int) -> list[Pair]:
        """Whom labels met in the last `seconds` and not in the ten minutes before them; the latest first, of
        each label `most`."""
        return await self._engine.look(watching.fresh_peers, window, seconds, labels, most)

    async def known_peers(
        self, window: Window, seconds: int, learn: int, pairs: Sequence[Pair]
    ) -> tuple[set[Pair], dict[int, int]]:
        """Which pairs had met in the `learn` seconds before; label → unix seconds of its oldest minute."""
        return await self._engine.look(watching.known_peers, window, seconds, learn, pairs)

    async def top_flows(self, window: Window, wanted: FlowFilter, limit: int) -> list[dict[str, Any]]:
        """The largest flows that a filter lets through, as `flows` shows them."""
        seed = self._config.community_id_seed
        return await self._engine.look(watching.top_flows, window, wanted, limit, seed)

    async def patterns(self, window: Window, limits: Limits, realms: Mapping[int, int]) -> list[Pattern]:
        """Scans, sweeps and floods over their limits; `realms`: label → number of its realm."""
        return await self._engine.look(detection.patterns, window, limits, realms)

    async def put_alerts(self, states: Sequence[StoredAlert]) -> None:
        """Store the states that alerts have now."""
        await self._engine.run(lambda database: alerts.put(database, states, self._clock.now()))

    async def alerts(self, open_only: bool, since: int, limit: int) -> list[bytes]:
        """Documents of alerts that changed since (unix ns), the latest first."""
        return await self._engine.ask(alerts.read, open_only, since, limit)

    async def _retain(self) -> None:
        while True:
            try:
                for day in await self.expire(retention.utc_today()):
                    log.info("flows of %d have expired", day)
            except StoreError as error:
                log.warning("retention: %s", error)
            await asyncio.sleep(_RETENTION_SECONDS)
