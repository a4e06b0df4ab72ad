"""Moves packets of a stream from a socket to a file while nothing else is to be done with them: in C.

The loop (include/pour.h) gives up the interpreter's lock, so a fast stream holds up nobody.
"""

import time
from typing import Any, NamedTuple

from eastwest.kernel._blocks import ffi, lib
from eastwest.kernel.blocks import Walker


class Flag:
    """Stops who pours, from another thread: what comes once it is set is left to its reader."""

    def __init__(self) -> None:
        self.memory: Any = ffi.new("int *")

    def set(self, on: bool) -> None:
        self.memory[0] = on


class Poured(NamedTuple):
    """What became of a stream meanwhile."""

    held: int
    """Bytes at the beginning of the buffer that are still to be dealt with."""
    received: int
    """Bytes."""
    written: int
    """Bytes."""
    packets: int
    """Those that were written, or refused by the file."""
    bytes: int
    """Of these packets as they were on the wire, link header included."""
    unwritten: int
    """Of these packets, those that the file refused."""
    empty: bool
    """There is nothing more to be received now."""
    read_error: int
    """errno: there will never be any more."""
    write_error: int
    """errno: behind what is written there may be a part of something more."""


def pour(
    walker: Walker,
    source: int,
    target: int,
    *,
    most: int,
    seconds: float,
    stop: Flag,
    buffer: memoryview,
    held: int,
) -> Poured:
    """Write packets that come from a socket to the end of a file, at most so many bytes for so long.

    buffer[:held] is what has come already; what is no packet, cannot be read, or would be too much is left
    there, and so is everything that comes once `stop` is set.
    """
    room = ffi.from_buffer("unsigned char[]", buffer, require_writable=True)
    order = ffi.new(
        "struct pour *",
        {
            "from": source,
            "to": target,
            "most": most,
            "until": time.monotonic_ns() + round(seconds * 1e9),
            "stop": stop.memory,
            "room": room,
            "size": len(buffer),
        },
    )
    done = ffi.new("struct poured *", {"held": held})
    lib.east_pour(walker.state, order, done)
    return Poured(*(getattr(done, name) for name in Poured._fields))
