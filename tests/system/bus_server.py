"""A real nats-server for the tests: loopback, a free port, a directory of its own."""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from eastwest.bus.embedded import NatsServer, NatsServerConfig
from eastwest.errors import BusError
from tests.conftest import require


class RunningServer:
    """A nats-server that a test can stop, kill and start again."""

    def __init__(self, directory: Path) -> None:
        self.files = NatsServer(NatsServerConfig(state_dir=directory))
        try:
            self.files.prepare()
        except BusError as error:
            require(False, str(error))
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self.files.command(), stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running(directory: Path) -> Iterator[RunningServer]:
    server = RunningServer(directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 15.0) -> None:
    """Wait for a condition; fail if it does not hold in time."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)
