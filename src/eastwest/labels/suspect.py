"""What can be declared suspect: prefixes of addresses, and single flows. How a person writes them, and their
keys in the kernel's maps (`suspect_prefix` and `suspect_flow` of records.h)."""

import socket
import struct
from hashlib import sha256
from typing import Literal, NamedTuple

from eastwest.errors import RefusedError

_MAPPED = bytes(10) + b"\xff\xff"
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_FLOW = struct.Struct("=16s16s2s2sHxx")
_PREFIX = struct.Struct("=I16s")
_LONGEST = 200
"""No declaration is longer; more is not even repeated in an error."""

_HOW = (
    "write a prefix like 10.0.0.0/8, fd00::/8 or 10.0.0.1, "
    "or a flow like tcp 10.0.0.1:1234 10.0.0.2:80 or udp [fd00::1]:53 [fd00::2]:4000"
)


class Target(NamedTuple):
    """`text` is the one way in which it is written; a flow has a key for each direction."""

    kind: Literal["prefix", "flow"]
    text: str
    keys: tuple[bytes, ...]

    @property
    def name(self) -> str:
        """A name for buckets, whose keys hold few characters."""
        return sha256(self.text.encode()).hexdigest()[:32]


def parse(text: str) -> Target:
    """Read a prefix or a flow. Raises RefusedError with what is wrong."""
    words = text.split()
    if len(text) > _LONGEST or len(words) not in (1, 3):
        raise RefusedError(f"'{text[:_LONGEST]}' is neither a prefix nor a flow", _HOW)
    if len(words) == 1:
        key = prefix_key(words[0])
        return Target("prefix", prefix_text(key), (key,))
    key = _flow_key(*words)
    return Target("flow", flow_text(key), tuple(sorted((key, _reverse(key)))))


def named(name: str, text: str) -> Target:
    """What a bucket has under `name`. Raises RefusedError where it is no target, or another's."""
    target = parse(text)
    if target.name != name:
        raise RefusedError(f"'{text}' has another's name", "declare it with: eastwest suspect add")
    return target


def prefix_key(text: str) -> bytes:
    """The key of a prefix; bits of the host part are left out. Raises RefusedError."""
    address, slash, bits = text.partition("/")
    raw = _address(address)
    full = 32 if raw.startswith(_MAPPED) and ":" not in address else 128
    if slash and not (bits.isascii() and bits.isdecimal() and len(bits) <= 3 and int(bits) <= full):
        raise RefusedError(f"'{text}': a prefix of {full}-bit addresses has 0 to {full} bits", _HOW)
    length = 128 - full + (int(bits) if slash else full)
    rest = 128 - length
    return _PREFIX.pack(length, (int.from_bytes(raw) >> rest << rest).to_bytes(16))


def prefix_text(key: bytes) -> str:
    """How a prefix is written."""
    length, address = _PREFIX.unpack(key)
    if length >= 96 and address.startswith(_MAPPED):
        return f"{_address_text(address)}/{length - 96}"
    return f"{socket.inet_ntop(socket.AF_INET6, address)}/{length}"


def matched_prefix(address: bytes, length: int) -> str:
    """How the prefix of so many bits is written that holds an address; both mapped."""
    rest = 128 - length
    return prefix_text(_PREFIX.pack(length, (int.from_bytes(address) >> rest << rest).to_bytes(16)))


def flow_text(key: bytes) -> str:
    """How a flow is written: the same for either direction."""
    key = min(key, _reverse(key))
    src, dst, src_port, dst_port, protocol = _FLOW.unpack(key)
    return f"{_NAMES.get(protocol, protocol)} {_endpoint(src, src_port)} {_endpoint(dst, dst_port)}"


def flow_key(src: bytes, dst: bytes, src_port: int, dst_port: int, protocol: int) -> bytes:
    """The key of one direction of a flow; addresses mapped."""
    return _FLOW.pack(src, dst, src_port.to_bytes(2), dst_port.to_bytes(2), protocol)


def _address(text: str) -> bytes:
    try:
        if ":" in text:
            return socket.inet_pton(socket.AF_INET6, text)
        return _MAPPED + socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        raise RefusedError(f"'{text}' is no IP address", _HOW) from None


def _address_text(address: bytes) -> str:
    if address.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


def _endpoint(address: bytes, port: bytes) -> str:
    text = _address_text(address)
    return f"[{text}]:{int.from_bytes(port)}" if ":" in text else f"{text}:{int.from_bytes(port)}"


def _flow_key(protocol: str, src: str, dst: str) -> bytes:
    number = _PROTOCOLS.get(protocol.lower())
    if number is None:
        raise RefusedError(f"'{protocol}' has no flows with ports", f"choose {', '.join(_PROTOCOLS)}; {_HOW}")
    (a, a_port), (b, b_port) = _parse_endpoint(src), _parse_endpoint(dst)
    if a.startswith(_MAPPED) != b.startswith(_MAPPED):
        raise RefusedError(f"'{src}' and '{dst}' are of different address families", _HOW)
    return flow_key(a, b, a_port, b_port, number)


def _parse_endpoint(text: str) -> tuple[bytes, int]:
    address, colon, port = text.rpartition(":")
    if address.startswith("[") and address.endswith("]") and ":" in address:
        address = address[1:-1]
    elif ":" in address:
        colon = ""  # IPv6 without brackets: nobody can tell where it ends
    if not colon or not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 1 << 16):
        raise RefusedError(f"'{text}' is no address with a port", _HOW)
    return _address(address), int(port)


def _reverse(key: bytes) -> bytes:
    src, dst, src_port, dst_port, protocol = _FLOW.unpack(key)
    return _FLOW.pack(dst, src, dst_port, src_port, protocol)
