"""Classic BPF, as libpcap compiles it, to eBPF that the verifier takes; the verdict stays bpf_filter()'s.

Classic BPF's A and X are the lower halves of two registers. Jumps go forward only, so that a program ends.
"""

from collections.abc import Sequence

from eastwest.errors import RefusedError
from eastwest.kernel.assembler import (
    ADD,
    AND,
    DIV,
    INVERSE,
    JEQ,
    JGE,
    JGT,
    JSET,
    LSH,
    MOD,
    MOV,
    MUL,
    NEG,
    OR,
    RSH,
    STACK,
    SUB,
    XOR,
    skb_field,
)
from eastwest.kernel.pcap import Instruction
from eastwest.tap.reading import CONTEXT, FURTHEST, MEMORY, A, Hook, Reader, X

LONGEST = 4096
"""Instructions of classic BPF (BPF_MAXINSNS): what the kernel takes from tcpdump too."""

# linux/bpf_common.h
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_IMM, _ABS, _IND, _MEM, _LEN, _MSH = range(0, 0xC0, 0x20)
_SIZE = {0x00: 4, 0x08: 2, 0x10: 1}
_X, _RET_A, _TXA = 0x08, 0x10, 0x80
_JA = 0
_WORDS = 16

_OPERATIONS = {ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR}
_CONDITIONS = {JEQ, JGT, JGE, JSET}

# linux/filter.h: loads from here on are not from the packet.
_ANCILLARY = 0xFFFFF000
_PROTOCOL, _PKTTYPE, _IFINDEX, _VLAN_TAG, _VLAN_TAG_PRESENT = 0, 4, 8, 44, 48
_METADATA = {_IFINDEX: "ifindex", _VLAN_TAG: "vlan_tci", _VLAN_TAG_PRESENT: "vlan_present"}
_WRITE_OTHERWISE = "write the filter without it"


def check(code: Sequence[Instruction], hook: Hook) -> None:
    """Raises RefusedError that names what in this filter cannot run in the kernel."""
    if len(code) > LONGEST:
        raise RefusedError(f"the filter compiles to {len(code)} instructions", f"at most {LONGEST} are taken")
    for at, i in enumerate(code):
        if i.code == _JMP | _JA and i.k >= len(code) - at:
            raise RefusedError(
                "protochain jumps backwards, which no filter in the kernel may", _WRITE_OTHERWISE
            )
        if i.code & 0xE7 == _LD | _ABS and i.k >= _ANCILLARY:
            _check_metadata(i.k - _ANCILLARY, hook)


def _check_metadata(number: int, hook: Hook) -> None:
    if number == _PKTTYPE:
        raise RefusedError(
            "a filter cannot ask for inbound and outbound here",
            "leave it out and give the tap a direction: --direction ingress, or egress",
        )
    if number not in _METADATA or hook is not Hook.PORT:
        raise RefusedError(f"metadata {number} of a packet cannot be asked for", _WRITE_OTHERWISE)


