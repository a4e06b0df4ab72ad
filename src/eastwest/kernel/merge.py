"""Hands on what is in all rings of a destination as one row of packets, in the order of their times.

Nothing is moved for that: the row is a list of runs of packets that lie one behind the other in one ring, and
a socket is given them from where they lie. The work is in C (include/merging.h).
"""

import os
from typing import Any

from eastwest.kernel._libbpf import ffi, lib
from eastwest.kernel.rings import Rings

MOST_BYTES = 1 << 20
"""Of one row, so that memory is given back before all is through; one packet more may be in it."""

_LONG = 1 << 14
"""A run so long is handed on by itself where only one piece can be: TLS sends no larger ones."""

_ROOM = 1 << 17
"""Bytes of the copy that short runs are gathered in there."""

_NO_LIMIT = (1 << 64) - 1
_SET_BACK = 1_000_000_000
"""What has a time so far ahead, in ns, waits for no time: the clock was set back since."""


class Merge:
    """The row of packets that is handed on next."""

    def __init__(self, rings: Rings) -> None:
        self._rings = rings
        self._cursors = rings.cursors()
        self._merge: Any = ffi.new("struct merge *", {"mask": rings.size - 1})
        self._limits: Any = ffi.new("struct merge_limits *", {"bytes": MOST_BYTES})
        self._copy = bytearray()

    @property
    def left(self) -> int:
        """Bytes of the row that are not handed on yet."""
        return int(self._merge.left)

    def look(self, old: int = _NO_LIMIT) -> bool:
        """Begin a new row, of packets up to the time `old` (ns since 1970); whether younger ones wait."""
        self._limits.old, self._limits.until = old, min(old + _SET_BACK, _NO_LIMIT)
        return bool(lib.east_merge_look(self._merge, self._cursors, self._rings.cpus, self._limits))

    def drop(self) -> None:
        """Forget the row. Its packets are in the rings, the one that was handed on in part as well."""
        self._merge.left = 0

    def send(self, descriptor: int) -> int:
        """Hand on to a socket, without waiting; how many bytes it took. Raises OSError."""
        sent = int(lib.east_merge_send(self._merge, descriptor))
        if sent < 0:
            raise OSError(-sent, os.strerror(-sent))
        return sent

    def piece(self) -> memoryview:
        """The beginning of the row in one piece, the same until some of it is handed on; release it."""
        first = self._merge.pieces[self._merge.first]
        if first.iov_len >= min(_LONG, self.left):
            return self._rings.view(first.iov_base, first.iov_len)
        if not self._copy:
            self._copy = bytearray(_ROOM)
        room = ffi.from_buffer("unsigned char[]", self._copy, require_writable=True)
        return memoryview(self._copy)[: lib.east_merge_gather(self._merge, room, _ROOM)]

    def sent(self, size: int) -> int:
        """So many bytes were handed on: give their memory back; how many packets that completed."""
        return int(lib.east_merge_sent(self._merge, size))
