"""What packets an order takes, decided in the kernel: filters become one generated program per port.

All orders of a port are one program that gives a bit for each, since the kernel allows 33 tail calls per
packet and no more. It is generated anew when a filter comes or goes, and put in the old one's place at once:
every packet meets either the old program or the new one, as a whole.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from eastwest.errors import KernelError, RefusedError
from eastwest.kernel import pcap
from eastwest.kernel.assembler import AND, JSET, LSH, MOV, OR, R0, R1, STACK, skb_field
from eastwest.kernel.libbpf import CGROUP_SKB, E2BIG, SCHED_CLS, Map, load_instructions
from eastwest.kernel.pcap import Instruction
from eastwest.tap import payload as patterns
from eastwest.tap.payload import Payload
from eastwest.tap.reading import CONTEXT, MASK, Hook, Reader
from eastwest.tap.translate import Translation, check

ORDERS = 64
"""Orders that one program can tell apart."""

LONGEST_PROGRAM = 1 << 16
"""Instructions: full of divisions, so many take the kernel 2.5 s to load; the time grows as the square."""

_LINK = {Hook.PORT: pcap.ETHERNET, Hook.CGROUP: pcap.RAW}
_PROGRAM_TYPE = {Hook.PORT: SCHED_CLS, Hook.CGROUP: CGROUP_SKB}
_ALLOW = 1
_TOO_MUCH = ("the filters of one port are too much together", "use fewer or shorter ones")


class Wanted(NamedTuple):
    """What an order asks for: a pcap-filter(7) text, empty for every packet, and maybe a byte pattern too."""

    text: str = ""
    payload: Payload | None = None


class Filter(NamedTuple):
    """What can be asked of packets at its kind of hook, and there only."""

    hook: Hook
    code: tuple[Instruction, ...]
    payload: Payload | None = None


def compiled(wanted: Sequence[Wanted], hook: Hook) -> list[Filter | RefusedError]:
    """A filter for each, or why there is none. Blocks while libpcap works; see pcap.compiled."""
    results: list[Filter | RefusedError] = []
    for one, code in zip(wanted, pcap.compiled([one.text for one in wanted], _LINK[hook]), strict=True):
        try:
            results.append(_filter(one, code, hook))
        except RefusedError as e:
            results.append(e)
    return results


def check_text(text: str) -> None:
    """Raises RefusedError for what is no filter anywhere, KernelError where libpcap cannot be asked.

    Needs no privileges, so that who gives an order learns it. A filter that passes may still be refused where
    it is put: on the host's network there is no Ethernet, for instance. Blocks; see pcap.compiled.
    """
    (code,) = pcap.compiled([text], pcap.SYNTAX)
    if isinstance(code, RefusedError):
        raise code
    check(code, Hook.PORT)


def _filter(wanted: Wanted, code: tuple[Instruction, ...] | RefusedError, hook: Hook) -> Filter:
    if isinstance(code, RefusedError):
        raise code
    check(code, hook)
    made = Filter(hook, code, wanted.payload)
    program([made], hook)
    return made


def program(filters: Sequence[Filter], hook: Hook) -> bytes:
    """The instructions of one program: bit i of its answer says whether filter i takes the packet.

    At a port the answer is what it returns (64 bits); at a cgroup, where the verifier allows 0 and 1 only, it
    is in the first two words of the packet's `cb`. Raises RefusedError where they are too many or too long.
    """
    if any(one.hook is not hook for one in filters):
        raise RefusedError("a filter was compiled for another kind of hook", f"compile it for a {hook.value}")
    if len(filters) > ORDERS:
        raise RefusedError(f"{len(filters)} filters for one port", f"at most {ORDERS} are taken")
    out = Reader()
    out.begin()
    for order, one in enumerate(filters):
        match, miss = out.label(), out.label()
        Translation(out, one.code, match, miss).write()
        # The verifier refuses what cannot be come by: a filter may miss every packet.
        if out.used(match):
            out.place(match)
            out.set_bit(order)
        out.place(miss)
        if len(out) > LONGEST_PROGRAM:
            raise RefusedError(*_TOO_MUCH)
    searched = {order: one.payload for order, one in enumerate(filters) if one.payload}
    if searched:
        _payloads(out, searched, hook)
    _answer(out, hook)
    return out.packed()


def _payloads(out: Reader, searched: dict[int, Payload], hook: Hook) -> None:
    """Take the bits of those whose pattern is not there; the payload is looked for once, if at all."""
    none, end = out.label(), out.label()
    _unless_any(out, searched, end)
    patterns.Finder(out, hook, none).write()
    if any(payload.offset is None for payload in searched.values()):
        patterns.copy_window(out, none)
    for order, payload in searched.items():
        miss, found, on = out.label(), out.label(), out.label()
        out.load(4, R1, STACK, MASK[order // 32])
        out.when32(JSET, R1, 1 << order % 32, on)
        out.go(found)
        out.place(on)
        patterns.search(out, payload, miss)
        out.go(found)
        out.place(miss)
        _clear(out, [order])
        out.place(found)
    out.go(end)
    out.place(none)
    _clear(out, searched)
    out.place(end)


def _unless_any(out: Reader, orders: dict[int, Payload], end: int) -> None:
    go_on = out.label()
    for half, place in enumerate(MASK):
        bits = sum(1 << order % 32 for order in orders if order // 32 == half)
        out.load(4, R1, STACK, place)
        out.when32(JSET, R1, bits, go_on)
    out.go(end)
    out.place(go_on)


def _clear(out: Reader, orders: Sequence[int] | dict[int, Payload]) -> None:
    for half, place in enumerate(MASK):
        bits = sum(1 << order % 32 for order in orders if order // 32 == half)
        if bits:
            out.load(4, R1, STACK, place)
            out.op32(AND, R1, ~bits)
            out.store(4, STACK, place, R1)


def _answer(out: Reader, hook: Hook) -> None:
    low, high = MASK
    if hook is Hook.PORT:
        out.load(4, R0, STACK, high)
        out.op(LSH, R0, 32)
        out.load(4, R1, STACK, low)
        out.op_reg(OR, R0, R1)
    else:
        for number, place in enumerate(MASK):
            out.load(4, R1, STACK, place)
            out.store(4, CONTEXT, skb_field("cb") + 4 * number, R1)
        out.op32(MOV, R0, _ALLOW)
    out.exit()


class Programs:
    """The filters of every port, or of every cgroup, of a host: a PROG_ARRAY with a place for each.

    `array` has to stay open: when the last descriptor of a PROG_ARRAY closes, the kernel empties it.
    """

    def __init__(self, array: Map, hook: Hook) -> None:
        self._array, self._hook = array, hook

    def put(self, place: int, filters: Sequence[Filter]) -> None:
        """Have these filters answer at `place` from the next packet on, in place of those before.

        Raises RefusedError where the verifier cannot follow so much, KernelError where the kernel refuses for
        another reason; then the filters before stay.
        """
        code = program(filters, self._hook)
        try:
            descriptor = load_instructions(_PROGRAM_TYPE[self._hook], code, "eastwest_filter")
        except KernelError as e:
            if e.errno == E2BIG:
                raise RefusedError(*_TOO_MUCH) from e
            raise
        try:
            self._array.update(place.to_bytes(4, "little"), descriptor.to_bytes(4, "little"))
        finally:
            os.close(descriptor)

    def remove(self, place: int) -> None:
        """From the next packet on no filter answers at `place`: nobody takes anything."""
        self._array.delete(place.to_bytes(4, "little"))
