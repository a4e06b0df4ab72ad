"""Packets handed on by the collector: to whoever connects, and to applications; exact at their end."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from eastwest.collector.hub import RELAY
from eastwest.collector.outlets import Outlets
from eastwest.collector.streamconfig import RelayConfig, StreamsConfig
from eastwest.errors import ConfigError
from tests import pcapng
from tests.conftest import require
from tests.kernel import blocks
from tests.system.bus_server import until
from tests.system.receiver import Receiver
from tests.system.streams_site import KEY, Sender, Site, in_loop, site
from tests.system.test_delivery import certificate
from tests.system.user_site import free_port

PORT = pcapng.interface("tap0")


def numbered(first: int, count: int) -> list[bytes]:
    return [pcapng.packet(b"%d" % n) for n in range(first, first + count)]


def numbers(stream: bytes) -> list[int]:
    """Of the packets of a stream, section by section."""
    return [int(packet.data) for section in blocks.parse(stream, whole=False) for packet in section.packets]


async def reading(place: Site, count: int) -> None:
    """Until so many read."""

    async def enough() -> bool:
        return len(place.streams.readers()) == count

    await until(enough)


@asynccontextmanager
async def application(port: int, got: list[bytearray]) -> AsyncIterator[None]:
    """Keeps what each of its connections brings; when it ends, it breaks them off."""
    writers: list[asyncio.StreamWriter] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(bytearray())
        mine = got[-1]
        writers.append(writer)
        with suppress(ConnectionError):
            while more := await reader.read(1 << 16):
                mine += more
        writer.transport.abort()

    server = await asyncio.start_server(take, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@in_loop
async def test_pcap_over_ip(tmp_path: Path) -> None:
    """Each tap has a port; whoever connects gets section, interfaces and what comes, to the tap's end."""
    async with site(tmp_path, pcap_over_ip="127.0.0.1:0") as place:
        await place.tap("web")
        await place.tap("db", store=False)

        async def both() -> bool:
            return set(place.streams.pcap_over_ip()) == {"db", "web"}

        await until(both)
        host, _, port = place.streams.pcap_over_ip()["web"].rpartition(":")
        async with place.sender() as sender:
            await sender.send(PORT, *numbered(0, 5))
            await sender.until_confirmed(5)
            reader, writer = await asyncio.open_connection(host, int(port))
            await reading(place, 1)
            await sender.send(*numbered(5, 5))
            assert await sender.end() == 10
            await place.untap()
            seen = await reader.read()
            writer.close()
        assert numbers(seen) == list(range(5, 10))

        async def closed() -> bool:
            return set(place.streams.pcap_over_ip()) == {"db"}

        await until(closed)


