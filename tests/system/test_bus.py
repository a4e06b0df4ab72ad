"""The bus against a real nats-server: durable publishing, buckets, questions, and every kind of absence."""

import asyncio
import shutil
from pathlib import Path

import pytest
from nats.js import api

from eastwest.bus.client import Bus, BusConfig
from eastwest.bus.embedded import PROBE_USER, SERVER_USER
from eastwest.bus.messages import (
    EVIDENCE,
    FACTS_BUCKET,
    FLOWS,
    HOSTS_BUCKET,
    LABELS_BUCKET,
    MAX_MESSAGE_BYTES,
    STREAM,
)
from eastwest.bus.stream import Message, Puller, waiting
from eastwest.errors import BusError, ConfigError
from tests.system.bus_server import running, until

FLOWS_H = "eastwest.flows.h"


async def _positions(bus: Bus) -> list[int]:
    return [message.position async for message in waiting(bus)]


async def _fetch_all(puller: Puller, count: int) -> list[Message]:
    messages: list[Message] = []
    while len(messages) < count:
        messages += await puller.fetch(100, MAX_MESSAGE_BYTES, 1.0)
    return messages


def test_message_travels_with_its_number_and_leaves_when_done(tmp_path: Path) -> None:
    """What is published is in the stream until it is acknowledged, and nowhere else afterwards."""

    async def scenario() -> None:
        with running(tmp_path) as server:
            async with (
                Bus(server.files.bus_config(PROBE_USER)) as probe,
                Bus(server.files.bus_config(SERVER_USER)) as bus,
                Puller(bus, "collector") as puller,
            ):
                for sequence in range(1, 301):
                    await probe.publish(FLOWS_H, b"x" * sequence, host="h", boot=7, sequence=sequence)
                assert await _positions(bus) == list(range(1, 301))
                messages = await _fetch_all(puller, 300)
                assert [len(m.payload) for m in messages] == list(range(1, 301))
                assert {(m.headers["Ew-Host"], m.headers["Ew-Boot"]) for m in messages} == {("h", "7")}
                assert [int(m.headers["Ew-Sequence"]) for m in messages] == list(range(1, 301))
                await puller.done(messages[:100])
                await puller.refuse(messages[100:299])

                async def one_left() -> bool:
                    return await _positions(bus) == [300]

                await until(one_left)

    asyncio.run(scenario())


def test_publishing_again_stores_once(tmp_path: Path) -> None:
    """A repeat within the duplicate window is acknowledged and not stored."""

    async def scenario() -> None:
        with running(tmp_path) as server:
            async with (
                Bus(server.files.bus_config(PROBE_USER)) as probe,
                Bus(server.files.bus_config(SERVER_USER)) as bus,
            ):
                for _ in range(3):
                    await probe.publish(FLOWS_H, b"x", host="h", boot=7, sequence=1)
                assert await _positions(bus) == [1]

    asyncio.run(scenario())


def test_largest_messages_come_through_in_bounded_fetches(tmp_path: Path) -> None:
    """Six messages of almost 8 MiB: each fetch stays within the size asked for."""

    async def scenario() -> None:
        size = MAX_MESSAGE_BYTES - 4096
        with running(tmp_path) as server:
            async with (
                Bus(server.files.bus_config(PROBE_USER)) as probe,
                Bus(server.files.bus_config(SERVER_USER)) as bus,
                Puller(bus, "collector") as puller,
            ):
                for sequence in range(6):
                    await probe.publish(FLOWS_H, bytes(size), host="h", boot=7, sequence=sequence)
                fetched = 0
                while fetched < 6:
                    messages = await puller.fetch(100, 2 * MAX_MESSAGE_BYTES, 1.0)
                    assert 1 <= len(messages) <= 2
                    assert {len(m.payload) for m in messages} == {size}
                    fetched += len(messages)
                assert await _positions(bus) == [1, 2, 3, 4, 5, 6]
                with pytest.raises(BusError, match="more than a message may hold"):
                    await probe.publish(FLOWS_H, bytes(MAX_MESSAGE_BYTES + 1), host="h", boot=7, sequence=9)

    asyncio.run(scenario())


