"""The blocks of a pcapng stream that are not packets: section and interfaces (draft-ietf-opsawg-pcapng).

Packets are written by the kernel, see kernel/include/pcapng.h.
"""

import platform
import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from eastwest import __version__
from eastwest.inventory.model import readable

ETHERNET, RAW_IP = 1, 101  # LINKTYPE_*
LONGEST_TEXT = 1024
"""Of a name, in characters; names are made by anybody."""

_SECTION, _INTERFACE = 0x0A0D0D0A, 1
_END, _COMMENT = 0, 1
_CUSTOM_SECRET = 19372
"""opt_custom: text that whoever copies the block leaves out."""
_SECTION_OS, _SECTION_APPLICATION = 3, 4
_NAME, _DESCRIPTION, _RESOLUTION, _FILTER, _HARDWARE = 2, 3, 9, 11, 15
_NANOSECONDS = b"\x09"
_FILTER_TEXT = b"\0"
_LENGTH_UNKNOWN = -1


class Interface(NamedTuple):
    """Where packets were copied: a port (Ethernet), or a cgroup on the host's network (raw IP)."""

    name: str
    """The port's interface on the host, or the cgroup's name."""

    host: str
    workload: str
    tenant: str = ""
    network: str = ""
    label: int = 0
    link_type: int = ETHERNET
    hardware: str = ""
    """What kind of port it is."""

    filter: str = ""
    """The order's pcap-filter(7) text."""

    snaplen: int = 0
    """Bytes copied of a packet; 0: all."""


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)


def _text(code: int, value: str) -> bytes:
    return _option(code, readable(value)[:LONGEST_TEXT].encode()) if value else b""


def _block(kind: int, body: bytes, options: Sequence[bytes]) -> bytes:
    content = body + b"".join(options) + _option(_END, b"")
    length = struct.pack("=I", 12 + len(content))
    return struct.pack("=I", kind) + length + content + length


def section(host: str, tap: str = "", key: str = "", enterprise: int = 0) -> bytes:
    """A Section Header Block, in this host's byte order; host and tap are in its comment, as JSON.

    `key` goes into a custom option of `enterprise`, for whoever is to check it and hand it on to nobody.
    """
    body = struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, _LENGTH_UNKNOWN)
    comment = {"host": readable(host)[:LONGEST_TEXT]} | ({"tap": readable(tap)} if tap else {})
    secret = struct.pack("=I", enterprise) + key.encode()
    options = (
        _option(_COMMENT, msgspec.json.encode(comment)),
        _text(_SECTION_OS, f"{platform.system()} {platform.release()}"),
        _text(_SECTION_APPLICATION, f"eastwest {__version__}"),
        _option(_CUSTOM_SECRET, secret) if key else b"",
    )
    return _block(_SECTION, body, options)


def interface(of: Interface) -> bytes:
    """An Interface Description Block: who it is in words (if_description), and in its comment as JSON."""
    facts = {
        "host": of.host,
        "port": of.name,
        "workload": of.workload,
        "tenant": of.tenant,
        "network": of.network,
    }
    short = {key: readable(value)[:LONGEST_TEXT] for key, value in facts.items()}
    told = ", ".join(f"{key} {short[key]}" for key in ("tenant", "network", "host") if short[key])
    options = (
        _option(_COMMENT, msgspec.json.encode({**short, "label": of.label})),
        _text(_NAME, of.name),
        _text(_DESCRIPTION, f"{short['workload']} ({told})"),
        _option(_RESOLUTION, _NANOSECONDS),
        _option(_FILTER, _FILTER_TEXT + readable(of.filter)[:LONGEST_TEXT].encode()) if of.filter else b"",
        _text(_HARDWARE, of.hardware),
    )
    return _block(_INTERFACE, struct.pack("=HHI", of.link_type, 0, of.snaplen), options)
