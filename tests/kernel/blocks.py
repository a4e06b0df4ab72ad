"""A reader of pcapng that shares nothing with what writes it: from the draft's text, for tests only."""

import struct
from dataclasses import dataclass, field


@dataclass
class Interface:
    link_type: int
    snaplen: int
    options: dict[int, bytes]

    @property
    def name(self) -> str:
        return self.options[2].decode()


@dataclass
class Packet:
    """One Enhanced Packet Block; `custom`: label, service, flags, gso_size, gso_segs, format."""

    interface: int
    time: int
    captured: int
    original: int
    data: bytes
    options: dict[int, bytes]

    @property
    def flags(self) -> int:
        (flags,) = struct.unpack("=I", self.options[2])
        return int(flags)

    @property
    def dropped(self) -> int:
        (dropped,) = struct.unpack("=Q", self.options[4])
        return int(dropped)

    @property
    def enterprise(self) -> int:
        (number,) = struct.unpack("=I", self.options[2989][:4])
        return int(number)

    @property
    def custom(self) -> tuple[int, ...]:
        return struct.unpack("=IIHHHH", self.options[2989][4:])


@dataclass
class Section:
    options: dict[int, bytes]
    interfaces: list[Interface] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        code, length = struct.unpack_from("=HH", data, at)
        if code == 0:
            assert (length, at + 4) == (0, len(data)), "the end of options is not the end"
            return found
        assert code not in found
        found[code] = data[at + 4 : at + 4 + length]
        assert len(found[code]) == length
        assert not any(data[at + 4 + length : at + 4 + (length + 3 & ~3)]), "padding is not zero"
        at += 4 + (length + 3 & ~3)
    assert not data, "options without an end"
    return found


def _packet(body: bytes) -> Packet:
    interface, high, low, captured, original = struct.unpack_from("=IIIII", body)
    padded = captured + 3 & ~3
    assert not any(body[20 + captured : 20 + padded]), "padding is not zero"
    return Packet(
        interface,
        high << 32 | low,
        captured,
        original,
        body[20 : 20 + captured],
        _options(body[20 + padded :]),
    )


def parse(stream: bytes, whole: bool = True) -> list[Section]:
    """The sections of a stream; unless `whole`, its last block may be cut."""
    sections: list[Section] = []
    at = 0
    while at < len(stream):
        if not whole and len(stream) - at < 8:
            break
        kind, length = struct.unpack_from("=II", stream, at)
        assert length % 4 == 0
        assert length >= 12
        if not whole and at + length > len(stream):
            break
        assert stream[at + length - 4 : at + length] == struct.pack("=I", length), "lengths differ"
        body = stream[at + 8 : at + length - 4]
        if kind == 0x0A0D0D0A:
            assert struct.unpack_from("=IHHq", body) == (0x1A2B3C4D, 1, 0, -1)
            sections.append(Section(_options(body[16:])))
        elif kind == 1:
            link_type, reserved, snaplen = struct.unpack_from("=HHI", body)
            assert reserved == 0
            sections[-1].interfaces.append(Interface(link_type, snaplen, _options(body[8:])))
        else:
            assert kind == 6, f"block type {kind}"
            packet = _packet(body)
            assert packet.interface < len(sections[-1].interfaces), "not told of this interface"
            sections[-1].packets.append(packet)
        at += length
    return sections
