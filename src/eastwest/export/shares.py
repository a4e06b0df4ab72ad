"""Sums of labels by group, bounded in number, that never fall: what a Prometheus counter has to be.

Sums made anew at each scrape would fall when a workload is given to another tenant, or when a group leaves
the largest; Prometheus reads a fall as a restart, and shows a burst that never was. So what a label has
counted since the last scrape is added to the group that it is in now, and a group once shown stays shown.
"""

from collections.abc import Iterable, Sequence

Group = tuple[str, ...]
Counts = Sequence[int]


class Shares:
    """Counts of up to `most` groups, at first the largest; everybody else is "other"."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._before: dict[int, Counts] = {}
        self._sums: dict[Group, list[int]] = {}
        self.groups = 0
        """Groups that are shown by name."""

    def add(self, figures: Iterable[tuple[int, Group, Counts]]) -> None:
        """Take over the latest figures: label, its group, everything that the label has counted."""
        grown: dict[Group, list[int]] = {}
        for label, group, counts in figures:
            before = self._before.get(label)
            if counts == before:
                continue
            before = before or [0] * len(counts)
            more = [max(0, now - then) for now, then in zip(counts, before, strict=True)]
            self._before[label] = counts
            sums = grown.setdefault(group, [0] * len(counts))
            grown[group] = [a + b for a, b in zip(sums, more, strict=True)]
        for group, more in sorted(grown.items(), key=lambda item: -sum(item[1])):
            place = self._place(group)
            sums = self._sums.get(place, [0] * len(more))
            self._sums[place] = [a + b for a, b in zip(sums, more, strict=True)]

    def _place(self, group: Group) -> Group:
        if group not in self._sums:
            if self.groups >= self._most:
                return ("other",) * len(group)
            self.groups += 1
        return group

    def sums(self) -> dict[Group, list[int]]:
        """Everything added so far, by group."""
        return dict(self._sums)
