"""The manager: serves the API."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import uvicorn
from fastapi import APIRouter

from eastwest.bus.client import Bus
from eastwest.collector.collector import CollectorStatus
from eastwest.collector.streams import Streams
from eastwest.errors import ConfigError
from eastwest.manager.api import create_app
from eastwest.manager.backend import Backend, Page
from eastwest.manager.fleet import Fleet
from eastwest.manager.guard import Guard
from eastwest.manager.orders import Orders
from eastwest.manager.suspectapi import suspect_routes
from eastwest.manager.suspects import SuspectDesk
from eastwest.manager.tapapi import tap_routes
from eastwest.manager.tapdesk import TapDesk
from eastwest.manager.taps import TapOrders
from eastwest.store.store import Store

log = logging.getLogger(__name__)

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_CLOSE_SECONDS = 3


class ManagerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`listen`: ADDRESS:PORT, port 0 for a free one. Off the loopback only with `token_file`.

    `write_token_file`: what only changes ask for, where there is no `token_file`.
    """

    listen: str = "127.0.0.1:8470"
    token_file: Path | None = None
    write_token_file: Path | None = None


class _Server(uvicorn.Server):
    """Signals belong to the process, which has other things to end as well."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Manager:
    """Answers HTTP while it is entered, as `fleet` is. `collector`: the status of the one in this process, if
    any; `streams`: who collects packets here; `page`: writes /metrics; `routers` and `problems`: what others
    answer, and what they cannot do."""

    def __init__(
        self,
        config: ManagerConfig,
        bus: Bus,
        store: Store,
        fleet: Fleet,
        collector: Callable[[], CollectorStatus] | None = None,
        *,
        streams: Streams | None = None,
        page: Page | None = None,
        routers: Sequence[APIRouter] = (),
        problems: Callable[[], list[str]] = list,
    ) -> None:
        self._address = _parse(config.listen)
        self._config = config
        self._orders = Orders(bus)
        self._backend = Backend(
            bus,
            store,
            fleet,
            collector=collector,
            page=page,
            problems=lambda: [*self._orders.problems, *problems()],
        )
        self._taps = TapOrders(bus)
        self._streams = streams
        self._routers = (
            suspect_routes(SuspectDesk(self._orders, fleet, store)),
            tap_routes(TapDesk(self._taps, fleet, store, streams)),
            *routers,
        )
        self._socket: socket.socket | None = None
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        token, write_token = token_of(self._config), _read(self._config.write_token_file)
        self._socket = _listen(self._address)
        if self._streams:
            # Whoever reads a tap through the API must not be copied reading.
            self._streams.own("api", self._socket.getsockname()[:2])
        app = create_app(self._backend, self._routers)
        guard = Guard(app, token, _LOCAL_NAMES | {self._address[0]}, write_token)
        self._server = _Server(
            uvicorn.Config(
                guard,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=_CLOSE_SECONDS,
                limit_concurrency=256,
            )
        )
        await self._orders.__aenter__()
        await self._taps.__aenter__()
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="api")
        log.info("the API is at %s", self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task
        try:
            await self._taps.__aexit__(kind, error, trace)
            await self._orders.__aexit__(kind, error, trace)
        finally:
            if self._socket is not None:
                self._socket.close()

    @property
    def url(self) -> str:
        """Where the API is, with the real port; once entered."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _parse(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not 0 <= int(port) < 65536:
            raise ValueError
        return ("127.0.0.1" if host == "localhost" else str(ipaddress.ip_address(host))), int(port)
    except ValueError:
        raise ConfigError(f"cannot listen on '{listen}'", "write ADDRESS:PORT, like 127.0.0.1:8470") from None


def token_of(config: ManagerConfig) -> str | None:
    """What the API asks for, None where that is nothing. Raises ConfigError."""
    if config.token_file is None and not ipaddress.ip_address(_parse(config.listen)[0]).is_loopback:
        raise ConfigError(
            f"{config.listen} can be reached from other hosts and no token is set",
            "set token_file in [server] to a file with a secret, or listen on 127.0.0.1",
        )
    return _read(config.token_file)


def _read(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the token file {file}: {error}", "give [server] a readable file"
        ) from error
    if len(token) < 16:
        raise ConfigError(f"the token in {file} is short", "use 16 characters or more")
    return token


def _listen(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=128)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address[0]}:{address[1]}: {error.strerror}",
            "stop what uses the port, or choose another with --listen",
        ) from error
