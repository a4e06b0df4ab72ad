"""The walk over pcapng blocks: what it counts, where it stops, what it refuses."""

import struct
from array import array

import pytest

from eastwest.kernel.blocks import (
    ALL,
    LONGEST_PACKET,
    LONGEST_WORDS,
    Chooser,
    Malformed,
    Stop,
    Walker,
    renumber,
)
from tests.kernel import blocks as independent
from tests.pcapng import block, interface, option, own, packet, section


def walker(*words: bytes) -> Walker:
    """One that has met these blocks."""
    made = Walker()
    made.pass_over(b"".join(words), 0, sum(map(len, words)))
    return made


READY = (section(), interface(), interface())


def refusal(stream: bytes) -> str:
    """Why the last block of a stream is refused, behind others that are not."""
    made = Walker()
    found = made.pass_over(stream, 0, len(stream))
    assert found.stop is Stop.BROKEN
    with pytest.raises(Malformed) as refused:
        made.walk(stream, found.end, len(stream))
    return refused.value.reason


def test_packets_are_counted_as_they_were_on_the_wire() -> None:
    """Bytes are the original lengths, not what was copied."""
    stream = b"".join([*READY, packet(bytes(60)), packet(bytes(9), original=1500, interface=1)])
    found = Walker().pass_over(stream, 0, len(stream))
    assert found == (len(stream), 2, 1560, Stop.INCOMPLETE, 0)


def test_it_stops_at_every_block_that_is_no_packet() -> None:
    """And says how long that one is; numbers of interfaces begin anew with a section."""
    note = block(0x0BAD, b"\0\0\0\1note")
    stream = b"".join([section(), interface(), packet(b"x"), note, section()])
    made, at, stops = Walker(), 0, []
    while at < len(stream):
        found = made.walk(stream, at, len(stream))
        stops.append((found.stop, found.packets, made.interfaces))
        at = found.end + found.length
    assert stops == [
        (Stop.SECTION, 0, 0),
        (Stop.INTERFACE, 0, 1),
        (Stop.OTHER, 1, 1),
        (Stop.SECTION, 0, 0),
    ]


@pytest.mark.parametrize("cut", range(1, 60))
def test_what_is_not_whole_waits(cut: int) -> None:
    """Whatever is missing of the last block: the walk ends at its start, and goes on there with more."""
    whole = packet(b"first")
    stream = whole + packet(bytes(27))[:cut]
    made = walker(*READY)
    assert made.walk(stream, 0, len(stream)) == (len(whole), 1, 5, Stop.INCOMPLETE, pytest.approx(0, abs=99))
    stream = whole + packet(bytes(27))
    assert made.walk(stream, len(whole), len(stream))[:4] == (len(stream), 1, 27, Stop.INCOMPLETE)


def test_enough() -> None:
    """Just as many packets as asked for, also across other blocks."""
    stream = b"".join([*READY, packet(b"1"), section(), interface(), packet(b"2"), packet(b"3")])
    made = Walker()
    found = made.pass_over(stream, 0, len(stream), most=2)
    assert (found.packets, found.stop, found.end) == (2, Stop.ENOUGH, len(stream) - len(packet(b"3")))
    assert made.pass_over(stream, found.end, len(stream), most=0).stop is Stop.ENOUGH
    assert made.pass_over(stream, found.end, len(stream), most=ALL).packets == 1


BAD = {
    "a block of an impossible length": [
        struct.pack("=III", 6, 28, 0),
        struct.pack("=III", 6, 0, 0),
        struct.pack("=III", 6, 34, 0),
        struct.pack("=III", 6, LONGEST_PACKET + 4, 0),
        struct.pack("=III", 0x0BAD, LONGEST_WORDS + 4, 0),
        struct.pack("=III", 1, 16, 0),
        struct.pack("=III", 0x0A0D0D0A, 24, 0x1A2B3C4D),
    ],
    "a block whose two lengths differ": [
        packet(b"x")[:-4] + struct.pack("=I", 32),
        block(5, b"")[:-1] + b"\1",
    ],
    "a packet that is longer than its block": [
        block(6, struct.pack("=5I", 0, 0, 0, 5, 5) + b"1234"),
        block(6, struct.pack("=5I", 0, 0, 0, 0xFFFFFFFF, 5) + b"1234"),
    ],
    "a packet of an interface that it does not tell of": [packet(b"x", interface=2)],
    "a packet with broken options": [
        packet(b"x", options=option(2, b"\0\0\0\0\0\0\0\0")),
        packet(b"x", options=option(4, b"\0\0\0\0")),
        packet(b"x", options=struct.pack("=HH", 1, 9) + b"1234"),
        packet(b"x", options=struct.pack("=HH", 1, 0xFFFF) + b"1234"),
        packet(b"x", options=struct.pack("=HH", 0, 4) + b"1234"),
        packet(b"x", options=option(2989, b"\0\0")),
    ],
    "a packet without interface or time": [block(3, struct.pack("=I", 4) + b"1234"), block(2, bytes(24))],
    "a version that is not 1": [
        section(magic=0x1A2B3C4E),
        block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 2, 0, -1)),
    ],
    "the other byte order than this host's": [section(magic=0x4D3C2B1A)],
}


