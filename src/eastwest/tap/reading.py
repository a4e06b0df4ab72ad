"""How a generated program reads a packet: directly where the bytes lie, by the helper where they do not.

The order of the two ways is for the verifier. It follows the way that does not jump first, and on that one it
knows less of the packet; so when it comes from the other way to where they meet, it has seen that already.
The other way round, every load would double its work.
"""

from enum import Enum

from eastwest.kernel.assembler import (
    ADD,
    JGT,
    JLE,
    JNE,
    MOV,
    OR,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R9,
    RSH,
    SKB_LOAD_BYTES,
    STACK,
    Assembler,
    skb_field,
)

CONTEXT, A, X, DATA = R6, 7, 8, R9
"""Registers of every generated program: the context, classic BPF's two registers, where the packet begins."""

# Bytes below the frame pointer. The verifier follows what is stored at a multiple of eight; what lies between
# is forgotten, and so is not a reason to look at the same instructions once for each value.
_DATA_END = -8
MASK = (-12, -20)
"""The orders that take the packet: bits 0 to 31, and 32 to 63."""
_FIELD = -32
FORGOTTEN = -28
"""For a number that the verifier must not know; the helper's copy of a field goes there too."""
PAYLOAD_START, PAYLOAD_END = -36, -44
MEMORY = -48 - 16 * 8
"""Classic BPF's sixteen words, eight bytes each."""
WINDOW = MEMORY - 256
"""The first bytes of the payload; all of it is below the stack's limit of 512."""

_HIGHEST_DIRECT = 0xFFF0  # MAX_PACKET_OFF in the verifier is 65535
_HIGHEST_OFFSET = 0x7FFFFFFF  # bpf_skb_load_bytes() refuses more
FURTHEST = _HIGHEST_OFFSET - 8
"""The highest constant offset that may be read."""


class Hook(Enum):
    """Where a filter runs, which says what a packet begins with."""

    PORT = "port"
    """tc and TCX: the Ethernet header; a VLAN tag may be in the metadata."""
    CGROUP = "cgroup"
    """cgroup_skb: the IP header."""


class Reader(Assembler):
    """An assembler that knows how to get at the packet."""

    def begin(self) -> None:
        """Keep the context and the packet's ends in their places; no order takes the packet yet."""
        self.op_reg(MOV, CONTEXT, R1)
        self.load(4, DATA, CONTEXT, skb_field("data"))
        self.load(4, R1, CONTEXT, skb_field("data_end"))
        self.store(8, STACK, _DATA_END, R1)
        # Zero, since no packet has 2 GiB; but the verifier must not know it.
        self.load(4, R1, CONTEXT, skb_field("len"))
        self.op32(RSH, R1, 31)
        for place in MASK:
            self.store(4, STACK, place, R1)

    def read(self, size: int, to: int, offset: int, otherwise: int) -> None:
        """Big-endian bytes at a constant offset up to FURTHEST; jump where the packet ends before."""
        slow, done = self.label(), self.label()
        direct = offset <= _HIGHEST_DIRECT
        if direct:
            self.op_reg(MOV, R3, DATA)
            self.op(ADD, R3, offset + size)
            self._if_linear(slow)
        self.op32(MOV, R2, offset)
        self._read_slowly(size, to, otherwise)
        if direct:
            self._read_directly(size, to, slow, done)
        self.big_endian(to, size)

    def read_at(self, size: int, to: int, register: int, offset: int, otherwise: int) -> None:
        """The same at a register plus a constant, where no sum wraps around."""
        slow, far, done = self.label(), self.label(), self.label()
        self.op_reg(MOV, R2, register)
        if offset:
            self.op(ADD, R2, offset)
        self.when(JGT, R2, _HIGHEST_OFFSET, otherwise)
        self.when(JGT, R2, _HIGHEST_DIRECT, far)
        self.op_reg(MOV, R3, DATA)
        self.op_reg(ADD, R3, R2)
        self.op(ADD, R3, size)
        self._if_linear(slow)
        self.place(far)
        self._read_slowly(size, to, otherwise)
        self._read_directly(size, to, slow, done)
        self.big_endian(to, size)

    def _if_linear(self, label: int) -> None:
        """Jump where the packet reaches to R3 in its linear part."""
        self.load(8, R1, STACK, _DATA_END)
        self.when_reg(JLE, R3, R1, label)

    def _read_slowly(self, size: int, to: int, otherwise: int) -> None:
        self.load_bytes(_FIELD, size, otherwise)
        self.load(size, to, STACK, _FIELD)

    def _read_directly(self, size: int, to: int, here: int, done: int) -> None:
        self.go(done)
        self.place(here)
        self.load(size, to, R3, -size)
        self.place(done)

    def load_bytes(self, place: int, size: int | None, otherwise: int) -> None:
        """Copy from offset R2 to the stack, R4 bytes where `size` is None; clobbers R0 to R5."""
        self.op_reg(MOV, R1, CONTEXT)
        self.op_reg(MOV, R3, STACK)
        self.op(ADD, R3, place)
        if size is not None:
            self.op32(MOV, R4, size)
        self.call(SKB_LOAD_BYTES)
        self.when(JNE, R0, 0, otherwise)

    def set_bit(self, order: int) -> None:
        """The order takes the packet."""
        place = MASK[order // 32]
        self.load(4, R1, STACK, place)
        self.op32(OR, R1, 1 << order % 32)
        self.store(4, STACK, place, R1)
