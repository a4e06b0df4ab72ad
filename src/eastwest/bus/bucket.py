"""Key-value buckets: state of which only the latest value matters, with compare-and-set and watching."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api
from nats.js.kv import KV_DEL, KV_OP, KV_PURGE, KeyValue

from eastwest.bus.background import heed_cancellation
from eastwest.bus.messages import MAX_MESSAGE_BYTES
from eastwest.errors import BusError

if TYPE_CHECKING:
    from eastwest.bus.client import Bus

log = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 2.0
_RETRY_SECONDS = 0.5
_BUCKET_MAX_BYTES = 64 << 20
_WRONG_REVISION = (10071, 10164)
"""What a server answers to a write against an older revision (JSStreamWrongLastSequence…)."""


class Bucket:
    """One bucket. Keys are host names, labels and words: letters, digits, `-`, `_`, `.`, `/`, `=`."""

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """The value and its revision; None if there is none. Raises BusError."""

        async def read(client: Client) -> tuple[bytes, int] | None:
            try:
                entry = await (await self._open(client)).get(key)
            except nats.js.errors.KeyNotFoundError:
                return None
            return entry.value or b"", entry.revision or 0

        return await self._bus.call(f"read {key} of {self._name}", read)

    async def put(self, key: str, value: bytes) -> None:
        """Set the value, whatever it was. Raises BusError."""

        async def write(client: Client) -> None:
            await (await self._open(client)).put(key, value)

        await self._bus.call(f"write {key} of {self._name}", write)

    async def delete(self, key: str, revision: int | None = None) -> bool:
        """Remove the key (only if its revision still is `revision`, where that is given); watchers see None.

        False: somebody else was first. Raises BusError, after which either may be true.
        """

        async def remove(client: Client) -> bool:
            try:
                await (await self._open(client)).delete(key, last=revision)
            except nats.js.errors.APIError as error:
                if error.err_code not in _WRONG_REVISION:
                    raise
                return False
            return True

        return await self._bus.call(f"delete {key} of {self._name}", remove)

    async def purge(self, key: str, revision: int) -> None:
        """Remove the value of this revision without a trace; a later one stays. Raises BusError.

        Watchers are not told, so only for what they know the end of; but a deletion leaves a marker.
        """

        async def remove(client: Client) -> None:
            await self._open(client)
            await client.jetstream(timeout=self._bus.timeout).purge_stream(
                f"KV_{self._name}", seq=revision + 1, subject=f"$KV.{self._name}.{key}"
            )

        await self._bus.call(f"purge {key} of {self._name}", remove)

    async def purge_markers(self, seconds: float) -> None:
        """Remove what is left of keys that were deleted longer ago than that. Raises BusError.

        A watcher that was away all that time does not learn that they are gone.
        """
        before = datetime.now(UTC) - timedelta(seconds=seconds)

        async def old(client: Client) -> list[tuple[str, int]]:
            watcher = await (await self._open(client)).watch(">", meta_only=True)
            found = []
            try:
                while entry := await watcher.updates(self._bus.timeout):  # type: ignore[no-untyped-call]
                    if entry.operation in (KV_DEL, KV_PURGE) and entry.created < before:
                        found.append((entry.key, entry.revision))
            finally:
                await watcher.stop()  # type: ignore[no-untyped-call]
            return found

        for key, revision in await self._bus.call(f"list what was deleted in {self._name}", old):
            await self.purge(key, revision)

    async def forget(self, key: str) -> None:
        """Remove the marker that the deletion of a key left, where it is still deleted. Raises BusError.

        Only for what watchers that were away know the end of, as they are not told.
        """

        async def remove(client: Client) -> None:
            await self._open(client)
            jetstream, subject = client.jetstream(timeout=self._bus.timeout), f"$KV.{self._name}.{key}"
            try:
                last = await jetstream.get_last_msg(f"KV_{self._name}", subject)
            except nats.js.errors.NotFoundError:
                return
            if (last.headers or {}).get(KV_OP) == KV_DEL and last.seq is not None:
                await jetstream.purge_stream(f"KV_{self._name}", seq=last.seq + 1, subject=subject)

        await self._bus.call(f"forget {key} of {self._name}", remove)

    async def create_or_update(self, key: str, value: bytes, revision: int | None) -> bool:
        """Set the value only if its revision still is `revision` (None: only if there is none).

        False: somebody else was first. Raises BusError, after which either may be true.
        """

        async def swap(client: Client) -> bool:
            bucket = await self._open(client)
            try:
                if revision is None:
                    await bucket.create(key, value)
                else:
                    await bucket.update(key, value, last=revision)
            except nats.js.errors.KeyWrongLastSequenceError:
                return False
            return True

        return await self._bus.call(f"update {key} of {self._name}", swap)

    async def watch(self) -> AsyncIterator[tuple[str, bytes | None]]:
        """Every key and value there is, then every change (None: deleted), for ever.

        After a lost connection it begins again with every key, so a value may come twice, and one that was
        overtaken may not come at all.
        """
        while True:
            try:
                client = await self._bus.connection()
                await self._open(client)
                async for change in self._follow(client):
                    yield change
            except (BusError, OSError, TimeoutError, nats.errors.Error) as error:
                log.debug("watching %s again: %s", self._name, error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _follow(self, client: Client) -> AsyncIterator[tuple[str, bytes | None]]:
        """Changes through one consumer, until it is lost (which its heartbeats and numbers tell)."""
        jetstream = client.jetstream(timeout=self._bus.timeout)
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        try:
            consumer = await jetstream.add_consumer(
                f"KV_{self._name}",
                api.ConsumerConfig(
                    deliver_subject=inbox,
                    deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT,
                    filter_subject=f"$KV.{self._name}.>",
                    ack_policy=api.AckPolicy.NONE,
                    idle_heartbeat=_HEARTBEAT_SECONDS,
                    inactive_threshold=10 * _HEARTBEAT_SECONDS,
                    mem_storage=True,
                ),
            )
            try:
                async for change in self._changes(subscription):
                    yield change
            finally:
                await self._forget(client, jetstream, consumer.name)
        finally:
            if not client.is_closed:
                await subscription.unsubscribe()

    async def _changes(self, subscription: Subscription) -> AsyncIterator[tuple[str, bytes | None]]:
        expected = 1
        while True:
            message = await subscription.next_msg(timeout=2.5 * _HEARTBEAT_SECONDS)
            heed_cancellation()
            headers = message.headers or {}
            if headers.get(api.Header.STATUS):
                last = headers.get(api.Header.LAST_CONSUMER)
                if last is not None and int(last) >= expected:
                    return
                continue
            if message.metadata.sequence.consumer != expected:
                return
            expected += 1
            key = message.subject.removeprefix(f"$KV.{self._name}.")
            gone = headers.get(KV_OP) in (KV_DEL, KV_PURGE)
            yield key, None if gone else bytes(message.data)

    async def _forget(self, client: Client, jetstream: JetStreamContext, consumer: str | None) -> None:
        if client.is_closed or consumer is None:
            return
        try:
            await jetstream.delete_consumer(f"KV_{self._name}", consumer)
        except (OSError, TimeoutError, nats.errors.Error) as error:
            log.debug("consumer %s of %s is left to expire: %s", consumer, self._name, error)

    async def _open(self, client: Client) -> KeyValue:
        stream = f"KV_{self._name}"
        jetstream = client.jetstream(timeout=self._bus.timeout)
        await self._bus.create_once(
            jetstream,
            api.StreamConfig(
                name=stream,
                subjects=[f"$KV.{self._name}.>"],
                allow_rollup_hdrs=True,
                deny_delete=True,
                discard=api.DiscardPolicy.NEW,
                max_bytes=_BUCKET_MAX_BYTES,
                max_msg_size=MAX_MESSAGE_BYTES,
                max_msgs_per_subject=1,
                storage=api.StorageType.FILE,
                # Reads go to the leader: compare-and-set must not start from an old revision.
                allow_direct=False,
            ),
        )
        return KeyValue(name=self._name, stream=stream, pre=f"$KV.{self._name}.", js=jetstream, direct=False)
