"""A connection that reads into lent memory: all that has come, whatever pieces it came in."""

import asyncio
import fcntl
import socket
import ssl
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from eastwest.collector.wire import Wire
from tests.conftest import readable, run
from tests.system.bus_server import until

SENT = bytes(range(256)) * 400  # more than six records of TLS


@pytest.fixture
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection: ours and theirs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    with ours, theirs:
        yield ours, theirs


def contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server named "here", and of a client that trusts it."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", "/CN=here", "-addext", "subjectAltName=DNS:here"),
        *("-keyout", str(key), "-out", str(certificate)),
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


def test_all_records_of_tls_are_read_at_once(
    tmp_path: Path, connected: tuple[socket.socket, socket.socket]
) -> None:
    """Record by record, a stream would have a turn of the loop, and its wait, for each 16 KiB."""
    ours, theirs = connected
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    server, client = contexts(tmp_path)

    def send() -> ssl.SSLSocket:
        secure = client.wrap_socket(theirs, server_hostname="here")
        secure.sendall(SENT)
        return secure

    async def secured() -> tuple[Wire, ssl.SSLSocket]:
        async with asyncio.timeout(15):
            sending = asyncio.create_task(asyncio.to_thread(send))
            wire = Wire(ours)
            await wire.secure(server)
            secure = await sending

            async def arrived() -> bool:
                return fcntl.ioctl(secure.fileno(), termios.TIOCOUTQ, bytes(4)) == bytes(4)

            await until(arrived)
            return wire, secure

    wire, secure = asyncio.run(secured())
    room = bytearray(2 * len(SENT))
    with secure:
        assert wire.receive_now(memoryview(room)) == len(SENT)
        assert room[: len(SENT)] == SENT
        assert wire.receive_now(memoryview(room)) is None
    wire.close()


def test_what_came_before_a_reset_is_read_and_then_the_reset(
    connected: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = connected
    wire, room = Wire(ours), memoryview(bytearray(2000))
    theirs.sendall(SENT[:1000])
    assert readable(ours, 15)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    assert wire.receive_now(room) == 1000
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            wire.receive_now(room)
