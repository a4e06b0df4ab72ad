"""Programs that ask filters about live packets and keep what they saw (filters.bpf.c)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eastwest.kernel import attach
from eastwest.kernel.libbpf import Object
from eastwest.kernel.netns import inside
from eastwest.tap.filter import Filter, Programs
from eastwest.tap.reading import Hook

OBJECT = Path(__file__).with_name("filters.bpf.o")
_HEAD = np.dtype([("orders", "<u8"), *((name, "<u4") for name in ("length", "linear", "tagged", "segment"))])
_TAGGED = 1 << 16


class Seen(NamedTuple):
    """One packet: the filters' answer, how much of it was in the linear part, its tag, its segments' size."""

    orders: int
    length: int
    linear: int
    tag: int | None
    segment: int
    data: bytes


class Watcher:
    """The loaded programs; `put` what they shall ask."""

    def __init__(self, loaded: Object) -> None:
        self._loaded = loaded

    def program(self, name: str) -> int:
        return self._loaded.program(name)

    def programs(self, hook: Hook) -> Programs:
        return Programs(self._loaded.maps[f"{hook.value}_filters"], hook)

    def put(self, hook: Hook, filters: Sequence[Filter], place: int = 0) -> None:
        """Ask these from now on, and begin counting anew."""
        self.programs(hook).put(place, filters)
        self._loaded.maps["count"].update(bytes(4), bytes(8))

    def count(self) -> int:
        return int.from_bytes(self._loaded.maps["count"].lookup(bytes(4)) or b"", "little")

    def seen(self, first: int = 0) -> list[Seen]:
        """Every packet since `put`, in their order."""
        return [self._packet(number) for number in range(first, self.count())]

    def _packet(self, number: int) -> Seen:
        value = self._loaded.maps["packets"].lookup(number.to_bytes(4, "little"))
        assert value is not None, "more packets than fit"
        orders, length, linear, tagged, segment = np.frombuffer(value, _HEAD, 1)[0].tolist()
        tag = tagged & 0xFFFF if tagged & _TAGGED else None
        return Seen(orders, length, linear, tag, segment, value[_HEAD.itemsize : _HEAD.itemsize + length])

    def answers(self) -> list[int]:
        """How often `port_counted` got each answer."""
        table = self._loaded.maps["answers"]
        return [int.from_bytes(table.lookup(n.to_bytes(4, "little")) or b"", "little") for n in range(16)]


@contextmanager
def watching() -> Iterator[Watcher]:
    with Object(OBJECT) as loaded:
        loaded.load()
        yield Watcher(loaded)


@contextmanager
def attached(program: int, netns: Path, ifindex: int, egress: bool = False) -> Iterator[None]:
    """At a port, as this kernel can: TCX or clsact; what clsact is given goes with the port."""
    link = None
    with inside(netns):
        if attach.has_tcx(program):
            link = attach.link(program, ifindex, attach.TCX_EGRESS if egress else attach.TCX_INGRESS)
        else:
            attach.clsact_filter(program, ifindex, egress, 1)
    try:
        yield
    finally:
        if link is not None:
            os.close(link)