def test_full_stream_refuses_the_new_and_keeps_the_old(tmp_path: Path) -> None:
    async def scenario() -> None:
        with running(tmp_path) as server:
            small = server.files.bus_config(PROBE_USER)
            config = BusConfig(
                url=small.url, user=small.user, password_file=small.password_file, stream_max_bytes=10_000
            )
            async with Bus(config) as probe, Bus(server.files.bus_config(SERVER_USER)) as bus:
                await probe.publish(FLOWS_H, bytes(6000), host="h", boot=7, sequence=1)
                with pytest.raises(BusError, match="the stream is full; it holds what is not stored yet"):
                    await probe.publish(FLOWS_H, bytes(6000), host="h", boot=7, sequence=2)
                assert await _positions(bus) == [1]

    asyncio.run(scenario())


def test_bucket_compare_and_set(tmp_path: Path) -> None:
    """Of two that lease from the same revision one wins."""

    async def scenario() -> None:
        with running(tmp_path) as server:
            async with (
                Bus(server.files.bus_config(PROBE_USER)) as one,
                Bus(server.files.bus_config(PROBE_USER)) as two,
            ):
                first, second = one.bucket(LABELS_BUCKET), two.bucket(LABELS_BUCKET)
                assert await first.get("next") is None
                assert await first.create_or_update("next", b"1", None)
                assert not await second.create_or_update("next", b"2", None)
                found = await second.get("next")
                assert found is not None
                value, revision = found
                assert value == b"1"
                assert await second.create_or_update("next", b"65", revision)
                assert not await first.create_or_update("next", b"129", revision)
                found = await first.get("next")
                assert found is not None and found[0] == b"65"
                assert not await first.delete("next", revision)
                assert await second.get("next") == found
                assert await first.delete("next", found[1])
                assert await second.get("next") is None

    asyncio.run(scenario())


def test_watch_gives_initial_values_then_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        with running(tmp_path) as server:
            async with (
                Bus(server.files.bus_config(PROBE_USER)) as probe,
                Bus(server.files.bus_config(SERVER_USER)) as bus,
            ):
                facts = bus.bucket(FACTS_BUCKET)
                await facts.put("1", b"a")
                await facts.put("1", b"b")
                await facts.put("2", b"c")
                watch = probe.bucket(FACTS_BUCKET).watch()
                async with asyncio.timeout(10):
                    assert {await anext(watch), await anext(watch)} == {("1", b"b"), ("2", b"c")}
                    await facts.put("3", b"d")
                    assert await anext(watch) == ("3", b"d")
                    await facts.delete("1")
                    assert await anext(watch) == ("1", None)
                await watch.aclose()

    asyncio.run(scenario())


def test_everything_returns_after_the_server_was_killed(tmp_path: Path) -> None:
    """Absent at start, killed, restarted, restarted with an empty disk: each call fails or is true."""

    async def scenario() -> None:
        with running(tmp_path) as server:
            server.kill()
            probe_config = server.files.bus_config(PROBE_USER)
            impatient = BusConfig(
                url=probe_config.url,
                user=probe_config.user,
                password_file=probe_config.password_file,
                timeout_seconds=0.3,
            )
            async with (
                Bus(impatient) as hasty,
                Bus(probe_config) as probe,
                Bus(server.files.bus_config(SERVER_USER)) as bus,
                Puller(bus, "collector") as puller,
            ):

                async def echo(question: bytes) -> bytes:
                    return question[::-1]

                await probe.serve("eastwest.probe.h.ledger", echo)
                with pytest.raises(BusError, match=r"no connection to nats-server at .*; start it"):
                    await hasty.publish(FLOWS_H, b"0", host="h", boot=7, sequence=0)
                server.start()
                await probe.publish(FLOWS_H, b"1", host="h", boot=7, sequence=1)
                watch = bus.bucket(HOSTS_BUCKET).watch()
                await probe.bucket(HOSTS_BUCKET).put("h", b"one")
                async with asyncio.timeout(10):
                    assert await anext(watch) == ("h", b"one")
                assert await bus.request("eastwest.probe.h.ledger", b"abc", 5.0) == b"cba"

                server.kill()
                server.start()

                async def published() -> bool:
                    try:
                        await probe.publish(FLOWS_H, b"2", host="h", boot=7, sequence=2)
                        await probe.bucket(HOSTS_BUCKET).put("h", b"two")
                    except BusError:
                        return False
                    return True

                await until(published)
                async with asyncio.timeout(15):
                    while await anext(watch) != ("h", b"two"):
                        pass
                assert [m.payload for m in await _fetch_all(puller, 2)] == [b"1", b"2"]
                assert await bus.request("eastwest.probe.h.ledger", b"abc", 5.0) == b"cba"

                server.kill()
                shutil.rmtree(tmp_path / "jetstream")
                server.start()
                await until(published)
                assert [m.payload for m in await _fetch_all(puller, 1)] == [b"2"]
                async with asyncio.timeout(15):
                    while await anext(watch) != ("h", b"two"):
                        pass
                await watch.aclose()

    asyncio.run(scenario())