class Translation:
    """One filter, written into a program: jumps to `match` or to `miss`."""

    def __init__(self, out: Reader, code: Sequence[Instruction], match: int, miss: int) -> None:
        self._out, self._code = out, code
        self._match, self._miss = match, miss
        self._labels = [out.label() for _ in code]
        self._at = 0

    def write(self) -> None:
        """Append the filter to the program. Raises RefusedError for what is not classic BPF."""
        out = self._out
        out.op32(MOV, A, 0)
        out.op32(MOV, X, 0)
        # Some of libpcap's programs read a word that they never wrote: BSD's kernels have zeros there.
        for slot in sorted({i.k for i in self._code if i.code & 0xE6 == _LD | _MEM}):
            out.store_constant(8, STACK, _word(slot), 0)
        reached = _reached(self._code)
        for at, instruction in enumerate(self._code):
            self._at = at
            out.place(self._labels[at])
            if at in reached:
                self._instruction(instruction)

    def _instruction(self, i: Instruction) -> None:
        kind = i.code & 7
        if _always_misses(i):
            self._out.go(self._miss)
        elif kind in (_LD, _LDX):
            self._load(i)
        elif kind in (_ST, _STX):
            self._out.store(8, STACK, _word(i.k), A if kind == _ST else X)
        elif kind == _ALU:
            self._compute(i)
        elif kind == _JMP:
            self._jump(i)
        elif kind == _RET:
            self._return(i)
        else:
            self._out.op32_reg(MOV, *((A, X) if i.code & _TXA else (X, A)))

    def _load(self, i: Instruction) -> None:
        out, to, size = self._out, A if i.code & 7 == _LD else X, _SIZE.get(i.code & 0x18, 0)
        mode = i.code & 0xE0
        if mode == _IMM:
            out.op32(MOV, to, i.k)
        elif mode == _LEN:
            out.load(4, to, CONTEXT, skb_field("len"))
        elif mode == _MEM:
            out.load(8, to, STACK, _word(i.k))
        elif mode == _MSH and to == X and size == 1:
            out.read(1, X, i.k, self._miss)
            out.op32(AND, X, 0xF)
            out.op32(LSH, X, 2)
        elif mode == _ABS and to == A and i.k >= _ANCILLARY:
            out.load(4, A, CONTEXT, skb_field(_METADATA[i.k - _ANCILLARY]))
        elif mode == _ABS and to == A and size:
            out.read(size, A, i.k, self._miss)
        elif mode == _IND and to == A and size:
            out.read_at(size, A, X, i.k, self._miss)
        else:
            raise _unknown(i)

    def _compute(self, i: Instruction) -> None:
        out, operation = self._out, i.code & 0xF0
        if operation not in _OPERATIONS:
            raise _unknown(i)
        shift, quotient = operation in (LSH, RSH), operation in (DIV, MOD)
        if operation == NEG:
            out.op32(NEG, A, 0)
        elif i.code & _X:
            if quotient:
                out.when32(JEQ, X, 0, self._miss)
            if shift:
                self._shift(operation)
            else:
                out.op32_reg(operation, A, X)
        elif shift and i.k > 31:
            out.op32(MOV, A, 0)
        else:
            out.op32(operation, A, i.k)

    def _shift(self, operation: int) -> None:
        """By X: where it is more than the width, nothing is left."""
        out, small, done = self._out, self._out.label(), self._out.label()
        out.when32(INVERSE[JGT], X, 31, small)
        out.op32(MOV, A, 0)
        out.go(done)
        out.place(small)
        out.op32_reg(operation, A, X)
        out.place(done)

    def _jump(self, i: Instruction) -> None:
        out, condition = self._out, i.code & 0xF0
        if condition == _JA:
            out.go(self._labels[self._at + 1 + i.k])
            return
        if condition not in _CONDITIONS:
            raise _unknown(i)
        true, false = self._labels[self._at + 1 + i.jt], self._labels[self._at + 1 + i.jf]
        if i.jt == 0 and condition in INVERSE:
            condition, true, false = INVERSE[condition], false, true
        if i.code & _X:
            out.when32_reg(condition, A, X, true)
        else:
            out.when32(condition, A, i.k, true)
        out.go(false)

    def _return(self, i: Instruction) -> None:
        out = self._out
        if i.code & 0x18 == _RET_A:
            out.when32(JEQ, A, 0, self._miss)
            out.go(self._match)
        else:
            out.go(self._match if i.k else self._miss)


def _word(number: int) -> int:
    if number >= _WORDS:
        raise RefusedError(f"the filter uses word {number} of its memory", f"there are {_WORDS}")
    return MEMORY + number * 8


def _unknown(i: Instruction) -> RefusedError:
    return RefusedError(f"the filter has an instruction that is not known ({i.code:#x})", _WRITE_OTHERWISE)


def _reached(code: Sequence[Instruction]) -> set[int]:
    """Instructions that can be come by: the verifier refuses a program that has others."""
    reached = {0}
    for at, i in enumerate(code):
        if at not in reached or i.code & 7 == _RET or _always_misses(i):
            continue
        if i.code & 7 != _JMP:
            reached.add(at + 1)
        elif i.code & 0xF0 == _JA:
            reached.add(at + 1 + i.k)
        else:
            reached |= {at + 1 + i.jt, at + 1 + i.jf}
    if max(reached) >= len(code):
        raise RefusedError("the filter does not end", _WRITE_OTHERWISE)
    return reached


def _always_misses(i: Instruction) -> bool:
    """A constant division by zero, or a load from where no packet reaches."""
    kind = i.code & 7
    if kind == _ALU:
        return i.code & 0xF0 in (DIV, MOD) and not i.code & _X and not i.k
    mode = i.code & 0xE0
    far = i.k > FURTHEST
    packet = (kind == _LD and mode in (_ABS, _IND)) or (kind == _LDX and mode == _MSH)
    return packet and far and not (mode == _ABS and i.k >= _ANCILLARY)
