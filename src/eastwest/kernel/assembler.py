"""Writes eBPF instructions: labels become jump distances, and fields of `struct __sk_buff` their offsets."""

import struct
from typing import Self

from eastwest.errors import RefusedError
from eastwest.kernel._libbpf import ffi

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, STACK = range(11)

# linux/bpf_common.h and linux/bpf.h: operations; classic BPF has the same numbers where it has the operation.
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR, MOV = range(0, 0xC0, 0x10)
JEQ, JGT, JGE, JSET, JNE, JLT, JLE = 0x10, 0x20, 0x30, 0x40, 0x50, 0xA0, 0xB0
INVERSE = {JEQ: JNE, JNE: JEQ, JGT: JLE, JLE: JGT, JGE: JLT, JLT: JGE}

_LD, _LDX, _ST, _STX, _ALU32, _JMP, _JMP32, _ALU64 = range(8)
_MEM, _X = 0x60, 0x08
_SIZES = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}
_JA, _CALL, _EXIT = 0x05, 0x85, 0x95
_TO_BIG_ENDIAN = 0xDC
_INSTRUCTION = struct.Struct("<BBhI")
_FURTHEST = (1 << 15) - 1

SKB_LOAD_BYTES = 26  # enum bpf_func_id


def skb_field(name: str) -> int:
    """Where a field lies in `struct __sk_buff`."""
    return int(ffi.offsetof("struct __sk_buff", name))


class Assembler:
    """A growing list of instructions; a label is an int, placed at most once, before or after its use."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._places: list[int] = []
        self._jumps: list[tuple[int, int]] = []
        self._used: set[int] = set()
        self._latest = 0

    def __len__(self) -> int:
        return len(self._code)

    def _put(self, code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> Self:
        self._code.append((code, source << 4 | to, offset, value & 0xFFFFFFFF))
        return self

    def label(self) -> int:
        self._places.append(-1)
        return len(self._places) - 1

    def place(self, label: int) -> None:
        """The next instruction is the label's. A jump that would go no further than here is taken back.

        The kernel removes them one by one, and each time moves all that follows: minutes for a long program.
        """
        last = len(self._code) - 1
        if self._jumps[-1:] == [(last, label)] and self._code[last][0] == _JA and self._latest <= last:
            self._code.pop()
            self._jumps.pop()
        self._latest = self._places[label] = len(self._code)

    def used(self, label: int) -> bool:
        """Whether a jump goes there, up to now."""
        return label in self._used

    def op(self, operation: int, to: int, value: int) -> Self:
        """On all 64 bits, with a constant of 31 bits, or a negative one."""
        return self._put(_ALU64 | operation, to, value=value)

    def op_reg(self, operation: int, to: int, source: int) -> Self:
        return self._put(_ALU64 | operation | _X, to, source)

    def op32(self, operation: int, to: int, value: int) -> Self:
        """On the lower half; the upper one becomes zero."""
        return self._put(_ALU32 | operation, to, value=value)

    def op32_reg(self, operation: int, to: int, source: int) -> Self:
        return self._put(_ALU32 | operation | _X, to, source)

    def constant(self, to: int, value: int) -> Self:
        """All 64 bits of a register."""
        self._put(_LD | _SIZES[8], to, value=value)
        return self._put(0, value=value >> 32)

    def big_endian(self, register: int, size: int) -> Self:
        return self if size == 1 else self._put(_TO_BIG_ENDIAN, register, value=size * 8)

    def load(self, size: int, to: int, base: int, offset: int) -> Self:
        return self._put(_LDX | _MEM | _SIZES[size], to, base, offset)

    def store(self, size: int, base: int, offset: int, source: int) -> Self:
        return self._put(_STX | _MEM | _SIZES[size], base, source, offset)

    def store_constant(self, size: int, base: int, offset: int, value: int) -> Self:
        return self._put(_ST | _MEM | _SIZES[size], base, offset=offset, value=value)

    def call(self, helper: int) -> Self:
        return self._put(_CALL, value=helper)

    def exit(self) -> Self:
        return self._put(_EXIT)

    def _toward(self, label: int) -> Self:
        """The next instruction jumps there."""
        self._jumps.append((len(self._code), label))
        self._used.add(label)
        return self

    def go(self, label: int) -> Self:
        return self._toward(label)._put(_JA)

    def when(self, condition: int, left: int, value: int, label: int) -> Self:
        """Jump where all 64 bits of the register compare so with a constant of 31 bits."""
        return self._toward(label)._put(_JMP | condition, left, value=value)

    def when_reg(self, condition: int, left: int, right: int, label: int) -> Self:
        return self._toward(label)._put(_JMP | condition | _X, left, right)

    def when32(self, condition: int, left: int, value: int, label: int) -> Self:
        """Jump where the lower half of the register compares so, unsigned."""
        return self._toward(label)._put(_JMP32 | condition, left, value=value)

    def when32_reg(self, condition: int, left: int, right: int, label: int) -> Self:
        return self._toward(label)._put(_JMP32 | condition | _X, left, right)

    def packed(self) -> bytes:
        """An array of `struct bpf_insn`. Raises RefusedError where a jump goes over 32,767 instructions."""
        code = list(self._code)
        for at, label in self._jumps:
            distance = self._places[label] - at - 1
            if abs(distance) > _FURTHEST:
                raise RefusedError("the filter becomes too long a program", "write it shorter")
            operation, registers, _, value = code[at]
            code[at] = (operation, registers, distance, value)
        return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)
