"""Events that a program writes to a ring buffer, as bytes, to whoever watches the descriptor."""

from collections.abc import Callable
from typing import Any

from eastwest.errors import KernelError
from eastwest.kernel._libbpf import ffi, lib
from eastwest.kernel.libbpf import Map


@ffi.def_extern()  # type: ignore[untyped-decorator]
def ring_buffer_event(context: Any, data: Any, size: int) -> int:
    """libbpf calls this for each event; the context is the handle of a RingBuffer."""
    ffi.from_handle(context).receive(bytes(ffi.buffer(data, size)))
    return 0


class RingBuffer:
    """Reads one ring buffer map; `fd` is readable when there is something to `consume`."""

    def __init__(self, events: Map, receive: Callable[[bytes], None]) -> None:
        self.receive = receive
        self._handle = ffi.new_handle(self)
        self._buffer = lib.ring_buffer__new(events.fd, lib.ring_buffer_event, self._handle, ffi.NULL)
        if not self._buffer:
            raise KernelError(f"cannot read ring buffer {events.name}", errno=ffi.errno)
        self.fd = int(lib.ring_buffer__epoll_fd(self._buffer))

    def consume(self) -> None:
        """Hand over every event that is there."""
        lib.ring_buffer__consume(self._buffer)

    def close(self) -> None:
        lib.ring_buffer__free(self._buffer)
