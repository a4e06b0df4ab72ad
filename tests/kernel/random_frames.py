"""Frames drawn at random, the same ones for a seed: of every kind that filters ask for, and damaged ones."""

import random
import struct
from collections.abc import Callable
from ipaddress import ip_address

from tests.kernel.frames import extension

MACS = [bytes.fromhex(f"0200000000{n:02x}") for n in (1, 2, 3)]
GROUPS = [
    b"\xff" * 6,
    bytes.fromhex("01005e000001"),
    bytes.fromhex("0180c2000000"),
    bytes.fromhex("333300000001"),
]
IPV4 = [ip_address(a).packed for a in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "192.168.1.9", "224.0.0.1")]
IPV6 = [ip_address(a).packed for a in ("fd00::1", "fd00::2", "2001:db8::1", "ff02::1")]
PORTS = [80, 53, 443, 1000, 2000, 55, 85]
WORDS = [b"GET / HTTP/1.1\r\n", b"", bytes(40), b"\x01" * 9, b"needle in a haystack"]
TAGS = (0x8100, 0x88A8, 0x9100)
_IP, _IP6, _MPLS, _PPP_DISCOVERY, _PPP_SESSION = 0x0800, 0x86DD, 0x8847, 0x8863, 0x8864
_PLAIN = (0x809B, 0x80F3, 0x6004, 0x6002, 0x6001, 0x8137, 0x88CC, 0x9000)
"""EtherTypes of which filters know the name only."""
_SERVICES = (0xFEFE, 0x4242, 0xE0E0, 0xF0F0, 0xAAAA)
"""LLC service points: ISO, spanning tree, IPX, NetBEUI, SNAP."""
_LLC_CONTROLS = (0x00, 0x01, 0x05, 0x09, 0x03, 0x63, 0x43, 0x6F, 0xE3, 0xAF, 0x87)
_GENEVE = 6081


