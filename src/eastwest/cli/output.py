"""Where captured packets go: a file, or whoever reads the pipe; who reads slowly stops nothing else."""

import asyncio
import os
import select
import socket
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from eastwest.cli.units import octets
from eastwest.errors import RefusedError

STDOUT = "-"


class Output:
    """A file or pipe, open while it is entered. What is there is cleared by `begin`, not before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._fd = -1
        self._socket: socket.socket | None = None
        self._kept = True

    def __enter__(self) -> Self:
        """Raises RefusedError, UsageError."""
        if self.name == STDOUT:
            if sys.stdout.isatty():
                raise click.UsageError("packets are no text: give -w FILE, or pipe them into `tshark -r -`")
            self._fd = _own_descriptor(sys.stdout.fileno())
        else:
            self._kept = Path(self.name).exists()
            try:
                # Packets hold what people say to each other: nobody else's to read.
                self._fd = os.open(self.name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise RefusedError(f"cannot write {self.name}: {error.strerror}", "correct -w") from None
        mode = os.fstat(self._fd).st_mode
        if stat.S_ISFIFO(mode) and self.name != STDOUT:
            os.set_blocking(self._fd, False)
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(self._fd))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()
        os.close(self._fd)
        if not self._kept:
            Path(self.name).unlink(missing_ok=True)

    def begin(self) -> str:
        """From now on it is ours: what was there goes. Says what that was, if anything."""
        self._kept = True
        found = os.fstat(self._fd)
        if self.name == STDOUT or not stat.S_ISREG(found.st_mode):
            return ""
        os.ftruncate(self._fd, 0)
        return f"overwriting {self.name} ({octets(found.st_size)})" if found.st_size else ""

    async def write(self, data: memoryview) -> None:
        """All of it. Raises BrokenPipeError where nobody reads any more; RefusedError for want of room."""
        while data:
            try:
                data = data[self._some(data) :]
            except BlockingIOError:
                await self._writable()
            except BrokenPipeError:
                raise
            except OSError as error:
                raise RefusedError(f"cannot write {self.name}: {error.strerror}", "free some room") from None

    def _some(self, data: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        return os.write(self._fd, data)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        writable = asyncio.Event()
        loop.add_writer(self._fd, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(self._fd)

    def abandoned(self) -> bool:
        """Whether nobody reads the pipe any more, which else only the next packet would tell."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))


def _own_descriptor(number: int) -> int:
    """A description of our own, so that it can be non-blocking without others noticing, where that goes."""
    if stat.S_ISFIFO(os.fstat(number).st_mode):
        return os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.dup(number)
