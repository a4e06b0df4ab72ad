"""The blocks of a stream that are not packets: read with distrust, and written anew with what is understood.

What comes from a probe goes into files and to readers. So only options that have a meaning there are kept,
each with the one length that it may have; a key, and whatever else is not to be copied, ends here.
"""

import struct
import sys
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from eastwest import __version__
from eastwest.kernel.blocks import LONGEST_WORDS, Buffer, Malformed

MOST_INTERFACES = 4096
"""Of one section."""
INTERFACES_BYTES = 4 << 20
"""Of all their blocks."""
LONGEST_SECTION = 1 << 13
"""Bytes of the first block, which is read before it is known who sends."""

_SECTION, _INTERFACE = 0x0A0D0D0A, 1
_COMMENT, _NAME, _FILTER, _RESOLUTION, _OFFSET, _SECRET = 1, 2, 11, 9, 14, 19372
_APPLICATION = 4
_SECTION_TEXTS = frozenset({_COMMENT, 2, 3, _APPLICATION})  # hardware, operating system
_INTERFACE_TEXTS = frozenset({_COMMENT, _NAME, 3, 12, 15})  # description, operating system, hardware
_INTERFACE_LENGTHS = {6: 6, 8: 8, _RESOLUTION: 1, _OFFSET: 8}  # MAC, speed
_LINK_TYPES = frozenset({1, 101})
_FINEST = 9
_TEXT_CHARACTERS = 12_000


class Header(msgspec.Struct, frozen=True):
    """With what a stream begins."""

    host: str
    tap: str
    key: bytes
    enterprise: int
    """The number under which its packets have an option of our own."""
    section: bytes
    """The block to be written in its stead, without the key."""


class _Told(msgspec.Struct):
    host: str
    tap: str


def header(block: Buffer) -> Header:
    """Read a whole Section Header Block that a walk has passed. Raises Malformed."""
    found = dict(_options(block, 24))
    try:
        told = msgspec.json.decode(found.get(_COMMENT, b""), type=_Told)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed("a section header that does not say host and tap") from None
    if not told.host or len(told.host) > 255 or not told.host.isprintable():
        raise Malformed("a host whose name is empty, too long or not printable")
    texts = {code: found[code] for code in sorted(_SECTION_TEXTS & set(found))}
    secret = found.get(_SECRET, b"").ljust(4, b"\0")
    return Header(told.host, told.tap, secret[4:], int.from_bytes(secret[:4], sys.byteorder), _section(texts))


def section(comment: Mapping[str, object]) -> bytes:
    """A Section Header Block of the collector's own."""
    texts = {_COMMENT: msgspec.json.encode(comment), _APPLICATION: f"eastwest {__version__}".encode()}
    return _section(texts)


def interface(block: Buffer) -> bytes:
    """A whole Interface Description Block with the options that are understood. Raises Malformed."""
    link_type, _, snaplen = struct.unpack_from("=HHI", block, 8)
    if link_type not in _LINK_TYPES:
        raise Malformed(f"an interface of link type {link_type}")
    options = []
    for code, value in sorted(dict(_options(block, 16)).items()):
        if code in _INTERFACE_TEXTS:
            options.append((code, _clean(value)))
        elif code == _FILTER and value[:1] == b"\0":
            options.append((code, b"\0" + _clean(value[1:])))
        elif code in _INTERFACE_LENGTHS:
            if len(value) != _INTERFACE_LENGTHS[code] or (code == _RESOLUTION and value[0] > _FINEST):
                raise Malformed("an interface with broken options")
            options.append((code, value))
    made = _block(_INTERFACE, struct.pack("=HHI", link_type, 0, snaplen), options)
    if len(made) > LONGEST_WORDS:  # what is no text became longer
        raise Malformed("an interface that says too much")
    return made


def _options(block: Buffer, start: int) -> Iterator[tuple[int, bytes]]:
    """Code and value of each option of a block; they begin at `start`. Raises Malformed."""
    end = len(block) - 4
    while start < end:
        code, length = struct.unpack_from("=HH", block, start)
        if code == 0:
            return
        start += 4
        if start + length > end:
            raise Malformed("a block with broken options")
        yield code, bytes(block[start : start + length])
        start += (length + 3) & ~3


def _clean(text: bytes) -> bytes:
    """UTF-8 without anything that a terminal would obey."""
    said = text.decode(errors="replace")[:_TEXT_CHARACTERS]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in said).encode()


def _section(texts: Mapping[int, bytes]) -> bytes:
    body = struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1)
    return _block(_SECTION, body, [(code, _clean(text)) for code, text in texts.items()])


def _block(kind: int, body: bytes, options: Sequence[tuple[int, bytes]]) -> bytes:
    written = [
        struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4) for code, value in options
    ]
    content = body + b"".join(written) + bytes(4)
    length = struct.pack("=I", 12 + len(content))
    return struct.pack("=I", kind) + length + content + length
