"""Streams as nobody sound would send them: sound ones, changed at random places in ways that matter."""

import random
import struct

from tests.pcapng import block, header, interface, option, own, packet

_WORDS = (0, 1, 2, 3, 4, 5, 6, 8, 11, 12, 13, 28, 31, 32, 36, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF)
_KINDS = (1, 2, 3, 4, 5, 6, 10, 0x0BAD, 0x40000BAD, 0x0A0D0D0A, 0x1A2B3C4D, 0x4D3C2B1A)
_CODES = (0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 14, 2988, 2989, 19372, 19373, 65535)


def sound(chance: random.Random, key: str = "key") -> list[bytes]:
    """The blocks of a small stream in which all that may be is, now and then."""
    blocks = [header("h1", "web", key), interface("tap0", options=option(9, b"\x09"))]
    interfaces = 1
    for _ in range(chance.randrange(1, 8)):
        kind = chance.randrange(8)
        if kind == 0:
            blocks.append(interface("x" * chance.randrange(40), chance.choice((1, 101))))
            interfaces += 1
        elif kind == 1:
            blocks.append(block(chance.choice((4, 5, 10, 0x0BAD)), bytes(4 * chance.randrange(8))))
        else:
            options = option(2, bytes(4)) + option(4, bytes(8)) if chance.randrange(2) else b""
            options += own(0, enterprise=0) if chance.randrange(2) else b""
            data = chance.randbytes(chance.randrange(90))
            blocks.append(packet(data, chance.randrange(interfaces), chance.randrange(1 << 16), options))
    return blocks


def hostile(chance: random.Random, key: str = "key") -> bytes:
    """A stream with up to four changes: none now and then."""
    blocks = sound(chance, key)
    if not chance.randrange(4):
        blocks.insert(chance.randrange(len(blocks)), blocks.pop(chance.randrange(len(blocks))))
    stream = bytearray(b"".join(blocks))
    for _ in range(chance.randrange(4)):
        _change(chance, stream)
    return bytes(stream)


def _change(chance: random.Random, stream: bytearray) -> None:
    place = chance.randrange(max(1, len(stream) // 4)) * 4
    way = chance.randrange(7)
    if way == 0:
        word = chance.choice(_WORDS + _KINDS)
        stream[place : place + 4] = struct.pack("=I", word)
    elif way == 1:
        stream[place : place + 4] = struct.pack(
            "=HH", chance.choice(_CODES), chance.choice((0, 1, 4, 5, 8, 65535))
        )
    elif way == 2 and stream:
        at = chance.randrange(len(stream))
        stream[at] ^= 1 << chance.randrange(8)
    elif way == 3:
        del stream[chance.randrange(len(stream) + 1) :]
    elif way == 4:
        del stream[place : place + 4 * chance.randrange(1, 10)]
    elif way == 5:
        stream[place:place] = chance.randbytes(4 * chance.randrange(1, 10))
    else:
        stream[place:place] = stream[: 4 * chance.randrange(60)]
