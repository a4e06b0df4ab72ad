"""Byte patterns in what TCP, UDP and their like carry, searched by the kernel.

The payload begins behind the transport header; where the protocol is not known, behind the IP headers. It
ends where the IP header says, or with the frame. Where in the payload a later fragment lies is not known:
never a match.
"""

import re

import msgspec

from eastwest.errors import ConfigError, RefusedError
from eastwest.kernel.assembler import (
    ADD,
    AND,
    JEQ,
    JGE,
    JGT,
    JLE,
    JLT,
    JNE,
    JSET,
    LSH,
    MOV,
    MUL,
    OR,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    RSH,
    STACK,
    SUB,
    XOR,
    skb_field,
)
from eastwest.tap.reading import (
    CONTEXT,
    DATA,
    FORGOTTEN,
    PAYLOAD_END,
    PAYLOAD_START,
    WINDOW,
    A,
    Hook,
    Reader,
    X,
)

LONGEST_PATTERN = 32
WIDEST_SEARCH = 256
FURTHEST_OFFSET = 0xFFFF

_IPV4, _IPV6, _VLAN, _SERVICE_VLAN = 0x0800, 0x86DD, 0x8100, 0x88A8
_VLAN_TAGS = 2
_IPV6_EXTENSIONS = 8
_TCP, _SCTP = 6, 132
_EIGHT_BYTES = (17, 136, 1, 58)
"""UDP, UDP-Lite, ICMP and ICMPv6 have headers of eight bytes."""
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION, _MOBILITY = 0, 43, 44, 51, 60, 135


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes that the payload must hold: at `offset`, or anywhere in its first `within` bytes."""

    pattern: bytes
    offset: int | None = None
    within: int = WIDEST_SEARCH

    def __post_init__(self) -> None:
        """Raises ConfigError where the kernel could not search so."""
        if not 1 <= len(self.pattern) <= LONGEST_PATTERN:
            raise ConfigError(
                f"a pattern of {len(self.pattern)} bytes", f"give one of 1 to {LONGEST_PATTERN} bytes"
            )
        if self.offset is not None and not 0 <= self.offset <= FURTHEST_OFFSET:
            raise ConfigError(f"a pattern at offset {self.offset}", f"offsets are 0 to {FURTHEST_OFFSET}")
        if not len(self.pattern) <= self.within <= WIDEST_SEARCH:
            raise ConfigError(
                f"a pattern of {len(self.pattern)} bytes within {self.within}",
                f"the pattern has to fit in, and at most {WIDEST_SEARCH} bytes are searched",
            )


_WRITTEN = re.compile("((?:[0-9a-f]{2})+)(?:@([0-9]{1,5})|<([0-9]{1,3}))?")


def parse(text: str) -> Payload | None:
    """What an order says: bytes in hexadecimal, then `@OFFSET`, or `<WITHIN`, or nothing; empty: None.

    Raises RefusedError.
    """
    if not text:
        return None
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise RefusedError(
            f"'{text}' is not a byte pattern",
            "write bytes in hexadecimal, like 474554, 474554@0 or 474554<64",
        )
    pattern, offset, within = found.groups()
    try:
        return Payload(
            bytes.fromhex(pattern),
            int(offset) if offset else None,
            int(within) if within else WIDEST_SEARCH,
        )
    except ConfigError as error:
        raise RefusedError(error.what, error.remedy) from None


class Finder:
    """Writes the instructions that find out where the payload of a packet begins and ends."""

    def __init__(self, out: Reader, hook: Hook, none: int) -> None:
        self._out, self._hook, self._none = out, hook, none

    def write(self) -> None:
        """PAYLOAD_START and PAYLOAD_END; jumps to `none` where there is no payload to be found."""
        out, transport = self._out, self._out.label()
        ipv4, ipv6 = out.label(), out.label()
        if self._hook is Hook.PORT:
            self._ethernet(ipv4, ipv6)
        else:
            out.op32(MOV, X, 0)
            out.read(1, A, 0, self._none)
            out.op32(RSH, A, 4)
            out.when32(JEQ, A, 4, ipv4)
            out.when32(JEQ, A, 6, ipv6)
        out.go(self._none)
        out.place(ipv4)
        self._ipv4(transport)
        out.place(ipv6)
        self._ipv6(transport)
        out.place(transport)
        self._transport()

    def _ethernet(self, ipv4: int, ipv6: int) -> None:
        out = self._out
        out.op32(MOV, X, 14)
        out.read(2, A, 12, self._none)
        for _ in range(_VLAN_TAGS):
            tag, untagged = out.label(), out.label()
            out.when32(JEQ, A, _VLAN, tag)
            out.when32(JNE, A, _SERVICE_VLAN, untagged)
            out.place(tag)
            out.read_at(2, A, X, 2, self._none)
            out.op32(ADD, X, 4)
            out.place(untagged)
        self._forget_x()
        out.when32(JEQ, A, _IPV4, ipv4)
        out.when32(JEQ, A, _IPV6, ipv6)

    def _forget_x(self) -> None:
        """Have the verifier not follow each way to this place by itself."""
        self._out.store(4, STACK, PAYLOAD_START, X)
        self._out.load(4, X, STACK, PAYLOAD_START)

    def _ipv4(self, transport: int) -> None:
        out, none = self._out, self._none
        out.read_at(2, A, X, 6, none)
        out.when32(JSET, A, 0x1FFF, none)
        out.read_at(2, A, X, 2, none)
        self._end()
        out.read_at(1, A, X, 0, none)
        out.op32_reg(MOV, R5, A)
        out.op32(RSH, R5, 4)
        out.when32(JNE, R5, 4, none)
        out.op32(AND, A, 0xF)
        out.when32(JLT, A, 5, none)
        out.op32(LSH, A, 2)
        # The protocol has to be read before X moves on.
        out.store(4, STACK, PAYLOAD_START, A)
        out.read_at(1, A, X, 9, none)
        out.load(4, R5, STACK, PAYLOAD_START)
        out.op32_reg(ADD, X, R5)
        out.go(transport)

    def _end(self) -> None:
        """The payload's end, from A, which the IP header at X states; a super-packet's states none."""
        out, whole, done = self._out, self._out.label(), self._out.label()
        out.load(4, R1, CONTEXT, skb_field("len"))
        out.load(4, R2, CONTEXT, skb_field("gso_size"))
        out.when32(JNE, R2, 0, whole)
        out.op32_reg(ADD, A, X)
        out.when_reg(JLE, A, R1, done)
        out.place(whole)
        out.op32_reg(MOV, A, R1)
        out.place(done)
        out.store(4, STACK, PAYLOAD_END, A)

    def _ipv6(self, transport: int) -> None:
        out, none = self._out, self._none
        out.read_at(1, A, X, 0, none)
        out.op32(RSH, A, 4)
        out.when32(JNE, A, 6, none)
        out.read_at(2, A, X, 4, none)
        out.op32(ADD, A, 40)
        self._end()
        out.read_at(1, A, X, 6, none)
        out.op32(ADD, X, 40)
        for _ in range(_IPV6_EXTENSIONS):
            self._forget_x()
            self._extension(transport)
        for number in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION, _MOBILITY):
            out.when32(JEQ, A, number, none)

    def _extension(self, transport: int) -> None:
        """Over one extension header of type A at X; to `transport` where it is none."""
        out, none = self._out, self._none
        fragment, authentication, common, on = (out.label() for _ in range(4))
        for number in (_HOP_BY_HOP, _ROUTING, _DESTINATION, _MOBILITY):
            out.when32(JEQ, A, number, common)
        out.when32(JEQ, A, _FRAGMENT, fragment)
        out.when32(JEQ, A, _AUTHENTICATION, authentication)
        out.go(transport)
        out.place(fragment)
        out.read_at(2, A, X, 2, none)
        out.when32(JSET, A, 0xFFF8, none)
        out.op32(MOV, R5, 8)
        out.go(on)
        out.place(authentication)
        out.read_at(1, R5, X, 1, none)
        out.op32(ADD, R5, 2)  # RFC 4302, 2.2
        out.op32(MUL, R5, 4)
        out.go(on)
        out.place(common)
        out.read_at(1, R5, X, 1, none)
        out.op32(ADD, R5, 1)
        out.op32(MUL, R5, 8)
        out.place(on)
        # Helpers clobber R5, so the step waits on the stack while the next type is read.
        out.store(4, STACK, PAYLOAD_START, R5)
        out.read_at(1, A, X, 0, none)
        out.load(4, R5, STACK, PAYLOAD_START)
        out.op32_reg(ADD, X, R5)

    def _transport(self) -> None:
        """Behind the header of protocol A at X."""
        out, none = self._out, self._none
        eight, tcp, done = out.label(), out.label(), out.label()
        out.when32(JEQ, A, _TCP, tcp)
        for number in _EIGHT_BYTES:
            out.when32(JEQ, A, number, eight)
        out.when32(JNE, A, _SCTP, done)
        out.op32(ADD, X, 12)
        out.go(done)
        out.place(eight)
        out.op32(ADD, X, 8)
        out.go(done)
        out.place(tcp)
        out.read_at(1, A, X, 12, none)
        out.op32(RSH, A, 4)
        out.when32(JLT, A, 5, none)
        out.op32(LSH, A, 2)
        out.op32_reg(ADD, X, A)
        out.place(done)
        out.load(4, R1, STACK, PAYLOAD_END)
        out.when_reg(JGE, X, R1, none)
        out.store(4, STACK, PAYLOAD_START, X)


def copy_window(out: Reader, none: int) -> None:
    """The first bytes of the payload to the stack, where every search of this program reads them."""
    fits = out.label()
    for at in range(0, WIDEST_SEARCH, 8):
        out.store_constant(8, STACK, WINDOW + at, 0)
    out.load(4, R2, STACK, PAYLOAD_START)
    out.load(4, R4, STACK, PAYLOAD_END)
    out.op_reg(SUB, R4, R2)
    out.when(JLE, R4, WIDEST_SEARCH, fits)
    out.op32(MOV, R4, WIDEST_SEARCH)
    out.place(fits)
    out.when(JLT, R4, 1, none)
    out.load_bytes(WINDOW, None, none)


def search(out: Reader, payload: Payload, miss: int) -> None:
    """Go on where the payload is as asked, else jump to `miss`."""
    if payload.offset is None:
        _search_window(out, payload, miss)
        return
    size = len(payload.pattern)
    out.load(4, R2, STACK, PAYLOAD_START)
    out.load(4, R3, STACK, PAYLOAD_END)
    out.op(ADD, R2, payload.offset)
    out.op_reg(MOV, R1, R2)
    out.op(ADD, R1, size)
    out.when_reg(JGT, R1, R3, miss)
    out.load_bytes(_SCRATCH, size, miss)
    at = 0
    while at < size:
        step = next(width for width in (8, 4, 2, 1) if width <= size - at)
        out.load(step, R1, STACK, _SCRATCH + at)
        out.constant(R2, int.from_bytes(payload.pattern[at : at + step], "little"))
        out.when_reg(JNE, R1, R2, miss)
        at += step


_SCRATCH = WINDOW - LONGEST_PATTERN
_WORDS = (R1, R2, R3, R4)
"""The last 8, 16, 24 and 32 bytes that were read, as numbers."""
_ANY = DATA
"""Searches are the last that a program does: nobody reads the packet directly any more."""


def _search_window(out: Reader, payload: Payload, miss: int) -> None:
    pattern = payload.pattern
    words = _WORDS[: -(-len(pattern) // 8)]
    again, found, narrow = out.label(), out.label(), out.label()
    out.load(4, X, STACK, PAYLOAD_END)
    out.load(4, R1, STACK, PAYLOAD_START)
    out.op_reg(SUB, X, R1)
    out.when(JLE, X, payload.within, narrow)
    out.op32(MOV, X, payload.within)
    out.place(narrow)
    # What has not been read yet must not look like the pattern's first byte.
    out.store_constant(4, STACK, FORGOTTEN, int.from_bytes(bytes([pattern[0] ^ 0xFF]) * 4, "little"))
    out.load(4, R5, STACK, FORGOTTEN)
    for word in words:
        out.op_reg(MOV, word, R5)
        out.op(LSH, word, 32)
        out.op_reg(OR, word, R5)
    out.op32(MOV, A, 0)
    out.place(again)
    out.when_reg(JGE, A, X, miss)
    out.op_reg(MOV, R0, STACK)
    out.op_reg(ADD, R0, A)
    out.load(1, R0, R0, WINDOW)
    _shift_in(out, words)
    parts = [
        pattern[max(0, len(pattern) - end - 8) : len(pattern) - end] for end in range(0, len(pattern), 8)
    ]
    _difference(out, _ANY, words[0], parts[0])
    for word, part in zip(words[1:], parts[1:], strict=True):
        _difference(out, R5, word, part)
        out.op_reg(OR, _ANY, R5)
    # One branch a round: each more would have the verifier follow a few rounds twice.
    out.when(JEQ, _ANY, 0, found)
    out.op32(ADD, A, 1)
    out.go(again)
    out.place(found)


def _shift_in(out: Reader, words: tuple[int, ...]) -> None:
    """One byte, R0, further."""
    for number in range(len(words) - 1, 0, -1):
        out.op_reg(MOV, R5, words[number - 1])
        out.op(RSH, R5, 56)
        out.op(LSH, words[number], 8)
        out.op_reg(OR, words[number], R5)
    out.op(LSH, words[0], 8)
    out.op_reg(OR, words[0], R0)


def _difference(out: Reader, to: int, word: int, part: bytes) -> None:
    """Zero where a word ends in these bytes.

    Compared so, the verifier learns nothing of the word itself, and need not follow both cases further.
    """
    unused = 64 - 8 * len(part)
    out.op_reg(MOV, to, word)
    if unused:
        out.op(LSH, to, unused)
    out.constant(R0, int.from_bytes(part, "big") << unused)
    out.op_reg(XOR, to, R0)
