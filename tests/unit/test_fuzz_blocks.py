"""The reader of pcapng under hostile streams: no byte beyond its end is read, and it says the same however
the stream is cut into pieces. EASTWEST_FUZZ_STREAMS: how many (`make fuzz`: a million)."""

import ctypes
import mmap
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from eastwest.collector import section
from eastwest.kernel.blocks import Chooser, Malformed, Stop, Walker
from tests.hostile_streams import hostile

COUNT = int(os.environ.get("EASTWEST_FUZZ_STREAMS", "20000"))
ROOM = 1 << 16


@contextmanager
def guarded() -> Iterator[memoryview]:
    """Memory whose end is the last byte that may be touched: what reads beyond it dies by SIGSEGV."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, ROOM + page)
    view = memoryview(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + ROOM), page, 0) == 0, os.strerror(ctypes.get_errno())
    yield view[:ROOM]


Found = tuple[int, int, int, str]
"""Where it ended, packets, bytes, and why."""


def read(stream: memoryview, pieces: list[int]) -> Found:
    """Read a stream whose bytes come in pieces that end at these places, as the collector does."""
    walker, chooser = Walker(), Chooser(0)
    at = packets = wire = 0
    for end in pieces:
        while True:
            known = walker.interfaces
            try:
                found = walker.walk(stream, at, end)
            except Malformed as error:
                return at, packets, wire, error.reason
            assert at <= found.end <= end
            chosen, number, told = chooser.choose(stream, at, found.end, 0, known)
            assert len(chosen) <= found.end - at
            assert 32 * number <= len(chosen)
            assert len(told) <= number
            packets, wire, at = packets + found.packets, wire + found.bytes, found.end
            if found.stop is Stop.INCOMPLETE:
                break
            if found.stop is not Stop.BROKEN:
                assert 12 <= found.length <= end - at
                _words(found.stop, stream[at : at + found.length])
                at += found.length
    return at, packets, wire, ""


def _words(kind: Stop, block: memoryview) -> None:
    """Read a block that is no packet; what is written in its stead can be read again, and is the same."""
    try:
        if kind is Stop.SECTION:
            once = section.header(block).section
            assert section.header(once).section == once
            assert section.header(once).key == b""
        elif kind is Stop.INTERFACE:
            once = section.interface(block)
            assert section.interface(once) == once
    except Malformed:
        pass


def test_hostile_streams() -> None:
    """Whole and in pieces; memory does not grow with what was read."""
    chance = random.Random(os.environ.get("EASTWEST_FUZZ_SEED", "1"))
    reasons: dict[str, int] = {}
    with guarded() as memory:
        before = 0
        for number in range(COUNT):
            told = hostile(chance)
            place = ROOM - len(told)
            memory[place:] = told
            stream = memory[place:]
            cuts = sorted(chance.randrange(len(told) + 1) for _ in range(chance.randrange(3)))
            whole = read(stream, [len(told)])
            assert read(stream, [*cuts, len(told)]) == whole, told.hex()
            assert whole[1] * 32 <= whole[0]
            reasons[whole[3]] = reasons.get(whole[3], 0) + 1
            if number == COUNT // 4:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
    print(reasons)
    assert len(reasons) == 10, "every reason to refuse a stream has been met, and sound ones"
