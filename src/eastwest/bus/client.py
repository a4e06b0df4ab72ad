"""The one client of the bus: durable messages, buckets, questions and answers over nats-server.

The connection belongs to a task of its own which opens a fresh one whenever the last is lost, for ever. So
a role may start before nats-server, outlive it, and meet it again with an empty disk: what a call needs
(the stream, a bucket) is created by whoever comes first. A call waits for the connection as long as its
timeout allows and then raises BusError; nothing is buffered here, so a caller knows what has been stored.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from eastwest.bus.background import Background, heed_cancellation
from eastwest.bus.bucket import Bucket
from eastwest.bus.messages import (
    BOOT_HEADER,
    EVIDENCE,
    FLOWS,
    HOST_HEADER,
    MAX_MESSAGE_BYTES,
    SEQUENCE_HEADER,
    STREAM,
    TOTALS,
    WORKLOADS,
)
from eastwest.credentials import read_password, refuse_secrets
from eastwest.errors import BusError, ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")
Answer = Callable[[bytes], Awaitable[bytes]]

_FAILURES = (OSError, TimeoutError, nats.errors.Error)
_MAX_BYTES_EXCEEDED = 10077
_RETRY_SECONDS = 0.5
_PATIENCE = 5
"""Failures to connect in a row, before it is worth a line in the log."""


class BusConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the bus is. `password_file` is read at every connection; without `user` none is sent."""

    url: str = "nats://127.0.0.1:4222"
    user: str = ""
    password_file: Path | None = None
    timeout_seconds: float = 5.0
    stream_max_bytes: int = 2 << 30
    """What the stream may hold while the server does not store; then publishing is refused."""


class Bus:
    """A connection to the bus that comes back by itself. Enter it before use."""

    def __init__(self, config: BusConfig) -> None:
        refuse_secrets(config.url, "bus")
        self._config = config
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._answers: dict[str, Answer] = {}
        self._created: set[str] = set()
        self._problem = "not connected yet"
        self.peers: frozenset[tuple[str, int]] = frozenset()
        """Addresses and port of the server that it was connected to last."""
        self._failures = 0
        self._work = Background()

    async def __aenter__(self) -> Self:
        self._password()
        await self._work.start(self._stay_connected(), "bus")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._work.stop(kind, error, trace)

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    @property
    def timeout(self) -> float:
        """Seconds that a call may take."""
        return self._config.timeout_seconds

    @property
    def problem(self) -> str | None:
        """Why there is no connection now; None while there is one."""
        return None if self.connected else self._unreachable(self._problem)

    async def publish(self, subject: str, payload: bytes, *, host: str, boot: int, sequence: int) -> None:
        """Put one numbered message into the stream; returns when it is on the server's disk.

        Raises BusError when it is not known to be there; publishing it again is then right and harmless.
        """
        headers = {
            HOST_HEADER: host,
            BOOT_HEADER: str(boot),
            SEQUENCE_HEADER: str(sequence),
            api.Header.MSG_ID: f"{host}/{boot}/{sequence}",
        }

        async def send(client: Client) -> None:
            await self.create_stream(client)
            await client.jetstream(timeout=self.timeout).publish(
                subject, payload, stream=STREAM, headers=dict(headers)
            )

        await self.call(f"publish {len(payload)} bytes on {subject}", send)

    def bucket(self, name: str) -> Bucket:
        """A key-value bucket; created at its first use."""
        return Bucket(self, name)

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:  # noqa: ASYNC109
        """Ask whoever serves `subject`. Raises BusError if nobody does, or not within `timeout` seconds."""

        async def ask(client: Client) -> bytes:
            return bytes((await client.request(subject, payload, timeout=timeout)).data)

        return await self.call(f"request {subject}", ask, wait=timeout)

    async def serve(self, subject: str, answer: Answer) -> None:
        """Answer every request on `subject`, now and after every reconnection, until the bus is left."""
        self._answers[subject] = answer
        if self._client is not None and self.connected:
            await self._subscribe(self._client, subject)

    async def connection(self, wait: float | None = None) -> Client:
        """The client now connected. Raises BusError if there is none within `wait` seconds."""
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes with the event.
            async with asyncio.timeout(self.timeout if wait is None else wait):
                await self._connected.wait()
        except TimeoutError:
            raise BusError(*self._unreachable_parts(self._problem)) from None
        assert self._client is not None
        return self._client

    async def call(self, what: str, action: Callable[[Client], Awaitable[T]], wait: float | None = None) -> T:
        """Run `action` on the connection; whatever the bus answers instead of success becomes a BusError."""
        client = await self.connection(wait)
        try:
            return await _unless_closed(client, action(client))
        except nats.js.errors.NoStreamResponseError:
            # The stream has vanished under us (its disk was emptied): the next call creates it again.
            self._created.clear()
            raise BusError(f"cannot {what}: its stream does not exist", "try again") from None
        except nats.errors.NoRespondersError:
            raise BusError(f"cannot {what}: nobody answers", "see that the other role is running") from None
        except nats.js.errors.APIError as error:
            if isinstance(error, nats.js.errors.NotFoundError):
                self._created.clear()
            raise _refusal(what, error) from error
        except nats.errors.MaxPayloadError:
            raise BusError(f"cannot {what}: more than a message may hold", "send less at once") from None
        except _FAILURES as error:
            # What a user may not do gets no answer; the refusal comes by itself, before the timeout.
            cause = client.last_error if "permissions" in str(client.last_error).lower() else error
            raise BusError(
                f"cannot {what}: {_text(cause or error)}",
                f"see that nats-server at {self._config.url} is running",
            ) from error

    async def create_stream(self, client: Client) -> None:
        """Create the stream of durable messages unless it exists."""
        await self.create_once(client.jetstream(timeout=self.timeout), self._stream())

    async def widen_stream(self, client: Client) -> None:
        """Have a stream that an older version made take the subjects of today; only the server may."""
        jetstream, ours = client.jetstream(timeout=self.timeout), self._stream()
        there = (await jetstream.stream_info(STREAM)).config
        if set(ours.subjects or ()) - set(there.subjects or ()):
            await jetstream.update_stream(there, subjects=ours.subjects)

    def _stream(self) -> api.StreamConfig:
        return api.StreamConfig(
            name=STREAM,
            subjects=[f"{subject}.>" for subject in (FLOWS, TOTALS, WORKLOADS, EVIDENCE)],
            # What is in the stream is what is not stored yet; a message goes when it is acknowledged.
            retention=api.RetentionPolicy.WORK_QUEUE,
            storage=api.StorageType.FILE,
            # Full: refuse the new, which the probe still has, rather than drop the old, which nobody has.
            discard=api.DiscardPolicy.NEW,
            max_bytes=self._config.stream_max_bytes,
            max_msg_size=MAX_MESSAGE_BYTES,
            allow_direct=True,
        )

    async def create_once(self, jetstream: JetStreamContext, config: api.StreamConfig) -> None:
        """Create a stream unless it exists, whatever its settings."""
        assert config.name is not None
        if config.name in self._created:
            return
        try:
            await jetstream.stream_info(config.name)
        except nats.js.errors.NotFoundError:
            try:
                await jetstream.add_stream(config)
            except nats.js.errors.BadRequestError:
                # Another role was faster, with other settings; should it be anything else, this says so.
                await jetstream.stream_info(config.name)
        self._created.add(config.name)

    async def _stay_connected(self) -> None:
        while True:
            client, closed = Client(), asyncio.Event()
            try:
                await self._connect(client, closed)
                heed_cancellation()
                self._client = client
                self.peers = await _addresses(client)
                for subject in self._answers:
                    await self._subscribe(client, subject)
                self._connected.set()
                self._failures = 0
                log.info("connected to nats-server at %s", self._config.url)
                await closed.wait()
                self._lost(client.last_error)
            except _FAILURES as error:
                self._lost(error)
            except ConfigError as error:
                self._lost(error)
            finally:
                self._connected.clear()
                await _close(client)
            heed_cancellation()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _connect(self, client: Client, closed: asyncio.Event) -> None:
        async def on_closed() -> None:
            # Set the other first: who waits for a connection must not be given this one.
            self._connected.clear()
            closed.set()

        await client.connect(
            self._config.url,
            user=self._config.user or None,
            password=self._password(),
            inbox_prefix=f"_INBOX_{self._config.user or 'any'}",
            name=f"eastwest {self._config.user}".strip(),
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=2,
            ping_interval=5,
            error_cb=_note,
            closed_cb=on_closed,
            pending_size=4 * MAX_MESSAGE_BYTES,
        )

    async def _subscribe(self, client: Client, subject: str) -> None:
        answer = self._answers[subject]

        async def on_request(message: Msg) -> None:
            reply = await answer(bytes(message.data))
            with suppress(nats.errors.Error):  # a requester who has gone misses nothing
                await message.respond(reply)

        await client.subscribe(subject, cb=on_request)

    def _password(self) -> str | None:
        return read_password(self._config.password_file, "bus")

    def _lost(self, error: BaseException | None) -> None:
        self._problem = _text(error) if error is not None else "connection closed"
        self._failures += 1
        # Said once. At first it may only be slow: roles and nats-server start at the same time.
        if self._failures == _PATIENCE:
            log.warning("%s", self._unreachable(self._problem))

    def _unreachable(self, problem: str) -> str:
        return "; ".join(self._unreachable_parts(problem))

    def _unreachable_parts(self, problem: str) -> tuple[str, str]:
        what = f"no connection to nats-server at {self._config.url} ({problem})"
        return what, "start it, or correct the bus url, user and password_file"


