"""Makes the kernel copy what is wanted: compares it with what is, and changes the difference.

A *source* is a port or a cgroup; several *takings*, one for each tap, make its point. What the same taps take
at many ports is one filter program, which all of them ask.
"""

import errno
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from eastwest.bus.taps import Direction, TapPoint
from eastwest.errors import KernelError, RefusedError
from eastwest.tap.filter import Filter, Programs
from eastwest.tap.heirs import Heirs
from eastwest.tap.reading import Hook
from eastwest.tap.segments import Segments
from eastwest.tap.taps import CAPTURE, MOST_ORDERS, MOST_STREAMS, Order, Point, Taps

_LOSSES = ("buffer_full", "busy", "load_failed", "no_buffer")
_PLACES = 4096  # FILTER_PLACES
_REFUSALS_KEPT = 64


class Source(NamedTuple):
    """A port by its interface's index, or a cgroup by its id. `serial`: another for the next one."""

    hook: Hook
    number: int
    serial: int = 0


class Stream(NamedTuple):
    """What is counted together: a tap at a port, or at all the cgroups of a workload (port empty)."""

    tap: str
    label: int
    port: str


class Taking(NamedTuple):
    """What one tap takes at a source."""

    stream: Stream
    destination: int
    interface: int
    service: int
    snaplen: int = CAPTURE
    filter: Filter | None = None
    """None: every packet."""

    segment: bool = False
    """Copies as on the wire, at ports only."""

    direction: Direction = "both"


@dataclass
class _Attached:
    """A source as the kernel has it."""

    point: Point
    filters: tuple[Filter, ...]
    streams: tuple[Stream, ...]


@dataclass
class _Pool:
    """Numbers that are given, taken back, and given again."""

    most: int
    free: list[int] = field(default_factory=list)
    next: int = 0

    def take(self) -> int | None:
        if self.free:
            return self.free.pop()
        if self.next == self.most:
            return None
        self.next += 1
        return self.next - 1