def test_nobody_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        with running(tmp_path) as server:
            async with Bus(server.files.bus_config(SERVER_USER)) as bus:
                with pytest.raises(BusError, match="nobody answers"):
                    await bus.request("eastwest.probe.gone.ledger", b"", 2.0)

    asyncio.run(scenario())


def test_probe_may_not_read_rows_nor_write_facts(tmp_path: Path) -> None:
    """Least privilege: neither role can do the other's part."""

    async def scenario() -> None:
        with running(tmp_path) as server:
            config = server.files.bus_config(PROBE_USER)
            impatient = BusConfig(
                url=config.url, user=config.user, password_file=config.password_file, timeout_seconds=0.5
            )
            async with Bus(impatient) as probe, Bus(server.files.bus_config(SERVER_USER)) as bus:
                await bus.bucket(FACTS_BUCKET).put("1", b"{}")
                await probe.publish(FLOWS_H, b"1", host="h", boot=7, sequence=1)
                with pytest.raises(BusError, match="permissions violation"):
                    await probe.bucket(FACTS_BUCKET).put("1", b"forged")
                async with Puller(probe, "thief") as thief:
                    with pytest.raises(BusError):
                        await thief.fetch(1, 1000, 0.1)
                with pytest.raises(BusError):
                    await _positions(probe)
                found = await bus.bucket(FACTS_BUCKET).get("1")
                assert found is not None and found[0] == b"{}"

    asyncio.run(scenario())


def test_unreadable_password_file_is_refused_at_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigError, match=r"cannot read the bus password file .*; give password_file"):
            async with Bus(BusConfig(user="probe", password_file=tmp_path / "absent")):
                pass

    asyncio.run(scenario())


def test_files_of_the_server_are_private_and_stay(tmp_path: Path) -> None:
    """Passwords and configuration are readable by the owner alone; port and passwords survive a restart."""
    with running(tmp_path / "bus") as server:
        files = ("nats.conf", "probe.password", "server.password", "port")
        assert {(tmp_path / "bus" / name).stat().st_mode & 0o777 for name in files} == {0o600}
        before = [(tmp_path / "bus" / name).read_text() for name in files]
        server.files.prepare()
        assert [(tmp_path / "bus" / name).read_text() for name in files] == before


def test_an_older_stream_takes_todays_subjects(tmp_path: Path) -> None:
    """A stream made before evidence was sent: the server widens it, and nothing in it is lost."""

    async def scenario() -> None:
        with running(tmp_path) as server:
            async with (
                Bus(server.files.bus_config(SERVER_USER)) as bus,
                Bus(server.files.bus_config(PROBE_USER)) as probe,
            ):
                client = await bus.connection()
                await client.jetstream().add_stream(
                    api.StreamConfig(name=STREAM, subjects=[f"{FLOWS}.>"], allow_direct=True)
                )
                await probe.publish(f"{FLOWS}.h", b"1", host="h", boot=1, sequence=1)
                async with Puller(bus, "test") as puller:
                    assert [m.payload for m in await puller.fetch(9, 1000, 1)] == [b"1"]
                    await probe.publish(f"{EVIDENCE}.h", b"2", host="h", boot=1, sequence=2)
                    assert [m.payload for m in await puller.fetch(9, 1000, 1)] == [b"2"]

    asyncio.run(scenario())
