"""The kernel side of copying: loads the tap, attaches it, tells it what to copy from where to which rings.

Links are not pinned: they end with the process, and a dead probe copies nothing. (Classic filters, before
Linux 6.6, stay and fill rings that nobody reads, until `remove_filters`.) Counters are, so that what a killed
probe has copied is known afterwards.
"""

import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from eastwest.bus.taps import Direction
from eastwest.errors import MissingFeature, RefusedError
from eastwest.kernel import attach, features
from eastwest.kernel.events import RingBuffer
from eastwest.kernel.libbpf import Map, Object, possible_cpus
from eastwest.kernel.netns import OWN, cookie, inside
from eastwest.kernel.records import TAP_OBJECT, enumeration, record
from eastwest.kernel.rings import Rings, create
from eastwest.tap.config import Attach, TapConfig

_SIZES = enumeration("tap_sizes", TAP_OBJECT)
CAPTURE = _SIZES["TAP_CAPTURE"]
"""Bytes that are copied of a packet at most."""

SHORTEST_SNAPLEN = 32
MOST_ORDERS = _SIZES["TAP_ORDERS"]
MOST_STREAMS = _SIZES["TAP_STREAMS"]
_COUNT = record("tap_count", TAP_OBJECT)
_POINT = record("tap_point", TAP_OBJECT)
_ENDPOINT = record("endpoint", TAP_OBJECT)
_DELIVERY = record("tap_delivery", TAP_OBJECT)
_NAME_BYTES = 64
_RELAY_CLONES = enumeration("relay_sizes", TAP_OBJECT)["RELAY_CLONES"]
_SECOND = 1_000_000_000

PINNED = ("tap_counts", "tap_streams", "tap_deliveries")
"""Maps that outlive a killed probe: counters and notes, no programs and no packets."""


class Order(NamedTuple):
    """What one order takes at one port or cgroup."""

    destination: int
    interface: int
    """The number that the destination's reader gave."""

    stream: int
    """Index of the counters, which no other order and no other port has."""

    snaplen: int = CAPTURE
    service: int = 0
    filtered: bool = False
    """Whether the filters at the point's place are asked; else every packet is taken."""

    segment: int = 0
    """Not 0: copies as on the wire; a number that no other order has. See `Segments`."""

    direction: Direction = "both"


class Point(NamedTuple):
    """A port or cgroup: its label, its orders in the order of the filters' bits, and the filters' place."""

    label: int
    orders: Sequence[Order]
    place: int = 0
    heir_of: int = 0
    """See `Heirs`."""

    def pack(self) -> bytes:
        """The C `tap_point`. Raises RefusedError where it does not hold so much."""
        if len(self.orders) > _SIZES["TAP_ORDERS"]:
            raise RefusedError(f"{len(self.orders)} taps at one port", f"at most {_SIZES['TAP_ORDERS']} fit")
        point = np.zeros(1, _POINT)[0]
        for bit, order in enumerate(self.orders):
            if not SHORTEST_SNAPLEN <= order.snaplen <= CAPTURE:
                raise RefusedError(f"snaplen {order.snaplen}", f"choose {SHORTEST_SNAPLEN} to {CAPTURE}")
            bits = ["filtered" if order.filtered else "every"]
            bits += ["ingress", "egress"] if order.direction == "both" else [order.direction]
            for name in bits:
                point[name] |= np.uint64(1 << bit)
            fields = (order.destination, order.interface, order.stream, order.snaplen, order.service)
            point["order"][bit] = (*fields, order.segment)
        point["label"], point["place"], point["orders"] = self.label, self.place, len(self.orders)
        point["heir_of"] = self.heir_of
        point["segmenting"] = any(order.segment for order in self.orders)
        return bytes(point.tobytes())


Endpoint = tuple[str, int]
"""Address, in figures, and port of one end of TCP."""


