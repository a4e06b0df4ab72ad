"""A destination's rings in mapped memory: the kernel writes packets there, and send() takes them from there.

Each CPU has a ring of its own. A position is an offset that only grows; its lowest bits are the place in
the ring. What programs and reader both touch is loaded and stored in C (include/reading.h), in the order it
needs.
"""

import mmap
import os
from typing import NamedTuple

from eastwest.errors import KernelError
from eastwest.kernel._libbpf import ffi, lib
from eastwest.kernel.libbpf import checked, possible_cpus

BEYOND = int(lib.RING_BEYOND)
"""What a CPU's part of the memory has beyond its ring, in bytes."""

SMALLEST = 1 << 17
"""Of all rings the smallest, in bytes: it must hold the longest block."""

LARGEST = 1 << 30
_ARRAY, _MMAPABLE = 2, 1 << 10
_NEVER = (1 << 64) - 1


class Segment(NamedTuple):
    """Whole blocks, one behind the other, from position `start` to `end` in the ring of `cpu`."""

    cpu: int
    start: int
    end: int


def ring_size(memory: int, cpus: int) -> int:
    """The largest ring per CPU, in bytes, that leaves a destination within `memory`; 0 where none does."""
    room = min(memory // cpus - BEYOND, LARGEST)
    return 1 << room.bit_length() - 1 if room >= SMALLEST else 0


def create(size: int, cpus: int) -> int:
    """The map that holds the rings of all CPUs; its descriptor."""
    options = ffi.new(
        "struct bpf_map_create_opts *",
        {"sz": ffi.sizeof("struct bpf_map_create_opts"), "map_flags": _MMAPABLE},
    )
    made = lib.bpf_map_create(_ARRAY, b"tap_rings", 4, size + BEYOND, cpus, options)
    return checked(made, f"cannot make {cpus} rings of {size} bytes")


class Rings:
    """The rings of one destination, for one reader. `size`: of each ring, in bytes, a power of two."""

    def __init__(self, size: int) -> None:
        if size.bit_count() != 1 or not SMALLEST <= size <= LARGEST:
            raise KernelError(
                f"a ring of {size} bytes", f"choose a power of two from {SMALLEST} to {LARGEST}"
            )
        self.size = size
        self.cpus = possible_cpus()
        self.element = size + BEYOND
        self.fd = create(size, self.cpus)
        try:
            self._memory = mmap.mmap(self.fd, self.element * self.cpus)
        except OSError as e:
            os.close(self.fd)
            raise KernelError(f"cannot map {self.cpus} rings of {size} bytes: {e.strerror}") from None
        self._bytes = memoryview(self._memory)
        self._base = ffi.from_buffer(self._memory, require_writable=True)
        self._rings = [
            ffi.cast("struct ring *", ffi.addressof(self._base, cpu * self.element))
            for cpu in range(self.cpus)
        ]
        self.disarm()

    def tail(self, cpu: int) -> int:
        """Where the next segment of this CPU starts: always a block's start."""
        return int(lib.east_ring_tail(self._rings[cpu]))

    def segment(self, cpu: int) -> Segment | None:
        """What is there to be read of this CPU, None where nothing is."""
        start = self.tail(cpu)
        end = int(lib.east_ring_end(self._rings[cpu], start, self.size - 1))
        return Segment(cpu, start, end) if end > start else None

    def view(self, segment: Segment, start: int, length: int) -> memoryview:
        """The memory of a segment from position `start` on, at most `length` bytes; release it after use."""
        lap = segment.start & -self.size
        first = segment.cpu * self.element + int(lib.RING_PAGE) + start - lap
        return self._bytes[first : first + min(length, segment.end - start)]

    def boundary(self, segment: Segment, limit: int) -> tuple[int, int]:
        """The last start or end of a block up to position `limit`, and how many blocks lie before it."""
        blocks = ffi.new("__u64 *")
        ring = self._rings[segment.cpu]
        found = lib.east_ring_boundary(ring, segment.start, limit, self.size - 1, blocks)
        return int(found), int(blocks[0])

    def free(self, segment: Segment, read: int) -> Segment | None:
        """Give the memory up to `read`, a block's start or the end, back; what is left of the segment."""
        done = read == segment.end
        lib.east_ring_free(self._rings[segment.cpu], self._next(segment.start, read) if done else read)
        return None if done else segment._replace(start=read)

    def _next(self, start: int, end: int) -> int:
        """Where the program goes on behind a segment: after what ended beyond the ring, at the next lap."""
        return min(end, (start & -self.size) + self.size)

    def pending(self) -> int:
        """Packets that are written and not freed, counted one by one."""
        count = 0
        for cpu in range(self.cpus):
            start = self.tail(cpu)
            while True:
                end = int(lib.east_ring_end(self._rings[cpu], start, self.size - 1))
                if end <= start:
                    break
                count += self.boundary(Segment(cpu, start, end), end)[1]
                start = self._next(start, end)
        return count

    def arm(self, backlog: int) -> bool:
        """Have the reader woken once more than `backlog` bytes wait in a ring; False where they do now."""
        ready = [lib.east_ring_arm(ring, self.tail(cpu) + backlog) for cpu, ring in enumerate(self._rings)]
        return not any(ready)

    def disarm(self) -> None:
        """Have nobody woken."""
        for ring in self._rings:
            ring.wake_at = _NEVER

    def close(self) -> None:
        """Give the memory back; the kernel does once no program can be writing there."""
        self._bytes.release()
        self._rings.clear()
        ffi.release(self._base)
        self._memory.close()
        os.close(self.fd)
