"""From a socket to a file: what is written, where it stops, and what is left for Python."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from eastwest.kernel.blocks import Malformed, Stop, Walker
from eastwest.kernel.pour import Flag, Poured, pour
from tests.conftest import readable
from tests.pcapng import interface, own, packet, section

ROOM = 1 << 20
PACKETS = [packet(bytes([n]) * (60 + n), options=own(n)) for n in range(200)]
SENT = b"".join(PACKETS)


class Stream:
    """A stream that has begun, and a file for its packets."""

    def __init__(self, path: Path) -> None:
        self.near, self.far = socket.socketpair()
        self.path = path
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT)
        self.stop = Flag()
        self.walker = Walker()
        self.room = memoryview(bytearray(ROOM))
        words = section() + interface()
        self.walker.pass_over(words, 0, len(words))

    def pour(self, most: int = ROOM, seconds: float = 5, held: bytes = b"") -> Poured:
        self.room[: len(held)] = held
        return pour(
            self.walker,
            self.near.fileno(),
            self.file,
            most=most,
            seconds=seconds,
            stop=self.stop,
            buffer=self.room,
            held=len(held),
        )

    def left(self, poured: Poured) -> bytes:
        return bytes(self.room[: poured.held])

    def close(self) -> None:
        for end in (self.near, self.far):
            end.close()
        os.close(self.file)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    made = Stream(tmp_path / "file")
    yield made
    made.close()


def test_whole_packets_are_written_and_the_rest_is_kept(stream: Stream) -> None:
    """What comes in two parts is put together; nothing waits where nothing comes."""
    stream.far.sendall(SENT[:10_001])
    first = stream.pour()
    stream.far.sendall(SENT[10_001:])
    second = stream.pour(held=stream.left(first))
    assert stream.path.read_bytes() == SENT
    assert (first.empty, second.empty, second.held) == (True, True, 0)
    assert first.written + first.held == first.received == 10_001
    assert first.packets + second.packets == 200
    assert first.bytes + second.bytes == sum(60 + n for n in range(200))


def test_it_stops_before_there_would_be_too_much(stream: Stream) -> None:
    """Of what came then, nothing is written, whole as it is."""
    stream.far.sendall(SENT)
    poured = stream.pour(most=len(SENT) - 1)
    assert (poured.packets, poured.written, stream.left(poured)) == (0, 0, SENT)
    assert not poured.empty
    assert stream.path.read_bytes() == b""


def test_it_stops_once_somebody_reads(stream: Stream) -> None:
    """What was there already is his as well."""
    stream.stop.set(True)
    stream.far.sendall(SENT)
    poured = stream.pour()
    assert (poured.packets, stream.left(poured)) == (0, SENT)
    stream.stop.set(False)
    assert stream.pour(held=SENT).packets == 200


@pytest.mark.parametrize("strange", [interface("b"), b"\6\0\0\0\7\0\0\0" + bytes(8)])
def test_what_is_no_packet_is_left(stream: Stream, strange: bytes) -> None:
    """All before it is written; the next walk says what it is."""
    stream.far.sendall(SENT + strange)
    poured = stream.pour()
    assert (poured.packets, stream.left(poured)) == (200, strange)
    assert stream.path.read_bytes() == SENT
    try:
        assert stream.walker.walk(stream.room, 0, poured.held).stop is Stop.INTERFACE
    except Malformed as error:
        assert error.reason == "a block of an impossible length"


def test_what_the_file_refuses_is_counted(stream: Stream) -> None:
    """And left out; what comes later stays where it is."""
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), stream.file)
    stream.far.sendall(SENT + PACKETS[0][:50])
    poured = stream.pour()
    assert (poured.write_error, poured.packets, poured.unwritten, poured.written) == (
        errno.ENOSPC,
        200,
        200,
        0,
    )
    assert stream.left(poured) == PACKETS[0][:50]


def test_an_end_is_no_error(stream: Stream) -> None:
    """It is told by the next read, as when nothing is there."""
    stream.far.sendall(SENT)
    stream.far.close()
    poured = stream.pour()
    assert (poured.packets, poured.empty, poured.read_error) == (200, True, 0)


def test_a_reset_is_an_error_after_what_came_before(stream: Stream) -> None:
    """Nobody else would hear of it: the socket says it once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        stream.near.close()
        stream.near, _ = server.accept()
    far.sendall(SENT)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert readable(stream.near, 15)
    far.close()
    poured = stream.pour()
    assert (poured.packets, poured.empty, poured.read_error) == (200, True, errno.ECONNRESET)


def test_time_is_up(stream: Stream) -> None:
    """Nothing is received any more, however much there is."""
    stream.far.sendall(SENT)
    poured = stream.pour(seconds=0)
    assert (poured.received, poured.empty) == (0, False)
    assert stream.pour().packets == 200