def _endpoint(address: str, port: int) -> bytes:
    """The C `endpoint`. Raises ValueError for what is no address."""
    end = np.zeros(1, _ENDPOINT)[0]
    plain = ip_address(address.partition("%")[0])
    mapped = IPv6Address(f"::ffff:{plain}") if plain.version == 4 else plain
    end["address"], end["port"] = np.void(mapped.packed), port
    return bytes(end.tobytes())


class Note(NamedTuple):
    """How far the delivery of a tap has come, as packets but for `sent_bytes`."""

    tap: str
    confirmed: int = 0
    unconfirmed: int = 0
    sent_bytes: int = 0
    reconnects: int = 0


def _name(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="replace")


class Taps:
    """All taps of a host, which is a network namespace (None: the probe's own).

    `handle`: of classic filters, where the kernel has no TCX. `pins`: a directory for the counters and notes
    that are to be there after a `kill -9`.
    """

    def __init__(
        self,
        config: TapConfig,
        netns: Path | None = None,
        *,
        attach: Attach = "auto",
        handle: int = 1,
        pins: Path | None = None,
    ) -> None:
        self._config = config
        self.netns = netns
        self._attach_by = attach
        self._handle = handle
        self._pins = pins
        self._object = Object(TAP_OBJECT)
        self._rings: dict[int, Rings] = {}
        self._links: dict[tuple[str, int | str], list[int]] = {}
        self._readers: dict[int, Callable[[], None]] = {}
        self._wakes: RingBuffer | None = None
        self._tai_offset: int | None = None
        self._unsettled = False
        self._own: set[bytes] = set()
        self.tcx = True

    def __enter__(self) -> Self:
        try:
            self._load()
        except BaseException:
            self._object.close()
            raise
        return self

    def _load(self) -> None:
        config, size = self._config, self._config.ring_size
        known = cookie(self.netns) if features.cgroup_programs_see_netns_cookie() else 0
        inode = (self.netns or OWN).stat().st_ino
        holds = features.programs_hold_irqs()
        self._object.set_tunables(struct.pack("<QIIII", known, inode, size - 1, config.enterprise, holds))
        if self._pins:
            self._object.pin_maps(self._pins, PINNED)
        self._object.resize({"relay_ways": possible_cpus(), "relay_clones": possible_cpus() * _RELAY_CLONES})
        like = create(size, possible_cpus())
        try:
            self._object.set_inner("rings", like)
            self._object.load()
        finally:
            os.close(like)
        has_tcx = attach.has_tcx(self.program("tap_port_ingress"))
        if self._attach_by == "tcx" and not has_tcx:
            raise MissingFeature("attach = 'tcx': this kernel has no TCX (Linux 6.6)", "set attach = 'auto'")
        self.tcx = self._attach_by == "tcx" or (self._attach_by == "auto" and has_tcx)
        self._wakes = RingBuffer(self.map("tap_wakes"), self._wake)
        self.set_clock()

    def __exit__(self, *_: object) -> None:
        for kind, place in list(self._links):
            self._detach(kind, place)
        if self._wakes:
            self._wakes.close()
        self._object.close()
        if self._pins:
            unpin(self._pins)
        for rings in self._rings.values():
            rings.close()
        self._rings.clear()

    def program(self, name: str) -> int:
        return self._object.program(name)

    def map(self, name: str) -> Map:
        """`port_filters` and `cgroup_filters` are those that points ask."""
        return self._object.maps[name]

    def set_clock(self) -> None:
        """Take over how far TAI is ahead of UTC, which the host's time service sets; cheap if it did not."""
        ahead = time.clock_gettime_ns(time.CLOCK_TAI) - time.clock_gettime_ns(time.CLOCK_REALTIME)
        offset = round(ahead / _SECOND) * _SECOND
        if offset != self._tai_offset:
            self.map("tai_offset").update(bytes(4), offset.to_bytes(8, "little", signed=True))
            self._tai_offset = offset

    # -- destinations ----------------------------------------------------------------------------------------

    def open_destination(self, number: int, wake: Callable[[], None]) -> Rings:
        """Rings of its own; `wake` is called when its reader sleeps and there is something to read."""
        if number in self._rings or not 0 <= number < _SIZES["TAP_DESTINATIONS"]:
            raise RefusedError(f"destination {number}", f"at most {_SIZES['TAP_DESTINATIONS']} at a time")
        rings = Rings(self._config.ring_size)
        try:
            self._tell(number, rings)
        except BaseException:
            rings.close()
            raise
        self._rings[number], self._readers[number] = rings, wake
        return rings

    def _tell(self, number: int, rings: Rings) -> None:
        self.map("rings").update(number.to_bytes(4, "little"), rings.fd.to_bytes(4, "little"))

    def close_destination(self, number: int) -> None:
        """Give its memory back. What is still copied for it is lost as `no_buffer`."""
        # The kernel waits here until no program can be writing to them any more.
        self.map("rings").delete(number.to_bytes(4, "little"))
        self._readers.pop(number)
        self._rings.pop(number).close()

    @property
    def wake_fd(self) -> int:
        """Readable when `consume` has somebody to wake."""
        assert self._wakes
        return self._wakes.fd

    def consume(self) -> None:
        """Wake whoever has something to read."""
        assert self._wakes
        self._wakes.consume()

    def _wake(self, destination: bytes) -> None:
        reader = self._readers.get(int.from_bytes(destination, "little"))
        if reader:
            reader()

    # -- what is copied --------------------------------------------------------------------------------------

    def set_port(self, ifindex: int, point: Point) -> None:
        """Every packet of the port meets either what was said before or this."""
        self._set("port_points", ifindex.to_bytes(4, "little"), point.pack())

    def set_cgroup(self, cgroup: int, point: Point) -> None:
        """The same for the sockets of one cgroup, by its id; not of those below it."""
        self._set("cgroup_points", cgroup.to_bytes(8, "little"), point.pack())

    def remove_port(self, ifindex: int) -> None:
        self._set("port_points", ifindex.to_bytes(4, "little"), None)

    def remove_cgroup(self, cgroup: int) -> None:
        self._set("cgroup_points", cgroup.to_bytes(8, "little"), None)

    def _set(self, name: str, key: bytes, value: bytes | None) -> None:
        points = self.map(name)
        if value is None:
            self._unsettled |= points.delete(key)
            return
        # The element that was there goes to whoever is set next. A program may still be reading it, and would
        # copy for that one.
        self.settle()
        self._unsettled = points.lookup(key) is not None
        points.update(key, value)

    def settle(self, anyway: bool = False) -> None:
        """Wait until no program goes by what was said before: from here on nothing is written for it.

        `anyway`: other things were said than with `set_port` and its like.
        """
        for number, rings in list(self._rings.items()) if self._unsettled or anyway else ():
            # As the kernel waits where a map of maps changes.
            self._tell(number, rings)
            break
        self._unsettled = False

    def leave_out(self, endpoints: Iterable[Endpoint]) -> None:
        """Ends of TCP whose packets are not copied, in place of those before. KernelError: too many."""
        wanted = {_endpoint(*one) for one in endpoints}
        for end in self._own - wanted:
            self.map("own_endpoints").delete(end)
        for end in wanted - self._own:
            self.map("own_endpoints").update(end, bytes(4))
        self._own = wanted

    def count(self, stream: int) -> dict[str, int]:
        """The counters of a stream over all CPUs; `unreported` is a part of the losses."""
        value = self.map("tap_counts").lookup(stream.to_bytes(4, "little"))
        assert value is not None
        rows: Any = np.frombuffer(value, _COUNT)
        return {name: int(rows[name].sum()) for name in _COUNT.names or ()}

    def forget(self, stream: int, tap: str = "") -> None:
        """Count a stream from zero: it is this tap's from now on."""
        key, counts = stream.to_bytes(4, "little"), self.map("tap_counts")
        counts.update(key, bytes(counts.value_size * counts.cpus))
        self.map("tap_streams").update(key, tap.encode().ljust(_NAME_BYTES, b"\0")[:_NAME_BYTES])

    def note(self, destination: int, note: Note | None) -> None:
        """Write down how far a tap's delivery has come; None: it is over."""
        told = np.zeros(1, _DELIVERY)[0]
        if note:
            name = note.tap.encode().ljust(_NAME_BYTES, b"\0")[:_NAME_BYTES]
            told["tap"] = np.void(name)
            for field in Note._fields[1:]:
                told[field] = getattr(note, field)
        self.map("tap_deliveries").update(destination.to_bytes(4, "little"), bytes(told.tobytes()))

    def remains(self) -> list[tuple[Note, Counter[str]]]:
        """What is written down of each delivery, and what was counted for its tap."""
        names, counts = self.map("tap_streams"), dict[str, Counter[str]]()
        for stream in range(MOST_STREAMS):
            if tap := _name(names.lookup(stream.to_bytes(4, "little")) or b""):
                counts.setdefault(tap, Counter()).update(self.count(stream))
        found = []
        for number in range(_SIZES["TAP_DESTINATIONS"]):
            value = self.map("tap_deliveries").lookup(number.to_bytes(4, "little")) or b""
            told = np.frombuffer(value, _DELIVERY)[0]
            if tap := _name(bytes(told["tap"])):
                note = Note(tap, *(int(told[field]) for field in Note._fields[1:]))
                found.append((note, counts.pop(tap, Counter())))
        return found

    # -- hooks -----------------------------------------------------------------------------------------------

    def attach_port(self, ifindex: int) -> None:
        """Start copying at a port, in the scope's network namespace; call `set_port` first."""
        self._attach("port", ifindex, "tap_port_ingress", attach.TCX_INGRESS)
        self._attach("port", ifindex, "tap_port_egress", attach.TCX_EGRESS)

    def attach_relay(self, ifindex: int) -> None:
        """Copy what comes out of the relay there, and let it go no further."""
        self._attach("relay", ifindex, "tap_relay", attach.TCX_INGRESS)

    def _attach(self, kind: str, ifindex: int, name: str, point: int) -> None:
        links = self._links.setdefault((kind, ifindex), [])
        with inside(self.netns):
            if self.tcx:
                links.append(attach.link(self.program(name), ifindex, point))
            else:
                egress = point == attach.TCX_EGRESS
                attach.clsact_filter(self.program(name), ifindex, egress, self._handle)

    def attach_cgroup(self, path: Path) -> None:
        """Ask about every packet of the sockets at and below a cgroup."""
        directory = attach.open_cgroup(path)
        links = self._links.setdefault(("cgroup", str(path)), [])
        try:
            for kind, point in (("ingress", attach.CGROUP_INGRESS), ("egress", attach.CGROUP_EGRESS)):
                links.append(attach.link(self.program(f"tap_cgroup_{kind}"), directory, point))
        finally:
            os.close(directory)

    def detach_port(self, ifindex: int) -> None:
        """Stop copying at a port, there or gone."""
        self.remove_port(ifindex)
        self._detach("port", ifindex)

    def detach_relay(self, ifindex: int) -> None:
        self._detach("relay", ifindex)

    def detach_cgroup(self, path: Path) -> None:
        """There or gone."""
        self._detach("cgroup", str(path))

    def _detach(self, kind: str, place: int | str) -> None:
        for link in self._links.pop((kind, place), []):
            os.close(link)
        if isinstance(place, int) and not self.tcx:
            with inside(self.netns):
                attach.remove_clsact_filters(place, self._handle)


def remove_filters(netns: Path | None, handle: int) -> None:
    """Remove classic filters of this handle, wherever a probe that was killed has left them."""
    with inside(netns):
        for ifindex, _ in socket.if_nameindex():
            attach.remove_clsact_filters(ifindex, handle)


def unpin(pins: Path) -> None:
    """Let go of what is to outlive a killed probe alone."""
    for name in PINNED:
        (pins / name).unlink(missing_ok=True)