async def _unless_closed(client: Client, action: Awaitable[T]) -> T:
    """Await `action`, but not beyond the connection: nats-py leaves its requests waiting for a timeout."""
    task = asyncio.ensure_future(action)
    try:
        while not task.done():
            await asyncio.wait((task,), timeout=0.25)
            if client.is_closed and not task.done():
                raise nats.errors.ConnectionClosedError
        return task.result()
    finally:
        task.cancel()


async def _addresses(client: Client) -> frozenset[tuple[str, int]]:
    """All that its server's name has now: which one was taken, the library does not say."""
    server = client.connected_url
    if server is None or not server.hostname or not server.port:
        return frozenset()
    try:
        found = await asyncio.get_running_loop().getaddrinfo(server.hostname, server.port)
    except OSError:
        return frozenset()
    return frozenset((str(address[0]), int(address[1])) for *_, address in found)


async def _close(client: Client) -> None:
    with suppress(*_FAILURES):
        await client.close()


async def _note(error: Exception) -> None:
    log.debug("bus: %s", _text(error))


def _text(error: BaseException) -> str:
    return str(error).removeprefix("nats: ") or type(error).__name__


def _refusal(what: str, error: nats.js.errors.APIError) -> BusError:
    if error.err_code == _MAX_BYTES_EXCEEDED:
        if not what.startswith("publish"):
            return BusError(f"cannot {what}: the bucket is full", "take back what is declared and not needed")
        remedy = "it holds what is not stored yet: see that the server runs, or raise stream_max_bytes"
        return BusError(f"cannot {what}: the stream is full", remedy)
    return BusError(f"cannot {what}: {error.description}", "see the log of nats-server (is its disk full?)")
