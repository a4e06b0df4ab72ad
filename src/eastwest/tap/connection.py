"""A connection to whoever receives copies: TCP, with TLS or without; no call but those that say so waits.

A socket of our own instead of asyncio's streams: those copy and buffer what is sent, and what they hold when
a connection breaks is nowhere counted. What `send` takes here is in the kernel's hands.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

CONNECT_SECONDS = 10.0
_RECEIVE = 1 << 16
_IDLE, _INTERVAL, _COUNT = 15, 5, 3
"""Seconds of silence before a peer is asked whether it is still there, and how often."""


class Peer(NamedTuple):
    """Who receives; `tls` None: in clear text."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class Connection:
    """A connected socket. Calls never wait; `writable` and `receive` do."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._writers: list[asyncio.Future[None]] = []
        self._readers: list[asyncio.Future[None]] = []
        self._wants_to_read = False
        """What `send` was stopped by: over TLS, it may have to hear something first."""

    @property
    def secure(self) -> bool:
        return isinstance(self._socket, ssl.SSLSocket)

    @property
    def descriptor(self) -> int:
        """Of the socket that takes what is sent as it is; -1 over TLS."""
        return -1 if self.secure else self._socket.fileno()

    def send(self, data: memoryview) -> int:
        """Hand over what is taken now, and say how much. Over TLS the same again, if it was nothing."""
        try:
            self._wants_to_read = False
            return self._socket.send(data)
        except ssl.SSLWantWriteError:
            raise BlockingIOError from None
        except ssl.SSLWantReadError:
            self._wants_to_read = True
            raise BlockingIOError from None

    async def writable(self) -> None:
        """Wait until `send` may take something again."""
        await self._until(self._readers if self._wants_to_read else self._writers)

    async def receive(self) -> bytes:
        """What was said; empty: that was all. Raises OSError where the connection has broken."""
        while True:
            try:
                return self._socket.recv(_RECEIVE)
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._until(self._readers)
            except ssl.SSLWantWriteError:
                await self._until(self._writers)

    async def _until(self, waiting: list[asyncio.Future[None]]) -> None:
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        number, reads = self._socket.fileno(), waiting is self._readers
        waiting.append(future)
        if len(waiting) == 1:
            (loop.add_reader if reads else loop.add_writer)(number, _wake, waiting)
        try:
            await future
        finally:
            waiting.remove(future)
            if not waiting:
                (loop.remove_reader if reads else loop.remove_writer)(number)

    async def shake_hands(self) -> None:
        """Begin TLS. Raises OSError (ssl.SSLError) where the other end is not to be believed."""
        assert isinstance(self._socket, ssl.SSLSocket)
        while True:
            try:
                self._socket.do_handshake()
            except ssl.SSLWantReadError:
                await self._until(self._readers)
            except ssl.SSLWantWriteError:
                await self._until(self._writers)
            else:
                return

    def finish(self) -> None:
        """Say that this was all. Over TLS nothing can be heard after that."""
        with suppress(OSError):
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket.unwrap()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


def _wake(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)


class Dialler:
    """Connects to a peer; `ahead` is told each address before a packet goes there."""

    def __init__(self, peer: Peer, ahead: Callable[[str, int], None]) -> None:
        self._peer = peer
        self._ahead = ahead
        self._lookup: asyncio.Future[list[str]] | None = None

    async def connect(self) -> Connection:
        """The first of its addresses that answers. Raises OSError, TimeoutError."""
        async with asyncio.timeout(CONNECT_SECONDS):
            problem = OSError(f"{self._peer.host} has no address")
            for address in await self._addresses():
                self._ahead(address, self._peer.port)
                try:
                    return await self._reach(address)
                except OSError as error:
                    problem = error
            raise problem

    async def _addresses(self) -> list[str]:
        """In figures. A look-up may hang: then the next attempt waits for the same one, in a thread that
        nobody else needs."""
        if self._lookup is None or self._lookup.done():
            self._lookup = _look_up(self._peer.host)
        return await asyncio.shield(self._lookup)

    async def _reach(self, address: str) -> Connection:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (
                (socket.TCP_KEEPIDLE, _IDLE),
                (socket.TCP_KEEPINTVL, _INTERVAL),
                (socket.TCP_KEEPCNT, _COUNT),
            ):
                made.setsockopt(socket.IPPROTO_TCP, option, value)
            await asyncio.get_running_loop().sock_connect(made, (address, self._peer.port))
            if self._peer.tls:
                made = self._peer.tls.wrap_socket(
                    made, server_hostname=self._peer.host, do_handshake_on_connect=False
                )
                connection = Connection(made)
                await connection.shake_hands()
                return connection
        except BaseException:
            made.close()
            raise
        return Connection(made)


def _look_up(host: str) -> "asyncio.Future[list[str]]":
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[str]] = loop.create_future()

    def tell(found: list[str] | OSError) -> None:
        if future.cancelled():
            return
        if isinstance(found, OSError):
            future.set_exception(found)
            future.exception()  # who asked may have gone
        else:
            future.set_result(found)

    def work() -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found: list[str] | OSError = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        except (OSError, UnicodeError) as error:
            found = OSError(f"{host} is not found: {error}")
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=work, name="look-up", daemon=True).start()
    return future
