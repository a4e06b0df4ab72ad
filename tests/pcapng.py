"""Blocks of pcapng as a sender writes them, sound or not: made from the draft's text, for tests only."""

import json
import struct


def option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)


END = option(0, b"")


def block(kind: int, body: bytes) -> bytes:
    length = struct.pack("=I", 12 + len(body))
    return struct.pack("=I", kind) + length + body + length


def section(options: bytes = b"", magic: int = 0x1A2B3C4D) -> bytes:
    return block(0x0A0D0D0A, struct.pack("=IHHq", magic, 1, 0, -1) + (options + END if options else b""))


def interface(name: str = "", link_type: int = 1, options: bytes = b"") -> bytes:
    options += option(2, name.encode()) if name else b""
    return block(1, struct.pack("=HHI", link_type, 0, 0) + (options + END if options else b""))


def packet(
    data: bytes, interface: int = 0, original: int | None = None, options: bytes = b"", time: int = 0
) -> bytes:
    """An Enhanced Packet Block; `time`: in units of the interface's resolution."""
    head = struct.pack(
        "=5I",
        interface,
        time >> 32,
        time & 0xFFFFFFFF,
        len(data),
        len(data) if original is None else original,
    )
    return block(6, head + data + bytes(-len(data) % 4) + (options + END if options else b""))


def own(service: int, label: int = 1, enterprise: int = 32473) -> bytes:
    """The option that a tap's packets have."""
    return option(2989, struct.pack("=3I4H", enterprise, label, service, 0, 0, 0, 1))


def header(host: str, tap: str, key: str | None = None, enterprise: int = 32473) -> bytes:
    """The section header with which a probe begins a stream to a collector."""
    told = option(1, json.dumps({"host": host, "tap": tap}).encode())
    if key is not None:
        told += option(19372, struct.pack("=I", enterprise) + key.encode())
    return section(told)
