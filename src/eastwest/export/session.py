"""One transport session to an IPFIX collector: a message is handed to the kernel, or there is an error.

A socket of our own instead of asyncio's streams: those buffer, and drop what they hold in silence when the
peer goes. So what was lost with a connection can be counted.
"""

import array
import asyncio
import fcntl
import socket
from collections import deque
from urllib.parse import urlsplit

from eastwest.bus import address
from eastwest.errors import ConfigError

PORT = 4739
"""https://www.iana.org/assignments/service-names-port-numbers: ipfix"""

_SIOCOUTQ = 0x5411
_CONNECT_SECONDS = 5.0
_UNREAD_MILLISECONDS = 60_000
_REFUSAL_SECONDS = 0.05


def parse(url: str) -> tuple[socket.SocketKind, str, int]:
    """Kind, host and port of udp://HOST[:PORT] or tcp://HOST[:PORT]. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        kind = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}[parts.scheme]
        port = PORT if parts.port is None else parts.port
        if not port or parts.path or parts.query or parts.fragment or parts.username:
            raise ValueError
        if not address.is_host(parts.hostname):
            raise ValueError
    except (ValueError, KeyError):
        # Without the text: who puts a password there would read it in a log.
        raise ConfigError(
            "export.ipfix.collector is no collector", "write it like udp://host:4739 or tcp://host"
        ) from None
    return kind, str(parts.hostname), port


class Session:
    """A connected socket, and what its peer may not have got."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self.stream = connected.type == socket.SOCK_STREAM
        self.used = False
        """Whether records went into it."""
        self._handed = 0
        self._flying: deque[tuple[int, int]] = deque()

    def close(self) -> None:
        self._socket.close()

    async def send(self, message: memoryview | bytes, records: int) -> None:
        """Hand over one message. Raises OSError where it was not: then it may go into another session."""
        self.check()
        await asyncio.get_running_loop().sock_sendall(self._socket, message)
        self._handed += len(message)
        self._flying.append((self._handed, records))
        self.used |= records > 0

    async def refused(self) -> bool:
        """Whether what was sent came back at once: nobody listens there. A stream would not have opened."""
        if self.stream:
            return False
        await asyncio.sleep(_REFUSAL_SECONDS)
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def arrived(self) -> int:
        """Records of messages that have arrived since the last call: of a stream those that the peer's kernel
        has acknowledged, of datagrams all."""
        unacknowledged = array.array("i", [0])
        if self.stream:
            fcntl.ioctl(self._socket, _SIOCOUTQ, unacknowledged)
        records = 0
        while self._flying and self._flying[0][0] <= self._handed - unacknowledged[0]:
            records += self._flying.popleft()[1]
        return records

    @property
    def flying(self) -> int:
        """Records that have been handed over and have not arrived."""
        return sum(records for _, records in self._flying)

    def check(self) -> None:
        """Raises OSError if the connection has ended: a collector never sends, so that its stream can be read
        means that."""
        if not self.stream:
            return
        try:
            said = self._socket.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not said:
            raise ConnectionResetError("it has closed the connection")


async def connect(kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    """A socket to the first address of `host` that takes it. Raises OSError, TimeoutError."""
    async with asyncio.timeout(_CONNECT_SECONDS):
        return await address.connect(host, port, kind, _UNREAD_MILLISECONDS)
