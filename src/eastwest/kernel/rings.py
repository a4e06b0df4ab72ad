"""A destination's rings in mapped memory: the kernel writes packets there, sendmsg() takes them there.

Each CPU has a ring of its own. What programs and reader both touch is loaded and stored in C
(include/reading.h), in the order it needs.
"""

import mmap
import os
from typing import Any

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

    def pending(self) -> int:
        """Packets that are written and not freed, counted one by one."""
        return sum(int(lib.east_ring_pending(ring, self.size - 1)) for ring in self._rings)

    def crowded(self, backlog: int) -> bool:
        """Whether more than `backlog` bytes wait in a ring."""
        return any(lib.east_ring_waiting(ring) > backlog for ring in self._rings)

    def arm(self, backlog: int) -> bool:
        """Have the reader woken once more than `backlog` bytes wait in a ring; False where they do now."""
        ready = [lib.east_ring_arm(ring, backlog) for ring in self._rings]
        return not any(ready)

    def disarm(self) -> None:
        """Have nobody woken."""
        for ring in self._rings:
            ring.wake_at = _NEVER

    def cursors(self) -> Any:
        """What a merge of all rings needs of each: struct merge_cursor[]."""
        return ffi.new("struct merge_cursor[]", [{"ring": ring} for ring in self._rings])

    def view(self, memory: Any, length: int) -> memoryview:
        """`length` bytes from this pointer into the rings on; release it after use."""
        first = int(ffi.cast("char *", memory) - ffi.cast("char *", self._base))
        return self._bytes[first : first + length]

    def close(self) -> None:
        """Give the memory back; the kernel does once no program can be writing there."""
        self._bytes.release()
        self._rings.clear()
        ffi.release(self._base)
        self._memory.close()
        os.close(self.fd)
