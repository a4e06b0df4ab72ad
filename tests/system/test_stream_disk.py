"""Packets on the collector's disk: many files, a full disk, a killed collector; exact all the same."""

import asyncio
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from eastwest.bus.client import Bus
from eastwest.bus.embedded import SERVER_USER
from eastwest.collector import streams
from tests import pcapng
from tests.conftest import require, run
from tests.kernel import blocks
from tests.system.bus_server import running, until
from tests.system.streams_site import KEY, Sender, in_loop, order, packets, site
from tests.system.user_site import free_port

PORT = pcapng.interface("tap0")
BYTES = 60_000


def big(first: int, count: int) -> list[bytes]:
    return [pcapng.packet(struct.pack("=Q", n) + bytes(BYTES), n % 2) for n in range(first, first + count)]


def numbers(file: Path) -> list[int]:
    """Of the packets in a file, which is whole by itself."""
    (section,) = blocks.parse(file.read_bytes())
    assert len(section.interfaces) == 2
    return [struct.unpack_from("=Q", packet.data)[0] for packet in section.packets]


@pytest.fixture(autouse=True)
def _readers() -> None:
    require(shutil.which("capinfos"), "needs capinfos: apt-get install wireshark-common")


@pytest.fixture
def disk(root: None, tmp_path: Path) -> Iterator[Path]:
    """One of 16 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place))
    try:
        yield place
    finally:
        run("umount", "--lazy", str(place))


@in_loop
async def test_rotation_by_size(tmp_path: Path) -> None:
    """Each file is whole by itself and as long as it may be; together they hold every packet once."""
    async with site(tmp_path, rotate_bytes=1 << 20) as place:
        await place.tap()
        async with place.sender() as sender:
            await sender.send(PORT, PORT)
            for block in big(0, 200):
                await sender.send(block)
            assert await sender.end() == 200
        files = place.files()
        assert len(files) >= 200 * BYTES >> 20
        assert place.status().files == len(files)
        assert all(file.stat().st_size <= (1 << 20) + 1000 for file in files)
        assert sorted(number for file in files for number in numbers(file)) == list(range(200))
        assert packets(*files) == 200


@in_loop
async def test_rotation_by_time(tmp_path: Path) -> None:
    """The next packets after the time begin another file."""
    async with site(tmp_path, rotate_seconds=1) as place:
        await place.tap()
        async with place.sender() as sender:
            await sender.send(PORT, PORT)
            sent = 0

            async def turned() -> bool:
                nonlocal sent
                await sender.send(*big(sent, 1))
                sent += 1
                await sender.until_confirmed(sent)
                return place.status().files == 3

            await until(turned)
            assert await sender.end() == sent
        assert [number for file in place.files() for number in numbers(file)] == list(range(sent))


@in_loop
async def test_retention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is written: never much more than allowed, and the newest is always there."""
    monkeypatch.setattr(streams, "_LIMITS_SECONDS", 0.05)
    async with site(tmp_path, rotate_bytes=1 << 20, retention_bytes=4 << 20) as place:
        await place.tap()
        async with place.sender() as sender:
            await sender.send(PORT, PORT)
            for first in range(0, 300, 50):
                await sender.send(*big(first, 50))
                await sender.until_confirmed(first + 50)
            assert await sender.end() == 300

        async def within() -> bool:
            return sum(file.stat().st_size for file in place.files()) <= 4 << 20

        await until(within)
        kept = sorted(number for file in place.files() for number in numbers(file))
        assert kept == list(range(300 - len(kept), 300))
        assert len(kept) > 30


@in_loop
async def test_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """What did not fit is handed on, confirmed and counted; the file stays whole; later it goes on."""
    async with site(tmp_path, path=disk / "captures") as place:
        await place.tap()
        async with place.streams.subscribe("web") as reader, place.sender() as sender:
            reading = asyncio.create_task(_packets(reader))
            ballast = disk / "ballast"
            await sender.send(PORT, PORT, *big(0, 10))
            await sender.until_confirmed(10)
            subprocess.run(["dd", "if=/dev/zero", f"of={ballast}"], capture_output=True, check=False)
            await sender.send(*big(10, 90))
            await sender.until_confirmed(100)
            assert place.status().lost == {"disk": 90}
            (problem,) = place.streams.problems()
            assert "packets are not stored" in problem
            ballast.unlink()
            await sender.send(*big(100, 10))
            assert await sender.end() == 110
            assert place.status().lost == {"disk": 90}
            assert place.streams.problems() == []
            await place.untap()
            assert await reading == list(range(110))
        (file,) = place.files()
        assert numbers(file) == [*range(10), *range(100, 110)]
        assert packets(file) == 20


@in_loop
async def test_the_reserve_is_left(disk: Path, tmp_path: Path) -> None:
    """Nothing is stored where less would be free than is to be; who reads it gets all, and a tap without
    files is whole."""
    async with site(tmp_path, path=disk / "captures", min_free_bytes=13 << 20) as place:
        await place.tap()
        await place.tap("live", store=False)
        subscribed = [place.streams.subscribe(tap) for tap in ("web", "live")]
        reading = [asyncio.create_task(_packets(reader)) for reader in subscribed]
        async with place.sender() as sender, place.sender("live") as live:
            for one in (sender, live):
                await one.send(PORT, PORT, *big(0, 100))
                assert await one.end() == 100
        for tap in ("web", "live"):
            await place.untap(tap)
        assert await asyncio.gather(*reading) == [list(range(100))] * 2
        assert (place.status("live").packets, place.status("live").lost) == (100, {})
        stored = 100 - place.status().lost["disk"]
        assert 0 < stored * BYTES < 3 << 20
        assert shutil.disk_usage(disk).free >= 13 << 20
        (problem,) = place.streams.problems()
        assert "lower [streams] min_free_bytes" in problem
        assert packets(*place.files()) == stored


