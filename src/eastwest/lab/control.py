"""A lab in the background takes orders at a socket in its directory: `pause` (answer: the record), `resume`.

One order per connection; the answer is one JSON document.
"""

import asyncio
import contextlib
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from eastwest.errors import EastwestError, NotFoundError
from eastwest.lab.lab import Lab
from eastwest.lab.record import Record

SOCKET = "control.sock"

Order = Literal["pause", "resume"]


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of an order."""

    record: Record | None = None
    error: str = ""
    remedy: str = ""


class Control:
    """Serves orders to `lab`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self._lab.directory / SOCKET)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        order = (await reader.readline()).decode(errors="replace").strip()
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            writer.write(msgspec.json.encode(await self._obey(order)))
            await writer.drain()

    async def _obey(self, order: str) -> Answer:
        try:
            match order:
                case "pause":
                    return Answer(record=await self._lab.pause())
                case "resume":
                    await self._lab.resume()
                    return Answer()
        except EastwestError as error:
            return Answer(error=error.what, remedy=error.remedy)
        return Answer(error=f"unknown order {order[:40]!r}")


async def ask(directory: Path, order: Order) -> Record | None:
    """Give an order to the lab in `directory`. NotFoundError: nobody takes orders there."""
    try:
        reader, writer = await asyncio.open_unix_connection(directory / SOCKET)
    except OSError as error:
        what = f"the lab {directory.name} does not answer ({error.strerror})"
        raise NotFoundError(what, "see `eastwest lab up`") from error
    with contextlib.closing(writer):
        writer.write(order.encode() + b"\n")
        answer = await reader.read()
    try:
        decoded = msgspec.json.decode(answer, type=Answer)
    except msgspec.DecodeError as error:
        raise EastwestError(f"the lab {directory.name} ended before it answered") from error
    if decoded.error:
        raise EastwestError(decoded.error, decoded.remedy)
    return decoded.record