class Draw:
    """One source of frames; every method takes one more from its randomness."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def frame(self, tags: bool = True) -> bytes:
        """An Ethernet frame, maybe tagged."""
        pick = self.rng.choice
        target = pick(GROUPS) if self.rng.random() < 0.2 else pick(MACS)
        ethertype, payload = self._ethertype()
        chain = b""
        while tags and self.rng.random() < 0.25:
            chain += struct.pack("!HH", pick(TAGS), pick((5, 9, 0x2005, 0, 0xFFFF)))
        return target + pick(MACS) + chain + struct.pack("!H", ethertype) + payload

    def damaged(self, tags: bool = True) -> bytes:
        """A frame of which bytes of the headers were changed, or that was cut or prolonged."""
        data = bytearray(self.frame(tags))
        for _ in range(self.rng.randrange(4)):
            data[self.rng.randrange(min(len(data), 80))] = self.rng.randrange(256)
        if self.rng.random() < 0.3:
            del data[self.rng.randrange(14, len(data) + 1) :]
        elif self.rng.random() < 0.1:
            data += self.rng.randbytes(self.rng.randrange(40))
        return bytes(data)

    def some(self, count: int, tags: bool = True) -> list[bytes]:
        return [self.frame(tags) if self.rng.random() < 0.6 else self.damaged(tags) for _ in range(count)]

    def ip(self) -> bytes:
        """An IP packet of either version."""
        return self.ipv4() if self.rng.random() < 0.6 else self.ipv6()

    def ipv4(self) -> bytes:
        rng = self.rng
        protocol, payload = self._transport()
        options = bytes(4 * rng.choice((0, 0, 0, 1, 2, 10)))
        fragment = rng.choice((0, 0, 0, 0x4000, 0x2000, 0x0004, 0x2010))
        total = 20 + len(options) + len(payload) + rng.choice((0, 0, 0, 0, 9, -9))
        first, ttl = 0x45 + len(options) // 4, rng.choice((1, 4, 64, 255))
        header = struct.pack(
            "!BBHHHBBH", first, 0, max(total, 0), rng.randrange(9), fragment, ttl, protocol, 0
        )
        return header + rng.choice(IPV4) + rng.choice(IPV4) + options + payload

    def ipv6(self) -> bytes:
        rng = self.rng
        protocol, payload = self._transport()
        protocol = {1: 58}.get(protocol, protocol)
        while rng.random() < 0.25:
            kind = rng.choice((0, 43, 60, 44, 51))
            body = bytes((0, rng.choice((0, 1, 8)))) if kind == 44 else b""
            length = 4 if kind == 51 else 0 if kind == 44 else rng.choice((0, 1, 2))
            header = (
                bytes((protocol, 4)) + bytes(22)
                if kind == 51
                else extension(protocol, length, body.ljust(6, b"\0"))
            )
            protocol, payload = kind, header + payload
        header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, rng.choice((1, 64)))
        return header + rng.choice(IPV6) + rng.choice(IPV6) + payload

    def _ethertype(self) -> tuple[int, bytes]:
        kinds: list[Callable[[], tuple[int, bytes]]] = [
            lambda: (_IP, self.ipv4()),
            lambda: (_IP6, self.ipv6()),
            lambda: (self.rng.choice((0x0806, 0x8035)), self._arp()),
            lambda: (self.rng.choice(_PLAIN), self.rng.randbytes(46)),
            lambda: (0x6003, self._decnet()),
            self._llc,
            lambda: (_MPLS, self._mpls()),
            lambda: (_PPP_DISCOVERY, b"\x11\x09\0\0\0\0" + bytes(20)),
            lambda: (_PPP_SESSION, self._ppp()),
        ]
        return self.rng.choices(kinds, weights=(40, 25, 6, 6, 2, 10, 6, 1, 6))[0]()

    def _transport(self) -> tuple[int, bytes]:
        rng = self.rng
        ports = struct.pack("!HH", rng.choice(PORTS), rng.choice(PORTS))
        word = rng.choice(WORDS) + rng.choice(
            (b"", b"", b"abc", rng.randbytes(60), rng.randbytes(300), bytes(1100))
        )
        kinds: list[Callable[[], tuple[int, bytes]]] = [
            lambda: (17, ports + struct.pack("!HH", 8 + len(word), 0) + word),
            lambda: (17, struct.pack("!HHHH", 1000, _GENEVE, 16, 0) + self._geneve()),
            lambda: (6, ports + self._tcp() + word),
            lambda: (132, ports + bytes(8) + rng.choice((b"\0", b"\1")) + bytes(3) + word),
            lambda: (
                1,
                bytes((rng.choice((0, 3, 8, 11, 128, 135)), rng.choice((0, 1, 3)))) + bytes(6) + word,
            ),
            lambda: (2, rng.choice((b"\x16", b"\x11")) + bytes(7)),
            lambda: (rng.choice((103, 51, 50, 112, 9, 47, 4, 89, 0)), b"\x20" + bytes(30)),
        ]
        return rng.choices(kinds, weights=(30, 5, 40, 6, 12, 3, 9))[0]()

    def _tcp(self) -> bytes:
        """What follows the ports."""
        options = bytes(4 * self.rng.choice((0, 0, 3)))
        flags = self.rng.choice((2, 1, 0x18, 0x10, 0x14, 4, 0x12))
        return bytes(8) + struct.pack("!BBHHH", (5 + len(options) // 4) << 4, flags, 0, 0, 0) + options

    def _arp(self) -> bytes:
        rng = self.rng
        head = struct.pack("!HHBBH", 1, _IP, 6, 4, rng.choice((1, 2, 3)))
        return head + rng.choice(MACS) + rng.choice(IPV4) + rng.choice(MACS) + rng.choice(IPV4) + bytes(18)

    def _decnet(self) -> bytes:
        """A short or a long header, with or without the byte of padding before it (1.2 is node 0x0402)."""
        rng = self.rng
        nodes = [rng.choice((b"\x02\x04", b"\x03\x04")) for _ in range(2)]
        if rng.random() < 0.5:
            head = b"\x02" + nodes[0] + nodes[1] + bytes(30)
        else:
            head = b"\x06\0\0\xaa\0\x04\0" + nodes[0] + b"\0\0\xaa\0\x04\0" + nodes[1] + bytes(20)
        return struct.pack("<H", len(head)) + (b"\x81" if rng.random() < 0.5 else b"") + head

    def _llc(self) -> tuple[int, bytes]:
        """A length where the EtherType would be; of IS-IS, one of its kinds of message."""
        rng = self.rng
        services = rng.choice(_SERVICES)
        control = rng.choice(_LLC_CONTROLS) if rng.random() < 0.7 else 3
        body = bytes((rng.choice((0x83, 0x82, 0x81)), 27, 1, 0, rng.choice(range(15, 28)))) + bytes(40)
        if rng.random() < 0.4:
            services, control = 0xFEFE, 3
        payload = struct.pack("!HB", services, control) + body
        return rng.choice((len(payload), 66, 100)), payload

    def _mpls(self) -> bytes:
        labels = [self.rng.choice((1000, 2000)) for _ in range(self.rng.choice((1, 2, 3)))]
        last = len(labels) - 1
        stack = [label << 12 | (at == last) << 8 | 64 for at, label in enumerate(labels)]
        return b"".join(struct.pack("!I", entry) for entry in stack) + self.ip()

    def _ppp(self) -> bytes:
        six = self.rng.random() < 0.4
        payload = self.ipv6() if six else self.ipv4()
        head = struct.pack(
            "!BBHHH", 0x11, 0, self.rng.choice((7, 8)), len(payload) + 2, 0x57 if six else 0x21
        )
        return head + payload

    def _geneve(self) -> bytes:
        rng = self.rng
        options = rng.choice((0, 0, 1, 3))
        kind, inner = rng.choice(
            (
                (0x6558, rng.choice(MACS) + rng.choice(MACS) + b"\x08\0" + self.ipv4()),
                (_IP, self.ipv4()),
                (_IP6, self.ipv6()),
                (0x0806, self._arp()),
            )
        )
        return struct.pack("!BBHI", options, 0, kind, rng.choice((77, 78)) << 8) + bytes(options * 4) + inner
