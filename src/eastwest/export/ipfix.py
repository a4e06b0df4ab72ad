"""Flow records as IPFIX messages (RFC 7011), whole batches at a time: no statement runs once per record.

Packets and bytes are the stored rows' own. Times are milliseconds (IE 152, 153): the kernel's clock for flows
is coarser than that, and every collector reads them. The Observation Point is the workload: egress (IE 61) is
what it sent. An Observation Domain is a host; its name goes with IE 300, and what the enterprise's elements
are with the options of RFC 5610.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]

VERSION = 10
_HEADER = struct.Struct(">HHIII")
_SET = struct.Struct(">HH")
_TEMPLATE_SET, _OPTIONS_SET = 2, 3
_DOMAIN_OPTIONS, _TYPE_OPTIONS = 512, 513
_VARIABLE = 65535
_ENTERPRISE_BIT = 0x8000
_MAPPED = 0xFFFF
"""What stands before an IPv4 address in IPv6 (RFC 4291, 2.5.5.2)."""

ICMP, ICMPV6 = 1, 58
_HIGHEST_PROTOCOL = 255
"""Above it, a row's protocol is an EtherType."""


@dataclass(frozen=True)
class Element:
    """An information element: its number, its form in a record, and what it is of flow rows and service IDs.

    `name` is set for those of the enterprise, whose numbers are its own."""

    number: int
    form: Any
    take: Callable[[Rows, Rows], Rows]
    name: str = ""
    meaning: int = 0
    """informationElementSemantics: 5 identifier, 0 default."""


def _column(name: str) -> Callable[[Rows, Rows], Rows]:
    return lambda rows, _: rows[name]


def _milliseconds(name: str) -> Callable[[Rows, Rows], Rows]:
    return lambda rows, _: rows[name] // 1_000_000


def _tail(name: str, size: int) -> Callable[[Rows, Rows], Rows]:
    """The last bytes of an address: IPv4 and MAC addresses stand at the end of sixteen."""
    return lambda rows, _: np.ascontiguousarray(rows[name]).view("u1").reshape(-1, 16)[:, 16 - size :]


_ENDS4 = (Element(8, ("u1", (4,)), _tail("src", 4)), Element(12, ("u1", (4,)), _tail("dst", 4)))
_ENDS6 = (Element(27, "V16", _column("src")), Element(28, "V16", _column("dst")))
_PROTOCOL = Element(4, "u1", _column("protocol"))
_TRANSPORT = (
    Element(7, ">u2", _column("src_port")),
    Element(11, ">u2", _column("dst_port")),
    _PROTOCOL,
    Element(6, ">u2", _column("tcp_flags")),
)
_FRAME = (
    Element(56, ("u1", (6,)), _tail("src", 6)),
    Element(80, ("u1", (6,)), _tail("dst", 6)),
    Element(256, ">u2", _column("protocol")),
)
_EVERY = (
    Element(2, ">u8", _column("packets")),
    Element(1, ">u8", _column("bytes")),
    Element(152, ">u8", _milliseconds("start")),
    Element(153, ">u8", _milliseconds("end")),
    Element(61, "u1", _column("direction")),
    Element(82, "S16", _column("port")),
    Element(1, ">u4", _column("label"), "eastwestLabel", 5),
    Element(2, ">u4", lambda _, service_ids: service_ids, "eastwestServiceId", 5),
    Element(3, "u1", _column("class"), "eastwestClass", 5),
)
TEMPLATES: dict[int, tuple[Element, ...]] = {
    256: (*_ENDS4, *_TRANSPORT, *_EVERY),
    257: (*_ENDS6, *_TRANSPORT, *_EVERY),
    258: (*_ENDS4, _PROTOCOL, Element(32, ">u2", _column("dst_port")), *_EVERY),
    259: (*_ENDS6, _PROTOCOL, Element(139, ">u2", _column("dst_port")), *_EVERY),
    260: (*_FRAME, *_EVERY),
}
"""Template ID → elements: IPv4, IPv6, ICMP over either, and frames that are not IP."""


@cache
def record(template: int) -> np.dtype[Any]:
    """A record of a template, packed and big-endian."""
    return np.dtype([(str(place), e.form) for place, e in enumerate(TEMPLATES[template])])


def records(rows: Rows, service_ids: Rows) -> list[tuple[int, Rows]]:
    """The data records of flow rows (FLOW_ROW), each with its service ID, by template."""
    is_ip = rows["protocol"] <= _HIGHEST_PROTOCOL
    is_v4 = _mapped(rows["src"]) & _mapped(rows["dst"])
    kinds = np.where(is_v4, 256, 257)
    kinds[is_v4 & (rows["protocol"] == ICMP)] = 258
    kinds[~is_v4 & (rows["protocol"] == ICMPV6)] = 259
    kinds[~is_ip] = 260
    found = [(template, kinds == template) for template in TEMPLATES]
    return [(t, _encode(t, rows[which], service_ids[which])) for t, which in found if which.any()]