@in_loop
async def test_tshark_reads_pcap_over_ip(tmp_path: Path) -> None:
    """The way people use it: -i TCP@ADDRESS:PORT, while a tap runs."""
    require(shutil.which("dumpcap"), "needs tshark: apt-get install tshark")
    async with site(tmp_path, pcap_over_ip="127.0.0.1:0") as place:
        await place.tap()

        async def there() -> bool:
            return bool(place.streams.pcap_over_ip())

        await until(there)
        command = ["tshark", "-i", f"TCP@{place.streams.pcap_over_ip()['web']}", "-c", "7", "-T", "fields"]
        shark = await asyncio.create_subprocess_exec(
            *command, "-e", "frame.number", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            await reading(place, 1)
            async with place.sender() as sender, place.sender(host="h2") as other:
                for of in (sender, other):
                    await of.send(PORT, *[pcapng.packet(bytes(60))] * 5)
                    await of.until_confirmed(5)
            async with asyncio.timeout(30):
                told, _ = await shark.communicate()
        finally:
            if shark.returncode is None:
                shark.kill()
        assert told.split() == [b"1", b"2", b"3", b"4", b"5", b"6", b"7"]


@in_loop
async def test_readers_that_leave_are_forgotten(tmp_path: Path) -> None:
    """At once, though no packet comes."""
    async with site(tmp_path, pcap_over_ip="127.0.0.1:0") as place:
        await place.tap()

        async def there() -> bool:
            return bool(place.streams.pcap_over_ip())

        await until(there)
        host, _, port = place.streams.pcap_over_ip()["web"].rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        await reading(place, 1)
        writer.transport.abort()
        await reading(place, 0)


@in_loop
async def test_a_relay(tmp_path: Path) -> None:
    """An application gets the taps that it is to get, all of them, and no others."""
    got: list[bytearray] = []
    port = free_port()
    relay = RelayConfig(match="web*", to=f"127.0.0.1:{port}")
    async with application(port, got), site(tmp_path, relay=[relay]) as place:
        for tap in ("web-1", "other", "web-2"):
            await place.tap(tap, store=False)
        for tap, first in (("web-1", 100), ("other", 200), ("web-2", 300)):
            async with place.sender(tap) as sender:
                await sender.send(PORT, *numbered(first, 50))
                assert await sender.end() == 50
            await place.untap(tap)
        await reading(place, 0)

        async def all_there() -> bool:
            return sum(len(numbers(bytes(stream))) for stream in got) == 100

        await until(all_there)
        assert sorted(numbers(bytes(stream)) for stream in got) == [
            list(range(100, 150)),
            list(range(300, 350)),
        ]


@in_loop
async def test_each_service_to_its_application(tmp_path: Path) -> None:
    """Of one tap, from two hosts: each application gets its service's packets and interfaces, one all."""
    services: tuple[int | None, ...] = (7, 8, None)
    enterprises = {"h1": 32473, "h2": 99}
    listening = {service: free_port() for service in services}
    got: dict[int | None, list[bytearray]] = {service: [] for service in services}
    relays = [
        RelayConfig(match="web", to=f"127.0.0.1:{port}", service_id=service)
        for service, port in listening.items()
    ]
    async with AsyncExitStack() as stack:
        for service, port in listening.items():
            await stack.enter_async_context(application(port, got[service]))
        place = await stack.enter_async_context(site(tmp_path, relay=relays))
        await place.tap()
        for host, enterprise in enterprises.items():
            async with Sender.connected(place.streams.to) as sender:
                ports = [pcapng.interface(f"{host} {7 + n}") for n in range(3)]
                await sender.send(pcapng.header(host, "web", KEY, enterprise), *ports)
                for n in range(300):
                    of = pcapng.own(7 + n % 3, enterprise=enterprise)
                    await sender.send(pcapng.packet(b"%d" % n, interface=n % 3, options=of))
                assert await sender.end() == 300
        await place.untap()
        await reading(place, 0)

        async def all_there() -> bool:
            return sum(len(numbers(bytes(of))) for streams in got.values() for of in streams) == 1000

        await until(all_there)
        for service, streams in got.items():
            wanted = [n for n in range(300) if service in (None, 7 + n % 3)]
            (stream,) = streams
            assert numbers(bytes(stream)) == wanted * 2
            (section,) = blocks.parse(bytes(stream))
            named = [section.interfaces[packet.interface].name for packet in section.packets]
            assert named == [f"{host} {7 + n % 3}" for host in enterprises for n in wanted]
            assert {interface.name for interface in section.interfaces} == set(named)


@in_loop
async def test_a_relay_over_tls(tmp_path: Path) -> None:
    """Megabytes, to their end, to an application that is who it says; not one packet to another."""
    context, ca_file = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other")
    with Receiver(confirms=False, tls=context) as receiver, Receiver(tls=other) as impostor:
        relays = [
            RelayConfig(match="*", to=one.to, tls=True, ca_file=ca_file) for one in (receiver, impostor)
        ]
        async with site(tmp_path, relay=relays) as place:
            await place.tap(store=False)

            async def said() -> bool:
                problems = place.streams.problems()
                return len(problems) == 1 and "certificate" in problems[0] and impostor.to in problems[0]

            await until(said, 30)
            async with place.sender() as sender:
                await sender.send(PORT, *[pcapng.packet(bytes(1400))] * 4000)
                assert await sender.end() == 4000
            await place.untap()

            async def ended() -> bool:
                return bool(receiver.streams) and receiver.streams[0].ended

            await until(ended, 30)
        assert receiver.streams[0].count == 4000
        assert len(receiver.streams[0].packets) == 4000
        assert impostor.streams == []


@in_loop
async def test_a_relay_whose_application_comes_later(tmp_path: Path) -> None:
    """What waits for it is not lost; that it is away is said, with what to do."""
    got: list[bytearray] = []
    port = free_port()
    async with site(tmp_path, relay=[RelayConfig(match="*", to=f"127.0.0.1:{port}")]) as place:
        await place.tap(store=False)

        async def said() -> bool:
            return any("is not handed on" in problem for problem in place.streams.problems())

        await until(said)
        async with place.sender() as sender:
            await sender.send(PORT, *numbered(0, 50))
            await sender.until_confirmed(50)
            async with application(port, got):

                async def all_there() -> bool:
                    return [numbers(bytes(stream)) for stream in got] == [list(range(50))]

                await until(all_there, 30)
                (status,) = place.streams.readers()
                assert (status.kind, status.packets, status.lost) == (RELAY, 50, 0)
                assert place.streams.problems() == []


@in_loop
async def test_a_relay_that_breaks(tmp_path: Path) -> None:
    """The next connection begins with a section; nothing comes twice, and what was lost is bounded."""
    got: list[bytearray] = []
    port = free_port()
    async with site(tmp_path, relay=[RelayConfig(match="*", to=f"127.0.0.1:{port}")]) as place:
        await place.tap(store=False)
        async with place.sender() as sender:
            async with application(port, got):
                await sender.send(PORT, *numbered(0, 5))

                async def first() -> bool:
                    return [numbers(bytes(stream)) for stream in got] == [list(range(5))]

                await until(first, 30)
            sent = 5
            async with application(port, got):

                async def again() -> bool:
                    nonlocal sent
                    await sender.send(*numbered(sent, 1))
                    sent += 1
                    return len(got) > 1 and bool(numbers(bytes(got[-1])))

                await until(again, 30)
        seen = [number for stream in got for number in numbers(bytes(stream))]
        assert sorted(set(seen)) == sorted(seen)


def test_relays_with_wrong_settings(tmp_path: Path) -> None:
    """Refused at the start, by the setting's name."""
    with pytest.raises(ConfigError, match=r"streams\.relay\.service_id = -1"):
        RelayConfig(match="*", to="a:1", service_id=-1)
    with pytest.raises(ConfigError, match=r"set tls = true"):
        RelayConfig(match="*", to="a:1", ca_file=tmp_path)
    lost = RelayConfig(match="*", to="a:1", tls=True, ca_file=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"correct \[\[streams\.relay\]\] ca_file"):
        Outlets(StreamsConfig(relay=[lost]), None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["", "nowhere", "a:0", "a:99999", "fd00::9:1"])
def test_relays_that_cannot_be(to: str) -> None:
    """Refused at the start."""
    with pytest.raises(Exception, match=r"streams\.relay\.to"):
        RelayConfig(match="*", to=to)
