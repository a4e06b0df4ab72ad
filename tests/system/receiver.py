"""Who receives copies, for tests: a listener that keeps every byte, and answers like a collector or not."""

import socket
import ssl
import struct
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.conftest import readable
from tests.kernel.blocks import Packet, Section, parse
from tests.kernel.tapping import until

REFUSED = (1 << 64) - 1
_TURN_SECONDS = 0.02
_PACKET = 6


@dataclass
class Stream:
    """One connection: what came, and whether it came to its end."""

    data: bytearray = field(default_factory=bytearray)
    count: int = 0
    """Packets that are whole."""
    ended: bool = False
    """The sender said that this was all."""
    waits: bool = False
    """It reads nothing now."""
    _at: int = 0

    def take(self, data: bytes) -> None:
        self.data += data
        while len(self.data) - self._at >= 8:
            kind, length = struct.unpack_from("=II", self.data, self._at)
            if len(self.data) - self._at < length:
                break
            self._at += length
            self.count += kind == _PACKET

    @property
    def sections(self) -> list[Section]:
        return parse(bytes(self.data), whole=False)

    @property
    def packets(self) -> list[Packet]:
        return [packet for section in self.sections for packet in section.packets]


class Receiver:
    """Listens on the loopback of the thread's network namespace; one thread for each connection."""

    def __init__(self, *, confirms: bool = True, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._confirms = confirms
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.streams: list[Stream] = []
        self._reads = threading.Event()
        self._reads.set()
        self.refuses = False
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def to(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Be gone, and every connection with it."""
        self.go_on()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join()

    def stall(self) -> None:
        """Take connections, and read nothing from now on."""
        self._reads.clear()
        until(lambda: all(stream.waits or stream.ended for stream in self.streams))

    def go_on(self) -> None:
        self._reads.set()

    def hang_up(self) -> None:
        """Break what is connected."""
        for one in self._open:
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)
                one.close()
            except OSError:
                continue
        self._open.clear()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connected)
            self._start(self._read, connected)

    def _read(self, connected: socket.socket) -> None:
        stream = Stream()
        try:
            if self._tls:
                connected = self._tls.wrap_socket(connected, server_side=True)
            self.streams.append(stream)
            if self.refuses:
                connected.sendall(REFUSED.to_bytes(8, "little"))
            while data := self._receive(connected, stream):
                stream.take(data)
                if self._confirms and not self.refuses:
                    connected.sendall(stream.count.to_bytes(8, "little"))
            stream.ended = True
        except (OSError, ValueError):  # it was hung up meanwhile
            stream.waits = True
        finally:
            connected.close()

    def _receive(self, connected: socket.socket, stream: Stream) -> bytes:
        while True:
            stream.waits = not self._reads.is_set()
            self._reads.wait()
            stream.waits = False
            buffered = isinstance(connected, ssl.SSLSocket) and connected.pending()
            if buffered or readable(connected, _TURN_SECONDS):
                return connected.recv(1 << 16)