def _mapped(addresses: Rows) -> Rows:
    halves = np.ascontiguousarray(addresses).view(">u8").reshape(-1, 2)
    mapped: Rows = (halves[:, 0] == 0) & (halves[:, 1] >> np.uint64(32) == _MAPPED)
    return mapped


def _encode(template: int, rows: Rows, service_ids: Rows) -> Rows:
    encoded = np.empty(len(rows), record(template))
    for place, element in enumerate(TEMPLATES[template]):
        encoded[str(place)] = element.take(rows, service_ids)
    return encoded


@dataclass(frozen=True)
class Messages:
    """Messages of one size, back to back: `each` records in each of them."""

    data: memoryview
    size: int
    each: int


def messages(
    template: int, found: Rows, *, domain: int, sequence: int, time: int, limit: int
) -> Iterable[Messages]:
    """Data records in messages of at most `limit` bytes. `sequence`: data records sent before in this
    domain and session; `time`: unix seconds."""
    room = (limit - _HEADER.size - _SET.size) // found.itemsize
    whole = len(found) // room * room
    for part in (found[:whole].reshape(-1, room), found[whole:].reshape(1, -1)):
        count, each = part.shape
        if count and each:
            yield _messages(template, part, domain=domain, sequence=sequence, time=time)
            sequence += count * each


def _messages(template: int, part: Rows, *, domain: int, sequence: int, time: int) -> Messages:
    count, each = part.shape
    header = [("version", ">u2"), ("length", ">u2"), ("time", ">u4"), ("sequence", ">u4"), ("domain", ">u4")]
    form = np.dtype([*header, ("set", ">u2"), ("set_length", ">u2"), ("records", part.dtype, (each,))])
    made = np.empty(count, form)
    made["version"], made["length"], made["time"] = VERSION, form.itemsize, time & 0xFFFFFFFF
    made["sequence"] = (sequence + each * np.arange(count, dtype=np.uint64)) & np.uint64(0xFFFFFFFF)
    made["domain"], made["set"], made["set_length"] = domain, template, form.itemsize - _HEADER.size
    made["records"] = part
    return Messages(memoryview(made.tobytes()), form.itemsize, each)


def description(host: str, enterprise: int, *, domain: int, sequence: int, time: int) -> tuple[bytes, int]:
    """The message that a domain begins with: templates, the host's name, the enterprise's elements; and the
    number of (options) data records in it."""
    own = [element for element in _EVERY if element.name]
    types = b"".join(
        struct.pack(">IHBBH", enterprise, e.number, {">u4": 3, "u1": 1}[e.form], e.meaning, 0)
        + _text(e.name.encode())
        for e in own
    )
    body = (
        _set(_TEMPLATE_SET, b"".join(_template(t, enterprise) for t in TEMPLATES))
        # A set each: nfacctd 1.7.7 takes a second one in the same set for malformed.
        + _set(_OPTIONS_SET, struct.pack(">HHHHHHH", _DOMAIN_OPTIONS, 2, 1, 149, 4, 300, _VARIABLE))
        + _set(
            _OPTIONS_SET,
            struct.pack(">HHH", _TYPE_OPTIONS, 6, 2)
            + struct.pack(">HHHHHHHHHHHH", 346, 4, 303, 2, 339, 1, 344, 1, 345, 2, 341, _VARIABLE),
        )
        + _set(_DOMAIN_OPTIONS, struct.pack(">I", domain) + _text(host.encode()))
        + _set(_TYPE_OPTIONS, types)
    )
    size = _HEADER.size + len(body)
    header = _HEADER.pack(VERSION, size, time & 0xFFFFFFFF, sequence & 0xFFFFFFFF, domain)
    return header + body, 1 + len(own)


def _template(template: int, enterprise: int) -> bytes:
    elements = TEMPLATES[template]
    told = b"".join(
        struct.pack(">HHI", e.number | _ENTERPRISE_BIT, np.dtype(e.form).itemsize, enterprise)
        if e.name
        else struct.pack(">HH", e.number, np.dtype(e.form).itemsize)
        for e in elements
    )
    return struct.pack(">HH", template, len(elements)) + told


def _set(number: int, body: bytes) -> bytes:
    return _SET.pack(number, _SET.size + len(body)) + body


def _text(text: bytes) -> bytes:
    """A string of variable length (RFC 7011, 7); host names are below 255 bytes."""
    return bytes([len(text)]) + text
