"""New peers: addresses that a workload had not met in the time that a watch learns.

The store is asked in two steps: who was met in the window and not in the ten minutes before (cheap, at every
look), and which of them had been met in the time learned (dear, once for each). Of whom was asked is kept for
as long as the first step may tell of him again. All is bounded by label: one workload that meets thousands
neither hides what others meet nor fills the memory.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from eastwest.store.store import Store
from eastwest.store.watching import NS, RECENT_SECONDS, FlowFilter, Pair, Window
from eastwest.watch.alert import Finding
from eastwest.watch.verdict import Case, Verdict

_MOST_PEERS = 200
"""Of a label, at one look: those that it met last."""
_MOST_KNOWN = 2000
"""Of a label and a watch."""
_MOST_ASKED = 4000
"""At one look; the rest at the next ones."""
_SHOWN_PEERS = 8

Group = tuple[str, int]
"""A watch's name and a label."""


class Known:
    """Of whom was asked, each for `seconds`; of each group the `most` that were told of last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._until: dict[Group, dict[str, float]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._until.values()))

    def has(self, group: Group, peer: str) -> bool:
        return peer in self._until.get(group, {})

    def remember(self, group: Group, peers: Iterable[str], until: float) -> None:
        """Until then (monotonic seconds), which is later than whatever was said before."""
        known = self._until.setdefault(group, {})
        for peer in peers:
            known.pop(peer, None)
            known[peer] = until
        for peer in list(known)[: max(0, len(known) - self._most)]:
            del known[peer]

    def forget(self, now: float) -> None:
        """Those whose time is over."""
        for group, known in list(self._until.items()):
            # The first was told of longest ago.
            while known and known[first := next(iter(known))] <= now:
                del known[first]
            if not known:
                del self._until[group]


class Peers:
    """Finds new peers; a new one counts as new for the watch's window after it was met first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known = Known(_MOST_KNOWN)
        self._news: dict[Group, dict[str, int]] = {}

    async def evaluate(
        self, cases: Sequence[Case], window: Window, horizons: Mapping[str, int], verdict: Verdict
    ) -> None:
        """`horizons`: host → unix ns. Raises StoreError."""
        self._known.forget(time.monotonic())
        there = verdict.unknown.keys() | {case.key for case in cases}
        self._news = {group: news for group, news in self._news.items() if group in there}
        alike: dict[tuple[int, int], list[Case]] = defaultdict(list)
        for case in cases:
            alike[case.watch.window_seconds, case.watch.learn_seconds].append(case)
        for (seconds, learn), group in alike.items():
            labels = sorted({case.workload.label for case in group})
            fresh = _by_label(await self._store.fresh_peers(window, seconds, labels, _MOST_PEERS + 1))
            wanted = self._unasked(group, fresh)
            met, oldest = await self._store.known_peers(window, seconds, learn, wanted)
            new, old = _by_label([pair for pair in wanted if pair not in met]), _by_label(met)
            since = (min(window.horizons.values()) // NS if window.horizons else 0) - seconds - learn
            until = time.monotonic() + seconds + RECENT_SECONDS
            for case in group:
                label = case.workload.label
                self._renew(case, fresh.get(label, []), until)
                if oldest.get(label, 0) > since and label in new:
                    verdict.unknown[case.key] = f"its peers are not known for {learn} s yet"
                    continue
                self._known.remember(case.key, old.get(label, []), until)
                if len(fresh.get(label, [])) > _MOST_PEERS:
                    verdict.partial[case.key] = (
                        f"it met more than {_MOST_PEERS} new addresses within {seconds} s; shorten"
                        " window_seconds, or leave it out of match"
                    )
                self._note_new(case, new.get(label, []), until, horizons[case.workload.host])
                if news := self._news.get(case.key):
                    verdict.findings.append(_finding(case, sorted(news), case.key in verdict.partial))

    def _unasked(self, cases: Sequence[Case], fresh: Mapping[int, Sequence[str]]) -> list[Pair]:
        """Those that some watch does not know, each label's first one first: all have their share."""
        groups: dict[int, list[Group]] = defaultdict(list)
        for case in cases:
            groups[case.workload.label].append(case.key)
        ranked = [
            (rank, label, peer)
            for label, peers in fresh.items()
            for rank, peer in enumerate(peers[:_MOST_PEERS])
            if not all(self._known.has(group, peer) for group in groups[label])
        ]
        return [(label, peer) for _, label, peer in sorted(ranked)[:_MOST_ASKED]]

    def _renew(self, case: Case, peers: Iterable[str], until: float) -> None:
        self._known.remember(case.key, [p for p in peers if self._known.has(case.key, p)], until)

    def _note_new(self, case: Case, peers: Sequence[str], until: float, now: int) -> None:
        """`now`: the host's horizon, unix ns."""
        news = self._news.setdefault(case.key, {})
        room = _MOST_KNOWN - len(news)
        news |= {peer: now for peer in peers[:room] if not self._known.has(case.key, peer)}
        self._known.remember(case.key, peers, until)
        for peer in [peer for peer, met in news.items() if met <= now - case.watch.window_seconds * NS]:
            del news[peer]
        if not news:
            del self._news[case.key]


def _by_label(pairs: Iterable[Pair]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for label, peer in pairs:
        found.setdefault(label, []).append(peer)
    return found


def _finding(case: Case, peers: Sequence[str], partial: bool) -> Finding:
    more = f" and {len(peers) - _SHOWN_PEERS} more" if len(peers) > _SHOWN_PEERS else ""
    text = f"new peer {', '.join(peers[:_SHOWN_PEERS])}{more}"
    if partial:
        text += f"; it meets so many that only the last {_MOST_PEERS} at a time are looked at"
    flows = FlowFilter([case.workload.label], 2 * case.watch.window_seconds, peers=peers[:_SHOWN_PEERS])
    return case.finding(float(len(peers)), "peers", text, flows)
