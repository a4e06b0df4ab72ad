"""The service ID of each label, kept beside the stream of flows, which name labels only."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eastwest.bus.messages import Workload


class Services:
    """label → service ID, as workloads' documents say."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._labels = np.zeros(0, "<u4")
        self._ids = np.zeros(0, "<u4")

    def learn(self, workloads: Iterable[Workload]) -> None:
        """Take over what later documents say."""
        self._known.update((workload.label, workload.service_id) for workload in workloads)
        self._labels = np.array(sorted(self._known), "<u4")
        self._ids = np.array([self._known[label] for label in self._labels.tolist()], "<u4")

    def of(self, labels: NDArray[Any]) -> NDArray[Any]:
        """The service ID of each label, 0 where it is not known."""
        if not len(self._labels):
            return np.zeros(len(labels), "<u4")
        at = np.searchsorted(self._labels, labels).clip(max=len(self._labels) - 1)
        return np.where(self._labels[at] == labels, self._ids[at], np.uint32(0))
