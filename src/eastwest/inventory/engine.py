"""The API of container engines: three routes that docker's daemon and podman's service serve alike.

Asked with httpcore alone: requests can be cancelled and have their time, an answer is read no further than
its limit, and no thread waits for events (ARCHITECTURE.md has the price of the engines' own libraries; httpx
would bring 7 MB into the probe, mostly for a command line of its own).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self, TypeVar
from urllib.parse import urlencode

import httpcore
import msgspec

from eastwest.errors import InventoryError

_T = TypeVar("_T")

_ANSWER_SECONDS = 5.0
_LIST_SECONDS = 30.0
MOST_CONTAINERS = 10_000
_LONGEST_LIST = 32 << 20
_LONGEST_INSPECT = 4 << 20
_LONGEST_EVENT = 1 << 20
_LONGEST_PING = 1 << 10
_FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError)

_WITHOUT_PROCESS = {"created", "configured", "exited", "stopped", "dead", "removing"}
"""docker and podman have more states than these, but in all others there is something to look at."""

_TELLING = ["init", "start", "die", "pause", "unpause", "rename", "restore", "remove", "destroy"]
"""Events after which a container has another process, name or state. `init` is podman's: its process is there
and has not begun, `remove` podman's and `destroy` docker's."""

_ASKED = [*_TELLING, "died"]
"""Podman 4.3 tells of `die` to whoever asks for `died` only."""


class State(msgspec.Struct, rename="pascal"):
    """Of a container's main process; `pid` 0: it has none."""

    pid: Annotated[int, msgspec.Meta(ge=0, le=1 << 22)] = 0


class HostConfig(msgspec.Struct, rename="pascal"):
    """`network_mode`: `host`, `none`, `container:<id>`, `ns:<path>`, or a network's name."""

    network_mode: str = ""


class Settings(msgspec.Struct, rename="pascal"):
    """What the container was made with."""

    labels: dict[str, str] | None = None


class Container(msgspec.Struct, rename="pascal"):
    """What `/containers/{id}/json` says of one, as far as it is of use here."""

    id: str
    name: str = ""
    state: State = msgspec.field(default_factory=State)
    host_config: HostConfig = msgspec.field(default_factory=HostConfig)
    config: Settings = msgspec.field(default_factory=Settings)


class _Listed(msgspec.Struct, rename="pascal"):
    id: str
    names: list[str] | None = None
    state: str = ""


class _Actor(msgspec.Struct):
    id: str = msgspec.field(default="", name="ID")


class _Event(msgspec.Struct, rename="pascal"):
    type: str = ""
    action: str = ""
    actor: _Actor = msgspec.field(default_factory=_Actor)


class Engine:
    """A client of one engine's socket. Every method raises InventoryError, also for what makes no sense."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._connections = httpcore.AsyncConnectionPool(uds=str(socket))

    async def __aenter__(self) -> Self:
        await self._connections.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.__aexit__(kind, error, trace)

    async def ping(self) -> None:
        """Nothing, where the engine answers."""
        await self._get("/_ping", _LONGEST_PING, _ANSWER_SECONDS)

    async def running(self) -> dict[str, str]:
        """Id → name of every container that may have a process; a paused or stopping one has."""
        body = await self._get("/containers/json?all=true", _LONGEST_LIST, _LIST_SECONDS)
        listed = self._decode(body or b"", list[_Listed])
        names = {one.id: (one.names or [""])[0] for one in listed if one.state not in _WITHOUT_PROCESS}
        if len(names) > MOST_CONTAINERS:
            raise self.too_many()
        return names

    async def inspect(self, number: str) -> Container | None:
        """One container by its id; None: there is none."""
        body = await self._get(f"/containers/{number}/json", _LONGEST_INSPECT, _ANSWER_SECONDS)
        return None if body is None else self._decode(body, Container)

    async def events(self, seconds: float) -> AsyncGenerator[str, None]:
        """Ids of containers as something happens to them, and what has in the last `seconds`; for ever.

        Podman answers with its first event, so nobody can wait for the stream to be open before anything
        else; it is asked for what has happened just before instead.
        """
        query = {
            "since": int(time.time() - seconds),
            "filters": msgspec.json.encode({"type": ["container"], "event": _ASKED}).decode(),
        }
        async with self._answer(f"/events?{urlencode(query)}") as response:
            rest = b""
            async for chunk in response.aiter_stream():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LONGEST_EVENT:
                    raise self._nonsense(f"an event longer than {_LONGEST_EVENT} bytes")
                for line in filter(bytes.strip, lines):
                    event = self._decode(line, _Event)
                    if event.type == "container" and event.action in _TELLING:
                        yield event.actor.id
        raise InventoryError(f"{self._socket} ended its stream of events", "see whether its service runs")

    async def _get(self, path: str, limit: int, seconds: float) -> bytes | None:
        """A whole answer; None: not found. The time is for all of it, however slowly it drips."""
        body = bytearray()
        try:
            async with asyncio.timeout(seconds), self._answer(path) as response:
                async for chunk in response.aiter_stream():
                    body += chunk
                    if len(body) > limit:
                        raise self._nonsense(f"more than {limit} bytes")
                return None if response.status == HTTPStatus.NOT_FOUND else bytes(body)
        except TimeoutError:
            raise InventoryError(
                f"{self._socket} does not answer within {seconds:g} s", "restart its service"
            ) from None

    @asynccontextmanager
    async def _answer(self, path: str) -> AsyncIterator[httpcore.Response]:
        """An answer as it comes in, not unpacked: an engine has no need to compress."""
        headers = [("Accept-Encoding", "identity")]
        extensions = {"timeout": {"connect": _ANSWER_SECONDS}}
        try:
            async with self._connections.stream(
                "GET", f"http://engine{path}", headers=headers, extensions=extensions
            ) as response:
                if response.status not in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
                    raise InventoryError(
                        f"{self._socket} answers with status {response.status}",
                        "see the log of its service",
                    )
                yield response
        except _FAILURES as e:
            raise InventoryError(
                f"{self._socket} cannot be asked ({e or type(e).__name__})",
                "see whether its service runs and lets the probe's user in",
            ) from None

    def too_many(self) -> InventoryError:
        """What to raise where it speaks of more containers than a probe can follow."""
        return InventoryError(
            f"{self._socket} speaks of more than {MOST_CONTAINERS} containers",
            "run an engine of fewer, or switch it off in [inventory]",
        )

    def _decode(self, body: bytes, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(body, type=kind)
        except (ValueError, RecursionError) as e:
            raise self._nonsense(str(e)) from None

    def _nonsense(self, what: str) -> InventoryError:
        return InventoryError(
            f"{self._socket} answers what no container engine does ({what[:200]})",
            "see what listens there, and correct [inventory]",
        )
