"""The ledger: for every label, seen = stored + pending + each named loss, every term counted where it lies.

    seen, lost   the probe answers from the kernel's counters; for a boot that nobody answers for, the
                 accounts that it last sent to the store
    stored       the packets of the rows in the table
    pending      the packets of the rows in messages that wait in the stream or in the probe's outbox,
                 and what the probe holds until it knows whose it is
    expired      packets of the days that retention dropped, counted before the drop

Everything is as of one drain, whose totals message has the sequence `cut`; later messages do not count.
A message moves from the outbox to the stream to the table, and the three are read in this order, so that
it is met at least once; by its number it is counted only where it has come furthest.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from eastwest.bus.client import Bus
from eastwest.bus.messages import ProbeLedger, ledger_subject
from eastwest.bus.stream import waiting
from eastwest.collector.decode import Malformed, decode
from eastwest.errors import BusError
from eastwest.meter.rows import sum_by_label
from eastwest.store.reads import Account, Stored, Totals
from eastwest.store.store import Store

log = logging.getLogger(__name__)

EXPIRED = "expired"
"""The place of packets whose rows retention has dropped."""

_ANSWER_SECONDS = 2.0
_CONNECT_SECONDS = 1.0

Messages = dict[int, Mapping[int, int]]
"""sequence → label → packets."""


@dataclass
class Side:
    """What one boot of one host has seen and lost, and what it has not handed over, as of `cut`."""

    cut: int
    seen: Mapping[int, int]
    lost: Mapping[int, Mapping[str, int]]
    outbox: Messages = field(default_factory=dict)
    held: int = 0


@dataclass
class Entry:
    """One label's line."""

    label: int
    seen: int = 0
    stored: int = 0
    pending: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    balanced: bool = True

    def add(self, other: "Entry") -> None:
        """Another boot's line of this label: sums, and balanced only if both are."""
        self.seen += other.seen
        self.stored += other.stored
        self.pending += other.pending
        self.lost += other.lost
        self.balanced &= other.balanced


async def take(bus: Bus, store: Store, hosts: Iterable[str]) -> list[Entry]:
    """The ledger of all hosts now, by label. Raises BusError, StoreError."""
    await bus.connection(_CONNECT_SECONDS)  # without the bus nobody knows what is pending
    sides = {account: _from_totals(totals) for account, totals in (await store.totals()).items()}
    for answer in await asyncio.gather(*(_ask(bus, host) for host in hosts)):
        if answer is not None:
            sides[answer.host, answer.boot] = _from_probe(answer)
    streamed = await _stream(bus)
    wanted = {account: {*sides[account].outbox, *streamed.get(account, {})} for account in sides}
    stored = await store.stored({account: side.cut for account, side in sides.items()}, wanted)
    entries: dict[int, Entry] = {0: Entry(0)}
    for account, side in sides.items():
        for entry in _balance(side, streamed.get(account, {}), stored.get(account, Stored())):
            entries.setdefault(entry.label, Entry(entry.label)).add(entry)
    return [entries[label] for label in sorted(entries)]


def _balance(side: Side, streamed: Messages, stored: Stored) -> list[Entry]:
    waiting_messages = {**side.outbox, **streamed}
    pending: Counter[int] = Counter({0: side.held})
    for sequence, packets in waiting_messages.items():
        if sequence <= side.cut and sequence not in stored.sequences:
            pending.update(packets)
    labels = {*side.seen, *side.lost, *stored.packets, *stored.expired, *pending}
    return [_line(label, side, stored, pending[label]) for label in labels]


def _line(label: int, side: Side, stored: Stored, pending: int) -> Entry:
    lost = Counter({place: n for place, n in side.lost.get(label, {}).items() if n})
    if stored.expired.get(label):
        lost[EXPIRED] += stored.expired[label]
    entry = Entry(label, side.seen.get(label, 0), stored.packets.get(label, 0), pending, lost)
    entry.balanced = entry.seen == entry.stored + entry.pending + lost.total()
    return entry


async def _ask(bus: Bus, host: str) -> ProbeLedger | None:
    """The probe's own answer; None if there is none to be had."""
    try:
        answer = msgspec.json.decode(
            await bus.request(ledger_subject(host), b"", _ANSWER_SECONDS), type=ProbeLedger
        )
    except BusError as error:
        log.debug("ledger of %s from its totals: %s", host, error)
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning("the probe of %s answers what is no ledger: %s", host, error)
        return None
    return answer if answer.host == host else None


def _from_probe(answer: ProbeLedger) -> Side:
    outbox: Messages = {message.sequence: message.packets for message in answer.outbox}
    return Side(answer.cut, answer.seen, answer.lost, outbox, answer.held)


def _from_totals(totals: Totals) -> Side:
    return Side(totals.cut, totals.seen, totals.lost)


async def _stream(bus: Bus) -> dict[Account, Messages]:
    """The flow messages now in the stream."""
    found: dict[Account, Messages] = defaultdict(dict)
    async for message in waiting(bus):
        try:
            batch = decode(message)
        except Malformed:
            continue  # the collector counts and refuses it
        if batch.kind == "flows" and batch.rows is not None:
            found[batch.host, batch.boot][batch.sequence] = sum_by_label(batch.rows)
    return found
