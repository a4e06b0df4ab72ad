"""What changes in an OVSDB database, as its server tells it (RFC 7047): asked once, never polled.

On the event loop, and not by the `ovs` library: for 10,000 ports that takes 4.0 s of CPU and 87 MiB, this,
with all that is made of them, 0.4 s and 35 MiB. Its poller is select(), which fails in a process with more
than 1,024 descriptors, and behind a UNIX socket it waits for ever for a server that hangs.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec
import numpy as np

from eastwest.errors import InventoryError
from eastwest.inventory.model import readable

Endpoint = Path | tuple[str, int]
"""A UNIX socket, or host and port."""

Map = tuple[Literal["map"], list[tuple[str, str]]]
"""A map of strings, as OVSDB writes it."""

Optional = int | tuple[Literal["set"], list[int]]
"""A number or none: the empty set."""

Change = TypeVar("Change", bound=msgspec.Struct)

_CHUNK = 1 << 18
_LARGEST = 64 << 20
_MONITOR, _ECHO = 1, "echo"


def references(value: tuple[str, Any]) -> list[str]:
    """UUIDs of the rows that a column refers to: `["uuid", …]` or `["set", [["uuid", …], …]]`."""
    try:
        if value[0] == "uuid":
            return [msgspec.convert(value[1], str)]
        return [one for _, one in msgspec.convert(value[1], list[tuple[Literal["uuid"], str]])]
    except msgspec.ValidationError as e:
        raise _nonsense(e) from e


def _nonsense(error: object) -> InventoryError:
    return InventoryError(f"says what cannot be understood: {readable(str(error))[:200]}")


class _Message(msgspec.Struct):
    """A request, a reply or a notification."""

    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"null")
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: Any = None
    id: str | int | None = None


_message = msgspec.json.Decoder(_Message)


class Monitor(Generic[Change]):
    """A connection that follows some columns of one database.

    `change` has a field for each table: row UUID → something with `new`, the row as it is now, or None where
    it is gone. InventoryError: the server is not there, goes, hangs, or says what cannot be understood.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        database: str,
        columns: Mapping[str, Sequence[str]],
        change: type[Change],
        *,
        patience: float,
        quiet: float,
    ) -> None:
        """`patience`: seconds for an answer; `quiet`: seconds of silence after which it is asked for one."""
        self._endpoint = endpoint
        self._database = database
        self._columns = columns
        self._all = msgspec.json.Decoder(change)
        self._some = msgspec.json.Decoder(tuple[Any, change])  # type: ignore[valid-type]
        self._patience = patience
        self._quiet = quiet
        self._frames = Frames()
        self._asked = False
        self._awaited: str | int | None = None
        self._deadline = 0.0

    async def __aenter__(self) -> "Monitor[Change]":
        try:
            async with asyncio.timeout(self._patience):
                self._reader, self._writer = await self._connect()
        except TimeoutError:
            raise InventoryError("does not answer") from None
        except (OSError, UnicodeError) as e:  # the latter for what cannot be a host's name
            raise InventoryError(f"cannot be reached: {getattr(e, 'strerror', None) or e}") from e
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._endpoint, Path):
            return await asyncio.open_unix_connection(self._endpoint, limit=_CHUNK)
        return await asyncio.open_connection(*self._endpoint, limit=_CHUNK)

    def __aiter__(self) -> "Monitor[Change]":
        return self

    async def __anext__(self) -> list[Change]:
        """All rows first, then what changes; what was told at once comes at once."""
        try:
            if not self._asked:
                self._asked = True
                tables = {table: {"columns": columns} for table, columns in self._columns.items()}
                await self._ask("monitor", [self._database, None, tables], _MONITOR)
            while True:
                if told := [c for frame in await self._read() if (c := await self._hear(frame)) is not None]:
                    return told
        except (OSError, EOFError) as e:
            raise InventoryError("has closed the connection") from e
        except (msgspec.DecodeError, UnicodeError, RecursionError) as e:
            raise _nonsense(e) from e

    async def _ask(self, method: str, params: list[Any], number: str | int) -> None:
        self._awaited = number
        self._deadline = asyncio.get_running_loop().time() + self._patience
        await self._send({"method": method, "params": params, "id": number})

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._patience):
                self._writer.write(msgspec.json.encode(message))
                await self._writer.drain()
        except TimeoutError:
            raise InventoryError("does not answer") from None

    async def _read(self) -> list[bytes]:
        """The next whole messages; where none comes for long, it is asked whether it still lives."""
        silent_at = asyncio.get_running_loop().time() + self._quiet
        while True:
            try:
                async with asyncio.timeout_at(silent_at if self._awaited is None else self._deadline):
                    data = await self._reader.read(_CHUNK)
                    # It returns at once while there is something to read: others have their turn.
                    await asyncio.sleep(0)
            except TimeoutError:
                if self._awaited is not None:
                    raise InventoryError("does not answer") from None
                await self._ask("echo", [], _ECHO)
                continue
            if not data:
                raise EOFError
            if messages := self._frames.feed(data):
                return messages

    async def _hear(self, frame: bytes) -> Change | None:
        message = _message.decode(frame)
        if message.method is None and message.id == self._awaited:
            self._awaited = None
            if message.error is not None:
                raise InventoryError(f"refuses: {readable(str(message.error))[:200]}")
            return self._all.decode(message.result) if message.id == _MONITOR else None
        if message.method == "update":
            return self._some.decode(message.params)[1]
        if message.method == "echo":
            await self._send({"result": message.params, "error": None, "id": message.id})
        return None


class Frames:
    """Finds where messages end in a stream of JSON objects with nothing between them.

    InventoryError: what cannot be one, or is larger than anything that is read.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._depth = 0
        self._in_string = 0
        self._escape = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes."""
        done, start = [], 0
        for end in self._ends(data):
            done.append((bytes(self._buffer) + data[start:end]).lstrip())
            self._buffer.clear()
            start = end
        rest = data[start:]
        self._buffer += rest if self._buffer else rest.lstrip()
        if len(self._buffer) > _LARGEST:
            raise InventoryError(f"says more than {_LARGEST >> 20} MiB at once")
        if self._buffer and not self._buffer.startswith(b"{"):
            raise _nonsense("no JSON object")
        return done

    def _ends(self, data: bytes) -> list[int]:
        """Offsets behind the braces that close an outermost object; those in strings are none."""
        # No escaped character ends a string: both bytes become something that means nothing.
        text = re.sub(rb"\\.", b"__", self._escape + data, flags=re.DOTALL)
        before, self._escape = len(self._escape), b"\\" if text.endswith(b"\\") else b""
        symbols = np.frombuffer(text, np.uint8)[before:]
        in_string = (np.cumsum(symbols == ord('"')) + self._in_string) & 1
        braces = (symbols == ord("{")).astype(np.int64) - (symbols == ord("}"))
        steps = braces * (1 - in_string)
        depths = np.cumsum(steps) + self._depth
        self._in_string, self._depth = int(in_string[-1]), int(depths[-1])
        ends: list[int] = (np.flatnonzero((steps == -1) & (depths == 0)) + 1).tolist()
        return ends
