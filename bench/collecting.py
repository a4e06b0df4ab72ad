"""The collector's way of a stream to a file, beside a loop that does nothing but `recv` and `write`.

One stream over loopback as fast as it goes, packets with the options that the kernel gives them. The loop
has the collector's buffer of 1 MiB and writes to the same disk. Rate: from the first byte until the
receiver has written all. CPU: the receiving process's. Memory for the file is warm (`machine.warm`),
and there is little of it, since it cools down within two seconds.
"""

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from tests import pcapng
from tests.system.bus_server import running

from bench import machine
from bench.figures import paired, ratios, spread, sure, table
from eastwest.bus.client import Bus
from eastwest.bus.embedded import SERVER_USER
from eastwest.bus.taps import TAPS_BUCKET, TapOrder
from eastwest.collector.intake import BUFFER_BYTES
from eastwest.collector.streamconfig import StreamsConfig
from eastwest.collector.streams import Streams

PACKETS = (60, 1_400)
"""Bytes of a packet, as small and as large as they are."""
_LOOK_SECONDS = 0.001
_KEY, _NO_END = "a-key-of-the-bench", 1 << 50
RECEIVERS = ("plain", "collector")
_OPTIONS = pcapng.option(2, bytes(4)) + pcapng.option(4, bytes(8)) + pcapng.option(2989, bytes(20))


def plain(directory: Path) -> None:
    """The loop: takes one connection, closes it when all is written."""
    buffer = bytearray(BUFFER_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        with connection, (directory / "plain.pcapng").open("wb", buffering=0) as file:
            while received := connection.recv_into(buffer):
                file.write(memoryview(buffer)[:received])
        sys.stdin.read()


async def collector(directory: Path) -> None:
    """The product's, with a bus of its own that tells it of one tap."""
    config = StreamsConfig(
        listen="127.0.0.1:0",
        path=directory / "captures",
        rotate_bytes=_NO_END,
        retention_bytes=_NO_END,
        min_free_bytes=0,
    )
    with running(directory / "bus") as nats:
        async with Bus(nats.files.bus_config(SERVER_USER)) as bus, Streams(config, bus) as streams:
            order = TapOrder(
                name="bench",
                selector="",
                to=streams.to,
                receiver="collector",
                key=_KEY,
                added=time.time_ns(),
                expires=0,
            )
            await bus.bucket(TAPS_BUCKET).put("bench", msgspec.json.encode(order))
            print(streams.to.rpartition(":")[2], flush=True)
            await asyncio.to_thread(sys.stdin.read)


def _written(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*.pcapng"))


class Round:
    """A stream to a receiver: bytes a second, and the receiver's CPU seconds per GB."""

    def __init__(self, receiver: str, size: int, total: int) -> None:
        block = pcapng.packet(bytes(size), options=_OPTIONS)
        chunk = block * (BUFFER_BYTES // len(block))
        count = max(total // len(chunk), 1)
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
            command = [sys.executable, "-m", "bench.collecting", receiver, directory]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdin and process.stdout
                port = int(process.stdout.readline())
                self._send(port, chunk, count, process.pid, Path(directory))
                process.stdin.close()

    def _send(self, port: int, chunk: bytes, count: int, pid: int, directory: Path) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(pcapng.header("bench", "bench", _KEY) + pcapng.interface("p"))
            machine.warm(count * len(chunk))
            cpu, start = machine.cpu(pid), time.perf_counter()
            for _ in range(count):
                connection.sendall(chunk)
            while _written(directory) < count * len(chunk):
                time.sleep(_LOOK_SECONDS)
            spent = time.perf_counter() - start
            cpu = machine.cpu(pid) - cpu
        self.rate = count * len(chunk) / spent
        self.cpu = cpu / (count * len(chunk)) * 1e9


def main(quick: bool) -> None:
    rounds, total = (1, 64 << 20) if quick else (21, 512 << 20)
    with machine.section("A stream to a file, beside recv and write"):
        rows = []
        for size in PACKETS:
            runs: dict[str, list[Round]] = {name: [] for name in RECEIVERS}

            def one(name: str, size: int = size, runs: dict[str, list[Round]] = runs) -> float:
                runs[name].append(Round(name, size, total))
                return runs[name][-1].rate

            found = paired(rounds, {name: lambda name=name, one=one: one(name) for name in RECEIVERS})  # type: ignore[misc]
            for name in RECEIVERS:
                rows.append(
                    (
                        f"{size:,}",
                        name,
                        spread([rate / 1e9 for rate in found[name]], 2),
                        sure(ratios(found[name], found["plain"])) if name != "plain" else "",
                        spread([run.cpu for run in runs[name]], 2),
                    )
                )
        print(f"{rounds} rounds of {total / 1e9:.1f} GB in pairs, in random order.\n")
        table(("bytes of a packet", "receiver", "GB/s", "of the plain loop's rate", "its CPU s / GB"), rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain"]:
        plain(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["collector"]:
        asyncio.run(collector(Path(sys.argv[2])))
    else:
        main("--quick" in sys.argv)
