"""Cgroups that are made below a tapped one: the kernel taps them before their first packet.

User space learns of them a moment later, and decides: so this is for that moment alone.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from eastwest.errors import KernelError
from eastwest.kernel.libbpf import Map, Object
from eastwest.kernel.records import INHERIT_OBJECT, TAP_OBJECT, record

log = logging.getLogger(__name__)

_POINT = record("tap_point", TAP_OBJECT)
_NUMBER = np.dtype("u8")


def named_apart(patterns: Sequence[str]) -> bool:
    """Whether the kernel can tell by its name that a cgroup is no workload of its own: theirs have a dot."""
    return all("." in pattern and "[" not in pattern for pattern in patterns)


class Heirs:
    """While it is open, what is made below a tapped cgroup has that one's point. `points`: the map of all."""

    def __init__(self, points: Map) -> None:
        self._points = points
        self._object: Object | None = None

    def open(self) -> None:
        """Where the kernel cannot have it, new cgroups are tapped when user space has heard of them."""
        made = Object(INHERIT_OBJECT)
        try:
            made.share(self._points)
            made.load()
            made.attach("inherit")
            self._object = made
        except KernelError as error:
            log.warning("what new cgroups send in their first moment is not copied: %s", error)
            made.close()

    def close(self) -> None:
        if self._object:
            self._object.close()
            self._object = None

    def found(self) -> Iterator[tuple[int, int, bytes]]:
        """Cgroups that the kernel has tapped: id, that of the one whose point it is, and the point."""
        numbers, points = self._points.read(_NUMBER, _POINT)
        for number, point in zip(numbers, points, strict=True):
            if point["heir_of"]:
                yield int(number), int(point["heir_of"]), bytes(point.tobytes())