@pytest.fixture
def frozen(root: None, tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, to be stalled with fsfreeze; it goes on at the end."""
    require(shutil.which("mkfs.ext4") and Path("/dev/loop-control").exists(), "needs loop devices, e2fsprogs")
    image, place = tmp_path / "image", tmp_path / "frozen"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    run("mkfs.ext4", "-q", str(image))
    run("mount", "-o", "loop", str(image), str(place))
    try:
        yield place
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(place)], capture_output=True, check=False)
        run("umount", "--lazy", str(place))


@in_loop
async def test_a_stalled_disk_holds_up_its_own_streams_alone(frozen: Path, tmp_path: Path) -> None:
    """More wait for it than it has threads: a stream without files goes on to its end; then all is stored."""
    hosts = [f"h{n}" for n in range(6)]
    async with site(tmp_path, path=frozen / "captures") as place, AsyncExitStack() as stack:
        await place.tap()
        await place.tap("live", store=False)
        senders = [await stack.enter_async_context(place.sender(host=host)) for host in hosts]
        for sender in senders:
            await sender.send(PORT, PORT, *big(0, 1))
            await sender.until_confirmed(1)
        run("fsfreeze", "--freeze", str(frozen))
        try:
            for sender in senders:
                await sender.send(*big(1, 9))
            live = asyncio.create_task(_packets(place.streams.subscribe("live")))
            async with place.sender("live") as other:
                await other.send(PORT, PORT, *big(0, 100))
                assert await other.end() == 100
            await place.untap("live")
            assert await live == list(range(100))
            assert {place.status(host=host).packets for host in hosts} == {1}
        finally:
            run("fsfreeze", "--unfreeze", str(frozen))
        for sender in senders:
            assert await sender.end() == 10
        assert [place.status(host=host).lost for host in hosts] == [{}] * 6
        assert [numbers(file) for file in place.files()] == [list(range(10))] * 6


async def _packets(reader: streams.Subscription) -> list[int]:
    (section,) = blocks.parse(b"".join([chunk async for chunk in reader]))
    return [struct.unpack_from("=Q", packet.data)[0] for packet in section.packets]


@in_loop
async def test_a_killed_server(tmp_path: Path) -> None:
    """Its files are whole when the next one has started, and hold at least what it had confirmed."""
    pytest.importorskip("chdb", reason="pip install 'eastwest[server]'")
    with running(tmp_path / "bus") as nats:
        config = tmp_path / "server.toml"
        to, api = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        bus = nats.files.bus_config(SERVER_USER)
        config.write_text(
            f'[bus]\nurl = "{bus.url}"\nuser = "{bus.user}"\npassword_file = "{bus.password_file}"\n'
            f'[probe]\nstate_dir = "{tmp_path}"\n[server]\nlisten = "{api}"\n'
            f'[streams]\nlisten = "{to}"\nmin_free_bytes = 0\n'
        )
        async with Bus(bus) as client:
            await client.bucket("eastwest-taps").put("web", order("web", to))
        confirmed = await _kill_under_traffic(config, api, to)
        process = await _started(config, api)
        try:

            async def mended() -> bool:
                return not any((tmp_path / "captures" / ".open").iterdir())

            await until(mended)
            files = sorted((tmp_path / "captures" / "web").glob("*.pcapng"))
            found = [number for file in files for number in numbers(file)]
            assert found == list(range(len(found)))
            assert len(found) >= confirmed > 0
            assert packets(*files) == len(found)
            async with httpx.AsyncClient(trust_env=False) as client:
                page = (await client.get(f"http://{api}/metrics")).text
            assert "eastwest_streams_up 1.0" in page
            assert "eastwest_streams_packets_total 0.0" in page
        finally:
            process.terminate()
            assert process.wait(60) == 0


async def _kill_under_traffic(config: Path, api: str, to: str) -> int:
    """What was confirmed before the server died in the middle of a stream."""
    process = await _started(config, api)
    try:
        async with Sender.connected(to) as sender:
            await sender.send(pcapng.header("h1", "web", KEY), PORT, PORT)
            sending = asyncio.create_task(_send_for_ever(sender))
            confirmed = 0
            while confirmed < 500:
                confirmed = await sender.confirmed()
            process.kill()
            process.wait()
            await sending
    finally:
        process.kill()
        process.wait()
    return confirmed


async def _send_for_ever(sender: Sender) -> None:
    first = 0
    while True:
        try:
            await sender.send(*big(first, 10))
        except ConnectionError:
            return
        first += 10


async def _started(config: Path, api: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-m", "eastwest", "server", "--config", str(config)])
    async with httpx.AsyncClient(trust_env=False) as client:

        async def answers() -> bool:
            assert process.poll() is None
            try:
                return (await client.get(f"http://{api}/api/v1/health")).status_code == 200
            except httpx.TransportError:
                return False

        await until(answers, 60)
    return process
