"""Frames of every kind, built by hand, each with what the meter must say of it."""

import struct
from ipaddress import ip_address

SRC_MAC, DST_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def ethernet(payload: bytes, ethertype: int, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    """A frame with its tags: (tag protocol, VLAN id), outermost first."""
    chain = b"".join(struct.pack("!HH", protocol, vlan) for protocol, vlan in tags)
    return DST_MAC + SRC_MAC + chain + struct.pack("!H", ethertype) + payload


def ipv4(
    payload: bytes, protocol: int, options: bytes = b"", fragment: int = 0, total: int | None = None
) -> bytes:
    """From 10.0.0.1 to 10.0.0.2; `fragment`: flags and offset in 8 bytes; `total`: a length to claim."""
    length = 20 + len(options) + len(payload) if total is None else total
    first = 0x40 | (20 + len(options)) // 4
    header = struct.pack("!BBHHHBBH", first, 0, length, 1, fragment, 64, protocol, 0)
    return header + ip_address("10.0.0.1").packed + ip_address("10.0.0.2").packed + options + payload


def ipv6(payload: bytes, protocol: int, total: int | None = None) -> bytes:
    """From fd00::1 to fd00::2."""
    header = struct.pack("!IHBB", 6 << 28, len(payload) if total is None else total, protocol, 64)
    return header + ip_address("fd00::1").packed + ip_address("fd00::2").packed + payload


def udp(payload: bytes = b"", src: int = 1000, dst: int = 2000) -> bytes:
    return struct.pack("!HHHH", src, dst, 8 + len(payload), 0) + payload


def tcp(payload: bytes = b"", flags: int = 0x18, src: int = 1000, dst: int = 2000) -> bytes:
    return struct.pack("!HHIIBBHHH", src, dst, 0, 0, 5 << 4 | flags >> 8, flags & 0xFF, 0, 0, 0) + payload


def extension(following: int, length: int = 0, body: bytes = bytes(6)) -> bytes:
    """An IPv6 extension header of (length + 1) * 8 bytes."""
    return bytes((following, length)) + body.ljust(length * 8 + 6, b"\0")
