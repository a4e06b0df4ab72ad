"""The receiving end of the durable stream: taking messages away, and looking at those still there."""

import itertools
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api

from eastwest.bus.client import Bus
from eastwest.bus.messages import STREAM
from eastwest.errors import BusError

_STATUS = "Status"
_ACK_SECONDS = 15
"""What a killed collector had fetched comes again after this; one that lives claims it anew before."""

_READ_BATCH = 256
_READ_BYTES = 32 << 20
_NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class Message:
    """A message of the stream. `position`: its number in the stream; `reply`: where to acknowledge it."""

    subject: str
    payload: bytes
    headers: Mapping[str, str]
    position: int
    reply: str = ""


class Puller:
    """The stream's one durable consumer, `name`; several processes may share it. Enter it before use."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name
        self._ready: Client | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ready = None

    async def fetch(self, count: int, size: int, wait: float) -> list[Message]:
        """Up to `count` messages of together up to `size` bytes, oldest first.

        Returns as soon as there is one; [] if none came in `wait` seconds (0: if none is there).
        Raises BusError.
        """

        async def pull(client: Client) -> list[Message]:
            await self._create(client)
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{self._name}"
            at_once = {"batch": count, "max_bytes": size, "no_wait": True}
            first = {"batch": 1, "expires": int(wait * 1e9)}
            messages = [m async for m in _replies(client, subject, at_once, self._bus.timeout)]
            if not messages and wait:
                messages = [m async for m in _replies(client, subject, first, wait + self._bus.timeout)]
            return [_from_consumer(m) for m in messages]

        return await self._bus.call("fetch from the stream", pull, wait=wait + self._bus.timeout)

    async def done(self, messages: list[Message]) -> None:
        """The messages are stored: they leave the stream. Raises BusError; then they will come again."""
        await self._reply(messages, b"+ACK")

    async def refuse(self, messages: list[Message]) -> None:
        """The messages can never be stored: they leave the stream too. Raises BusError."""
        await self._reply(messages, b"+TERM")

    async def working(self, messages: list[Message]) -> None:
        """The messages are still being stored: they are not to be sent again yet. Raises BusError."""
        await self._reply(messages, b"+WPI")

    async def _reply(self, messages: list[Message], word: bytes) -> None:
        async def send(client: Client) -> None:
            for message in messages:
                await client.publish(message.reply, word)
            await client.flush()

        if messages:
            await self._bus.call("acknowledge", send)

    async def _create(self, client: Client) -> None:
        """Create stream and consumer unless they exist; once for each connection, as the disk may be new."""
        if self._ready is client:
            return
        await self._bus.create_stream(client)
        await self._bus.widen_stream(client)
        await client.jetstream(timeout=self._bus.timeout).add_consumer(
            STREAM,
            api.ConsumerConfig(
                durable_name=self._name,
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=_ACK_SECONDS,
                max_ack_pending=65536,
            ),
        )
        self._ready = client


@dataclass(frozen=True)
class Depth:
    """What is in the stream: sent by probes, not stored yet."""

    messages: int
    bytes: int


async def depth(bus: Bus) -> Depth:
    """How much waits in the stream. Raises BusError."""

    async def ask(client: Client) -> Depth:
        await bus.create_stream(client)
        state = (await client.jetstream(timeout=bus.timeout).stream_info(STREAM)).state
        return Depth(state.messages, state.bytes)

    return await bus.call("measure the stream", ask)


async def waiting(bus: Bus) -> AsyncIterator[Message]:
    """Every message that is in the stream now, oldest first, left where it is. Raises BusError.

    A message that is acknowledged meanwhile may be missing: look into the store after this, not before.
    """

    async def last(client: Client) -> int:
        await bus.create_stream(client)
        state = (await client.jetstream(timeout=bus.timeout).stream_info(STREAM)).state
        return state.last_seq if state.messages else 0

    async def read(client: Client, position: int) -> list[Msg]:
        query = {"seq": position, "batch": _READ_BATCH, "max_bytes": _READ_BYTES}
        subject = f"$JS.API.DIRECT.GET.{STREAM}"
        return [m async for m in _replies(client, subject, query, bus.timeout)]

    # What is published from now on is left out: a busy stream has no end that could be reached.
    end, position = await bus.call("read the stream", last), 1
    while position <= end:
        at = position
        found = await bus.call("read the stream", lambda client, at=at: read(client, at))  # type: ignore[misc]
        if not found:
            return
        for message in found:
            headers = message.headers or {}
            position = int(headers["Nats-Sequence"]) + 1
            if position <= end + 1:
                yield Message(headers["Nats-Subject"], bytes(message.data), headers, position - 1)


async def _replies(
    client: Client, subject: str, query: Mapping[str, object], wait: float
) -> AsyncIterator[Msg]:
    """The many replies to one request, up to the status message that ends them."""
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox, pending_msgs_limit=_NO_LIMIT, pending_bytes_limit=_NO_LIMIT)
    wanted = query["batch"]
    assert isinstance(wanted, int)
    try:
        await client.publish(subject, json.dumps(query).encode(), reply=inbox)
        for received in itertools.count(1):
            message = await replies.next_msg(timeout=wait)
            status = (message.headers or {}).get(_STATUS)
            if status is not None:
                _check(status, (message.headers or {}).get("Description", ""))
                return
            yield message
            # A pull that got all it asked for is not followed by a status; a direct read is.
            if received == wanted and "seq" not in query:
                return
    finally:
        if not client.is_closed:
            await replies.unsubscribe()


_ENDS = {"204", "404", "408"}
"""End of batch; no (more) messages; expired."""


def _check(status: str, description: str) -> None:
    if status in _ENDS or (status == "409" and "MaxBytes" in description):
        return
    if status == "503":
        raise nats.errors.NoRespondersError
    raise BusError(f"the stream answers {status} {description}", "see the log of nats-server")


def _from_consumer(message: Msg) -> Message:
    position = message.metadata.sequence.stream
    return Message(message.subject, bytes(message.data), message.headers or {}, position, message.reply)
