"""A connection, plain or TLS: bytes come into a buffer that somebody lends, and none are read ahead.

Not asyncio's transports: those read ahead of who they read for, and end a TLS connection before the last
answer is out.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

_BLOCKED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_AWAY_BYTES = 1 << 16
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class Wire:
    """Takes over a connected socket. All of it for one task, but for `offer`."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._rest = b""
        self._failed: OSError | None = None
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)

    @property
    def plain(self) -> bool:
        """No TLS: one thread may receive while another sends."""
        return not isinstance(self._socket, ssl.SSLSocket)

    @property
    def descriptor(self) -> int:
        """The socket's, for who receives from it by himself."""
        return self._socket.fileno()

    async def secure(self, context: ssl.SSLContext, server_hostname: str | None = None) -> None:
        """Speak TLS from here on; as the server, unless there is a name to look for. Raises OSError."""
        made = context.wrap_socket(
            self._socket,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=True,
        )
        self._socket = made
        await self._until_done(made.do_handshake)

    def receive_now(self, room: memoryview) -> int | None:
        """Bytes read, all that there are or fit, 0 at the end of what the other end sends; None where there
        is nothing yet. Raises OSError.

        One read may bring less (over TLS a record of 16 KiB), and each turn of whoever calls has its price.
        """
        if self._failed:
            raise self._failed
        taken = 0
        received: int | None = None
        try:
            while taken < len(room) and (received := self._receive_piece(room[taken:])):
                taken += received
        except OSError as error:
            if not taken:
                raise
            self._failed = error
            return taken
        return taken or received

    def _receive_piece(self, room: memoryview) -> int | None:
        try:
            return self._socket.recv_into(room)
        except _BLOCKED:
            return None
        except ssl.SSLZeroReturnError:
            return 0

    async def receive(self, room: memoryview) -> int:
        """The same, as soon as there is something."""
        while True:
            found = self.receive_now(room)
            if found is not None:
                return found
            await self.readable()

    async def readable(self) -> None:
        """Wait until there is something to read, or the end."""
        await self._ready(write=False)

    async def send(self, data: bytes) -> None:
        """Hand all of it to the kernel, after what `offer` left. Raises OSError."""
        view = memoryview(self._rest + data if self._rest else data)
        self._rest = b""
        while view:
            try:
                view = view[self._socket.send(view) :]
            except _BLOCKED:
                await self._ready(write=True)

    def offer(self, data: bytes) -> bool:
        """Send it if there is room at once, and say so; what was begun is finished first."""
        with suppress(OSError):  # whoever reads learns of it
            if self._rest:
                self._rest = self._rest[self._socket.send(self._rest) :]
            if not self._rest:
                self._rest = data[self._socket.send(data) :]
                return True
        return False

    async def finish(self, seconds: float) -> None:
        """Send no more, and wait until the other end has nothing more to say, but not longer than this.

        What was sent last could be thrown away with the connection, if it were closed with bytes unread.
        """
        room = memoryview(bytearray(_AWAY_BYTES))
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                if isinstance(self._socket, ssl.SSLSocket):
                    with suppress(*_BLOCKED):
                        self._socket.unwrap()  # tells the end
                self._socket.shutdown(socket.SHUT_WR)
                while await self.receive(room):
                    pass

    def close(self) -> None:
        """Nothing is waited for."""
        self._socket.close()

    async def _until_done(self, step: Callable[[], object]) -> None:
        while True:
            try:
                step()
            except ssl.SSLWantWriteError:
                await self._ready(write=True)
            except ssl.SSLWantReadError:
                await self._ready(write=False)
            else:
                return

    async def _ready(self, write: bool) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        descriptor = self._socket.fileno()
        (loop.add_writer if write else loop.add_reader)(descriptor, _wake, future)
        try:
            await future
        finally:
            (loop.remove_writer if write else loop.remove_reader)(descriptor)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def listen(address: tuple[str, int]) -> socket.socket:
    """A socket that accepts without waiting. Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    made = socket.create_server(address, family=family, backlog=128)
    made.setblocking(False)
    return made
