"""The collector's streams for the tests: a real bus, real sockets, and a sender that knows what it sent."""

import asyncio
import functools
import json
import ssl
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from eastwest.bus.client import Bus
from eastwest.bus.embedded import SERVER_USER
from eastwest.bus.taps import TAPS_BUCKET, TapOrder
from eastwest.collector.streamconfig import StreamsConfig
from eastwest.collector.streams import Streams, StreamStatus
from tests import pcapng
from tests.system.bus_server import RunningServer, running, until

KEY = "a-secret-of-this-test"


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """An asynchronous test, run in a loop of its own."""

    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        asyncio.run(test(*given, **named))

    return run


def order(name: str, to: str, **settings: Any) -> bytes:
    """A tap's, as it is on the bus."""
    told = {"key": KEY, "expires": 0, "receiver": "collector", "selector": "", "added": time.time_ns()}
    return msgspec.json.encode(TapOrder(name=name, to=to, **told | settings))


@dataclass
class Site:
    """Streams that run, and what a test does to them."""

    nats: RunningServer
    bus: Bus
    streams: Streams
    path: Path

    async def tap(self, name: str = "web", **settings: Any) -> None:
        await self.bus.bucket(TAPS_BUCKET).put(name, order(name, self.streams.to, **settings))

    async def untap(self, name: str = "web") -> None:
        await self.bus.bucket(TAPS_BUCKET).delete(name)

    def status(self, tap: str = "web", host: str = "h1") -> StreamStatus:
        (found,) = [s for s in self.streams.status() if (s.tap, s.host) == (tap, host)]
        return found

    async def refused(self, reason: str, count: int = 1) -> None:
        async def enough() -> bool:
            return self.streams.refused().get(reason, 0) >= count

        await until(enough)

    def files(self, tap: str = "web") -> list[Path]:
        return sorted((self.path / tap).glob("*.pcapng"))

    @asynccontextmanager
    async def sender(
        self, tap: str = "web", host: str = "h1", key: str | None = KEY
    ) -> AsyncIterator["Sender"]:
        """A connection that has sent its section header."""
        async with Sender.connected(self.streams.to) as sender:
            await sender.send(pcapng.header(host, tap, key))
            yield sender


@asynccontextmanager
async def site(directory: Path, **settings: Any) -> AsyncIterator[Site]:
    with running(directory / "bus") as nats:
        async with Bus(nats.files.bus_config(SERVER_USER)) as bus:
            config = StreamsConfig(
                **{"listen": "127.0.0.1:0", "path": directory / "captures", "min_free_bytes": 0} | settings
            )
            async with Streams(config, bus) as streams:
                yield Site(nats, bus, streams, config.path)


@dataclass
class Sender:
    """What a probe does: sends blocks, reads how many packets the collector has."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    @asynccontextmanager
    async def connected(cls, to: str, tls: ssl.SSLContext | None = None) -> AsyncIterator["Sender"]:
        host, _, port = to.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()

    async def send(self, *blocks: bytes) -> None:
        self.writer.write(b"".join(blocks))
        await self.writer.drain()

    async def confirmed(self) -> int:
        """The next count. Raises IncompleteReadError where the collector has closed."""
        async with asyncio.timeout(15):
            (count,) = struct.unpack("<Q", await self.reader.readexactly(8))
            return int(count)

    async def until_confirmed(self, packets: int) -> None:
        while (count := await self.confirmed()) != packets:
            assert count < packets

    async def end(self) -> int:
        """Half-close; the last count, behind which the collector closes."""
        self.writer.write_eof()
        async with asyncio.timeout(15):
            told = await self.reader.read()
        return int(struct.unpack("<Q", told[-8:])[0])


def packets(*files: Path) -> int:
    """How many capinfos finds in all of them; it must find nothing wrong."""
    command = ["capinfos", "-Tmrc", *map(str, files)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    found = [line.rpartition(",")[2] for line in done.stdout.splitlines()]
    assert len(found) == len(files)
    return sum(map(int, found))


def tshark(file: Path, *fields: str) -> list[list[str]]:
    """These fields of every packet, as tshark reads them; it must find nothing wrong with the file."""
    wanted = [word for field in fields for word in ("-e", field)]
    command = ["tshark", "-r", str(file), "-T", "fields", "-E", "separator=/t", *wanted]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    words = [line for line in done.stderr.splitlines() if "Running as user" not in line]
    assert (done.returncode, words) == (0, []), done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def comment(words: dict[str, str]) -> bytes:
    return pcapng.option(1, json.dumps(words).encode())