@pytest.mark.parametrize(("reason", "bad"), [(reason, bad) for reason in BAD for bad in BAD[reason]])
def test_refused(reason: str, bad: bytes) -> None:
    """Each broken block by name, with the packets before it kept."""
    assert refusal(b"".join([*READY, packet(b"good"), bad, packet(b"x")])) == reason


@pytest.mark.parametrize("first", [packet(b"x"), interface(), block(5, b""), b"GET / HTTP/1.1\r\n\r\n"])
def test_a_stream_begins_with_a_section(first: bytes) -> None:
    """Nothing else is looked at before."""
    with pytest.raises(Malformed, match="the stream has no section header; see who sends it"):
        Walker().walk(first, 0, len(first))


def test_places_outside_the_buffer_are_an_error() -> None:
    """C is never told of memory that is not there."""
    for start, end in ((0, 13), (-1, 12), (8, 4)):
        with pytest.raises(ValueError, match="is not within 12 bytes"):
            Walker().walk(bytes(12), start, end)


def test_packets_of_a_service() -> None:
    """Whole and in their order; not those of another service or enterprise, nor such as say none."""
    ours = [packet(bytes([n]) * n, options=own(7, label=n)) for n in range(5)]
    others = [
        packet(b"8", options=own(8)),
        packet(b"foreign", options=own(7, enterprise=1)),
        packet(b"bare"),
        packet(b"short", options=option(2989, struct.pack("=II", 32473, 7))),
        packet(b"format", options=option(2989, struct.pack("=3I4H", 32473, 1, 7, 0, 0, 0, 2))),
    ]
    mixed = [block for pair in zip(ours, others, strict=True) for block in pair]
    stream = b"".join([*READY, *mixed])
    start = sum(map(len, READY))
    assert Chooser(7).choose(stream, start, len(stream), 32473, 2) == (b"".join(ours), 5, [0])
    assert Chooser(9).choose(stream, start, len(stream), 32473, 2) == (b"", 0, [])
    assert Chooser(7).choose(stream, start, start, 32473, 2) == (b"", 0, [])


def test_interfaces_of_a_service_are_numbered_as_they_come() -> None:
    """From piece to piece the same; those that only others came through have no number."""
    chooser, told = Chooser(7), []
    for interfaces, came in ((4, (3, 1, 3)), (4, (1, 0)), (6, (5, 3))):
        ours = [packet(b"%d" % n, interface=n, options=own(7)) for n in came]
        others = [packet(b"8", interface=2, options=own(8))] * len(ours)
        piece = b"".join(block for pair in zip(others, ours, strict=True) for block in pair)
        chosen, packets, new = chooser.choose(piece, 0, len(piece), 32473, interfaces)
        told += new
        (parsed,) = independent.parse(b"".join([section(option(1, b"-")), *[interface("a")] * 6, chosen]))
        assert [told[p.interface] for p in parsed.packets] == list(came)
        assert [p.data for p in parsed.packets] == [b"%d" % n for n in came]
        assert packets == len(came)
    assert told == [3, 1, 0, 5]


def test_renumber() -> None:
    """Packets get other interface numbers and stay the same in all else."""
    packets = [packet(bytes([n]) * n, interface=n % 2, options=option(1, b"note")) for n in range(9)]
    stream = bytearray(b"".join([*READY, *packets]))
    start = sum(map(len, READY))
    renumber(stream, start, len(stream), array("I", [7, 1]))
    (parsed,) = independent.parse(b"".join([section(option(1, b"-")), *[interface("a")] * 8, stream[start:]]))
    assert [p.interface for p in parsed.packets] == [7, 1] * 4 + [7]
    assert [p.data for p in parsed.packets] == [bytes([n]) * n for n in range(9)]
    assert all(p.options == {1: b"note"} for p in parsed.packets)