class Points:
    """All points of a host. Driven from one thread at a time; `counts` may be asked from another.

    `inherits`: whether the kernel may tap new cgroups below tapped ones by itself.

    `past`: tap → sums over what it counted at sources that are gone.
    """

    def __init__(
        self,
        taps: Taps,
        cgroup_root: Path,
        past: dict[str, Counter[str]],
        note: Path | None = None,
        inherits: bool = True,
    ) -> None:
        self._taps = taps
        self._root = cgroup_root
        self._heirs = Heirs(taps.map("cgroup_points")) if inherits else None
        self._rooted = False
        self._attached: dict[Source, _Attached] = {}
        self._streams: dict[Stream, int] = {}
        self._shown: dict[Stream, int] = {}
        """Those at whose sources hooks are attached."""
        self._segments = Segments(taps, note)
        self._segmenting: dict[Stream, tuple[int, int]] = {}
        self._stream_pool = _Pool(MOST_STREAMS)
        self._places: dict[Hook, dict[tuple[Filter, ...], int]] = {hook: {} for hook in Hook}
        self._place_pools = {hook: _Pool(_PLACES) for hook in Hook}
        maps = {Hook.PORT: "port_filters", Hook.CGROUP: "cgroup_filters"}
        self._programs = {hook: Programs(taps.map(name), hook) for hook, name in maps.items()}
        self._refused: dict[tuple[Filter, ...], RefusedError] = {}
        self._past = past
        self._found: dict[Stream, str] = {}
        self.problems: Mapping[Stream, str] = {}
        """Why a tap copies nothing somewhere, as of the last `apply`."""

    def apply(
        self,
        wanted: Mapping[Source, Sequence[Taking]],
        refused: Mapping[Stream, str],
        known: Set[int] = frozenset(),
    ) -> None:
        """Copy this, from now on, and nothing else; takings that come first have precedence.

        `refused`: why other streams do not begin. `known`: the cgroups that it is known whose they are;
        others, when they are new, have what is wanted of the one that they are in. Blocks, some
        milliseconds for each source whose takings change. Raises KernelError.
        """
        self._found = dict(refused)
        wanted = self._with_relay(wanted)
        for source in [one for one in self._attached if one not in wanted]:
            self._remove(source)
        for source, takings in wanted.items():
            self._put(source, takings)
        if self._rooted and not any(source.hook is Hook.CGROUP for source in self._attached):
            self._taps.detach_cgroup(self._root)
            self._rooted = False
            if self._heirs:
                self._heirs.close()
        self._taps.settle()
        self._keep_heirs(known)
        self._forget()
        if not self._segmenting:
            self._segments.close()
        self.problems, self._shown = self._found, dict(self._streams)

    def close(self) -> None:
        """Leave nothing behind that would outlive the programs."""
        if self._heirs:
            self._heirs.close()
        self._segments.close()

    def _keep_heirs(self, known: Set[int]) -> None:
        """What the kernel has tapped by itself is as what it is in; no more, once it is known whose it is."""
        for number, origin, point in self._heirs.found() if self._heirs else ():
            of = self._attached.get(Source(Hook.CGROUP, origin))
            if of is None or number in known:
                self._taps.remove_cgroup(number)
            elif point != (heir := of.point._replace(heir_of=origin)).pack():
                self._taps.set_cgroup(number, heir)
        self._taps.settle()

    def _with_relay(self, wanted: Mapping[Source, Sequence[Taking]]) -> Mapping[Source, Sequence[Taking]]:
        """Have a relay where one is needed; where there can be none, what needs none is left."""
        streams = {taking.stream for takings in wanted.values() for taking in takings if taking.segment}
        try:
            if streams:
                self._segments.open()
            return wanted
        except KernelError as error:
            self._found |= dict.fromkeys(streams, f"no copies as on the wire: {error}")
        return {
            source: [taking for taking in takings if not taking.segment] for source, takings in wanted.items()
        }

    # -- one source ------------------------------------------------------------------------------------------

    def _put(self, source: Source, takings: Sequence[Taking]) -> None:
        fitting, filters = self._fitting(source.hook, [one for one in takings if self._counted(one.stream)])
        if not fitting:
            if source in self._attached:
                self._remove(source)
            return
        streams = tuple(taking.stream for taking in fitting)
        orders = tuple(self._order(taking) for taking in fitting)
        point = Point(streams[0].label, orders, self._places[source.hook].get(filters, 0))
        before = self._attached.get(source)
        if before and before.point == point:
            return
        try:
            self._set(source, point)
            self._attached[source] = _Attached(point, filters, streams)
            if before is None:
                self._attach(source)
        except KernelError as error:
            self._remove(source)
            if error.errno not in (errno.ENODEV, errno.ENOENT):  # gone meanwhile
                self._found |= dict.fromkeys(streams, str(error))

    def _counted(self, stream: Stream) -> bool:
        """Whether it has counters, or there are some left for it."""
        if stream not in self._streams:
            number = self._stream_pool.take()
            if number is None:
                self._found[stream] = f"all {MOST_STREAMS} counters of taps are in use; end some taps"
                return False
            self._taps.forget(number, stream.tap)
            self._streams[stream] = number
        return True

    def _fitting(self, hook: Hook, takings: Sequence[Taking]) -> tuple[list[Taking], tuple[Filter, ...]]:
        """Those that find room at one source, filtered ones first, and their filters, with a program made."""
        for beyond in takings[MOST_ORDERS:]:
            self._found[beyond.stream] = (
                f"{MOST_ORDERS} other taps are at this place, which is the most; end one of them"
            )
        kept = list(takings[:MOST_ORDERS])
        while True:
            filtered = [taking for taking in kept if taking.filter]
            filters = tuple(taking.filter for taking in filtered if taking.filter)
            try:
                if filters:
                    self._place(hook, filters)
            except RefusedError as error:
                self._found[filtered[-1].stream] = str(error)
                kept.remove(filtered[-1])
            else:
                return filtered + [taking for taking in kept if not taking.filter], filters

    def _place(self, hook: Hook, filters: tuple[Filter, ...]) -> None:
        """Have these filters' program loaded. Raises RefusedError, KernelError."""
        places, pool = self._places[hook], self._place_pools[hook]
        if filters in places:
            return
        if filters in self._refused:
            raise self._refused[filters]
        place = pool.take()
        if place is None:
            raise RefusedError(f"{_PLACES} different sets of filters are in use", "end some taps")
        try:
            self._programs[hook].put(place, filters)
        except BaseException as error:
            pool.free.append(place)
            if isinstance(error, RefusedError):
                # The verifier took its time to say so, and would again.
                self._refused = {filters: error, **dict(islice(self._refused.items(), _REFUSALS_KEPT))}
            raise
        places[filters] = place

    def _order(self, taking: Taking) -> Order:
        return Order(
            destination=taking.destination,
            interface=taking.interface,
            stream=self._streams[taking.stream],
            snaplen=taking.snaplen,
            service=taking.service,
            filtered=taking.filter is not None,
            segment=self._segment(taking) if taking.segment else 0,
            direction=taking.direction,
        )

    def _segment(self, taking: Taking) -> int:
        """The number of a stream's order; one for another destination has another."""
        destination, number = self._segmenting.get(taking.stream, (-1, 0))
        if destination != taking.destination:
            number = self._segments.begin(self._streams[taking.stream])
            self._segmenting[taking.stream] = taking.destination, number
        return number

    def _set(self, source: Source, point: Point) -> None:
        if source.hook is Hook.PORT:
            self._taps.set_port(source.number, point)
        else:
            self._taps.set_cgroup(source.number, point)

    def _attach(self, source: Source) -> None:
        if source.hook is Hook.PORT:
            self._taps.attach_port(source.number)
        elif not self._rooted:
            self._taps.attach_cgroup(self._root)
            self._rooted = True
            if self._heirs:
                self._heirs.open()

    def _remove(self, source: Source) -> None:
        self._attached.pop(source, None)
        if source.hook is Hook.PORT:
            self._taps.detach_port(source.number)
        else:
            self._taps.remove_cgroup(source.number)

    # -- what is over ----------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Give back what nothing uses any more; no program is counting in it."""
        self._end_segments()
        streams = {stream for attached in self._attached.values() for stream in attached.streams}
        for stream in self._streams.keys() - streams:
            number = self._streams.pop(stream)
            self._past.setdefault(stream.tap, Counter()).update(self._taps.count(number))
            self._taps.forget(number)
            self._stream_pool.free.append(number)
        for hook, places in self._places.items():
            used = {attached.filters for source, attached in self._attached.items() if source.hook is hook}
            for filters in places.keys() - used:
                place = places.pop(filters)
                self._programs[hook].remove(place)
                self._place_pools[hook].free.append(place)

    def _end_segments(self) -> None:
        """Take nothing more from the relay for streams that no order with `segment` has now."""
        live = {
            stream
            for attached in self._attached.values()
            for stream, order in zip(attached.streams, attached.point.orders, strict=True)
            if order.segment
        }
        if over := self._segmenting.keys() - live:
            self._segments.wait()
            for stream in over:
                del self._segmenting[stream]
                self._segments.end(self._streams[stream])
            self._taps.settle(anyway=True)

    # -- what was counted ------------------------------------------------------------------------------------

    def counts(self) -> Iterator[TapPoint]:
        """What is counted now, and why nothing is where that is so."""
        for stream, number in self._shown.items():
            yield _point(stream, self._taps.count(number), self.problems.get(stream, ""))
        for stream, problem in self.problems.items():
            if stream not in self._shown:
                yield _point(stream, Counter(), problem)


def past_point(tap: str, sums: Mapping[str, int]) -> TapPoint:
    """What a tap counted at sources that are gone."""
    return _point(Stream(tap, 0, ""), sums, "")


def _point(stream: Stream, count: Mapping[str, int], problem: str) -> TapPoint:
    lost = {place: count.get(place, 0) for place in _LOSSES}
    lost["relay"] = max(0, count.get("relayed", 0) - count.get("arrived", 0))
    return TapPoint(
        tap=stream.tap,
        label=stream.label,
        port=stream.port,
        matched=count.get("matched", 0),
        not_matched=count.get("not_matched", 0),
        written=count.get("written", 0),
        lost={place: packets for place, packets in lost.items() if packets},
        own=count.get("own", 0),
        problem=problem,
    )
