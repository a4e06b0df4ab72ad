"""Byte patterns in the kernel: found where they are, nowhere else, beside a filter or alone."""

import random
import struct

import msgspec
import pytest

from eastwest.errors import ConfigError, RefusedError
from eastwest.tap.filter import Filter, Wanted, compiled
from eastwest.tap.payload import Payload
from eastwest.tap.reading import Hook
from tests.kernel import verdicts
from tests.kernel.frames import ethernet, ipv4, tcp, udp
from tests.kernel.random_frames import Draw
from tests.kernel.test_filters import loaded, runnable

SEED, FRAMES = 7, 4000
_EIGHT = (17, 136, 1, 58)


def payload_of(packet: bytes) -> bytes | None:
    """What an IP packet carries, None where it has no payload or nobody can say where it begins."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        total, fragment = struct.unpack_from("!HxxH", packet, 2)
        at, protocol = (packet[0] & 15) * 4, packet[9]
        if at < 20 or fragment & 0x1FFF:
            return None
    elif version == 6 and len(packet) >= 40:
        total, at, protocol = struct.unpack_from("!H", packet, 4)[0] + 40, 40, packet[6]
        for _ in range(8):
            if protocol not in (0, 43, 44, 51, 60, 135):
                break
            head = packet[at : at + 4]
            if len(head) < (4 if protocol == 44 else 2):
                return None
            if protocol == 44 and int.from_bytes(head[2:4], "big") & 0xFFF8:
                return None
            step = 8 if protocol == 44 else (head[1] + 2) * 4 if protocol == 51 else (head[1] + 1) * 8
            protocol, at = head[0], at + step
        if protocol in (0, 43, 44, 51, 60, 135):
            return None
    else:
        return None
    return behind_transport(packet[: min(total, len(packet))], packet, protocol, at)


def behind_transport(stated: bytes, packet: bytes, protocol: int, at: int) -> bytes | None:
    """Behind the transport header at `at`, up to where the IP header says that the packet ends."""
    if protocol == 6:
        if len(packet) < at + 13 or packet[at + 12] >> 4 < 5:
            return None
        at += (packet[at + 12] >> 4) * 4
    else:
        at += 8 if protocol in _EIGHT else 12 if protocol == 132 else 0
    return stated[at:] or None


def network_of(frame: bytes) -> bytes | None:
    """The IP packet in an Ethernet frame, behind two tags at most."""
    at, ethertype = 14, frame[12:14]
    for _ in range(2):
        if ethertype in (b"\x81\x00", b"\x88\xa8"):
            ethertype, at = frame[at + 2 : at + 4], at + 4
    version = {b"\x08\x00": 4, b"\x86\xdd": 6}.get(ethertype)
    return frame[at:] if version and frame[at : at + 1] and frame[at] >> 4 == version else None


def holds(payload: bytes | None, wanted: Payload) -> bool:
    if payload is None:
        return False
    if wanted.offset is None:
        return wanted.pattern in payload[: wanted.within]
    return payload[wanted.offset :].startswith(wanted.pattern)


PATTERNS = [
    Payload(b"GET / HTTP/1.1\r\n", 0),
    Payload(b"GET", 0),
    Payload(b"needle"),
    Payload(b"needle", within=16),
    Payload(b"in a haystack", 7),
    Payload(b"needle in a haystack", within=20),
    Payload(b"k"),
    Payload(b"\0" * 32),
    Payload(b"\0" * 9, within=40),
    Payload(b"\0" * 2, 255),
    Payload(b" in "),
    Payload(b"\0" * 32, 1000),
    Payload(b"HTTP/1", within=12),
    Payload(b"HTTP/1", within=11),
    Payload(b"\0", 0, within=1),
    Payload(b"x", 65535),
]


def slices(payloads: list[bytes], rng: random.Random) -> list[Payload]:
    """Patterns cut from what is there: at the edges of the window, of the words, of the payload."""
    made = []
    for _ in range(16):
        payload = rng.choice([one for one in payloads if len(one) > 40])
        size = rng.choice((1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 31, 32))
        at = rng.choice((0, 1, len(payload) - size, max(0, min(len(payload), 256) - size), rng.randrange(9)))
        pattern = payload[at : at + size]
        made.append(
            Payload(pattern, at)
            if rng.random() < 0.4
            else Payload(pattern, within=rng.choice((size, 64, 256)))
        )
    return made


@pytest.mark.parametrize("hook", Hook)
def test_a_pattern_is_found_where_it_is_and_nowhere_else(root: None, hook: Hook) -> None:
    """On thousands of frames the kernel and a search in Python agree, at an offset and anywhere."""
    frames = runnable(Draw(SEED).some(FRAMES, tags=hook is Hook.PORT))
    packets = [network_of(frame) if hook is Hook.PORT else frame[14:] for frame in frames]
    payloads = [payload_of(packet) if packet else None for packet in packets]
    wanted = PATTERNS + slices([one for one in payloads if one], random.Random(SEED))
    (everything,) = verdicts.filters(("",), hook)
    with loaded([everything._replace(payload=one) for one in wanted], hook) as answer:
        got = verdicts.bits([answer(frame) for frame in frames], len(wanted))
    for frame, payload, row in zip(frames, payloads, got.tolist(), strict=True):
        assert row == [holds(payload, one) for one in wanted], (frame.hex(), payload)
    missed = [one for one, ever in zip(wanted, got.any(0), strict=True) if not ever]
    assert [one for one in missed if one in PATTERNS] == [Payload(b"HTTP/1", within=11), Payload(b"x", 65535)]


def test_a_pattern_is_asked_for_beside_a_filter(root: None) -> None:
    """Both must hold; orders without a pattern are not touched."""
    texts = ("tcp", "udp", "tcp", "")
    made = verdicts.filters(texts, Hook.PORT)
    made = [one._replace(payload=Payload(b"hello")) if at != 2 else one for at, one in enumerate(made)]
    answers = {
        ethernet(ipv4(tcp(b"say hello"), 6), 0x0800): 0b1101,
        ethernet(ipv4(udp(b"say hello"), 17), 0x0800): 0b1010,
        ethernet(ipv4(tcp(b"say hell"), 6), 0x0800): 0b0100,
        ethernet(ipv4(tcp(), 6), 0x0800): 0b0100,
        ethernet(b"hello" * 9, 0x88CC): 0,
    }
    with loaded(made, Hook.PORT) as answer:
        assert {frame: answer(frame) for frame in answers} == answers


def test_padding_is_no_payload(root: None) -> None:
    """What lies behind the end that the IP header states is not searched."""
    (everything,) = verdicts.filters(("",), Hook.PORT)
    with loaded([everything._replace(payload=Payload(b"secret"))], Hook.PORT) as answer:
        assert answer(ethernet(ipv4(udp(b"hello"), 17), 0x0800) + b"secret") == 0
        assert answer(ethernet(ipv4(udp(b"hello secret"), 17), 0x0800)) == 1


def test_what_the_kernel_could_not_search_is_refused() -> None:
    """Sizes are checked when an order is read, from JSON too."""
    for refused in (
        {"pattern": b""},
        {"pattern": b"x" * 33},
        {"pattern": b"x", "offset": -1},
        {"pattern": b"x", "offset": 65536},
        {"pattern": b"xx", "within": 1},
        {"pattern": b"x", "within": 257},
    ):
        with pytest.raises(ConfigError):
            Payload(**refused)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"pattern": "eA==", "ofset": 1}', type=Payload)


def test_the_longest_patterns_fit_together(root: None) -> None:
    """A program holds 32 of the dearest searches: the verifier follows each round of each."""
    asked = [Wanted("tcp", Payload(bytes([number]) * 32)) for number in range(32)]
    made = [one for one in compiled(asked, Hook.PORT) if not isinstance(one, RefusedError)]
    assert [type(one) for one in made] == [Filter] * 32
    with loaded(made, Hook.PORT) as answer:
        assert answer(ethernet(ipv4(tcp(b"\x05" * 40), 6), 0x0800)) == 1 << 5
