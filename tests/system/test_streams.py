"""Streams of packets at the collector: who is let in, what is kept, what the sender is told, who reads."""

import asyncio
import shutil
import socket
import ssl
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from eastwest.collector import intake, streams
from eastwest.collector.intake import REFUSED
from tests import pcapng
from tests.conftest import readable, require, run
from tests.kernel import blocks
from tests.system.bus_server import until
from tests.system.streams_site import KEY, Sender, in_loop, packets, site, tshark

NANOSECONDS = pcapng.option(9, b"\x09")
MADE = 1_700_000_000_123_456_789


def words(n: int) -> bytes:
    """An Ethernet frame that is not like any other."""
    return bytes(12) + b"\x88\xb5" + struct.pack("=Q", n) * (1 + n % 9)


def numbered(first: int, count: int, interface: int = 0) -> list[bytes]:
    return [pcapng.packet(words(n), interface, time=MADE + n) for n in range(first, first + count)]


PORT = pcapng.interface("tap0", options=NANOSECONDS)


@pytest.fixture(autouse=True)
def _readers() -> None:
    require(shutil.which("tshark"), "needs tshark: apt-get install tshark")


@in_loop
async def test_a_stream_becomes_a_file(tmp_path: Path) -> None:
    """Byte-exact frames and times, as an independent reader finds them; the key is nowhere."""
    async with site(tmp_path) as place:
        await place.tap()
        async with place.sender() as sender:
            await sender.send(PORT, *numbered(0, 1000))
            await sender.until_confirmed(1000)
            await sender.send(*numbered(1000, 234))
            assert await sender.end() == 1234
        status = place.status()
        assert (status.packets, status.lost) == (1234, {})
        assert status.bytes == sum(len(words(n)) for n in range(1234))
        (file,) = place.files()
    assert file.name.startswith("h1-2")
    assert KEY.encode() not in file.read_bytes()
    (section,) = blocks.parse(file.read_bytes())
    assert section.options == {1: b'{"host": "h1", "tap": "web"}'}
    assert [p.data for p in section.packets] == [words(n) for n in range(1234)]
    rows = tshark(file, "frame.time_epoch", "frame.interface_name", "frame.len")
    assert rows == [
        [f"{MADE // 10**9}.{MADE % 10**9 + n:09}", "tap0", str(len(words(n)))] for n in range(1234)
    ]
    assert packets(file) == 1234


@pytest.mark.parametrize(
    ("tap", "key"), [("web", "another"), ("web", None), ("web", ""), ("other", KEY), ("application", KEY)]
)
@in_loop
async def test_wrong_key_or_tap(tmp_path: Path, tap: str, key: str | None) -> None:
    """One answer, whatever is wrong; nothing is kept, and nobody reads it."""
    async with site(tmp_path) as place:
        await place.tap()
        await place.tap("application", receiver="application")
        async with place.sender(tap, key=key) as sender:
            await sender.send(PORT, *numbered(0, 10))
            assert await sender.reader.read() == REFUSED
        await place.refused("unknown")
        assert place.streams.status() == []
        assert place.files(tap) == []


@in_loop
async def test_a_tap_without_a_key_takes_nobody(tmp_path: Path) -> None:
    """An empty key is none."""
    async with site(tmp_path) as place:
        await place.tap(key="")
        async with place.sender(key="") as sender:
            assert await sender.reader.read() == REFUSED


@in_loop
async def test_readers_of_several_hosts(tmp_path: Path) -> None:
    """One section with the interfaces of all; every packet once, under its own interface."""
    async with site(tmp_path) as place:
        await place.tap(store=False)
        async with (
            place.streams.subscribe("web") as early,
            place.sender() as one,
            place.sender(host="h2") as two,
        ):
            other = pcapng.interface("vm7", link_type=101, options=NANOSECONDS)
            await one.send(PORT, *numbered(0, 5))
            await one.until_confirmed(5)
            async with place.streams.subscribe("web") as late:
                await two.send(other, PORT, *numbered(5, 5, 0), *numbered(10, 5, 1))
                await two.until_confirmed(10)
                await one.send(other, *numbered(15, 5, 1))
                await one.until_confirmed(10)
                assert (await one.end(), await two.end()) == (10, 10)
                await place.untap()
                seen = [b"".join([chunk async for chunk in reader]) for reader in (early, late)]
            assert (early.packets, early.lost, late.packets, late.lost) == (20, 0, 15, 0)
        (all_of_it,), (rest,) = map(blocks.parse, seen)
        assert [i.name for i in all_of_it.interfaces] == [i.name for i in rest.interfaces] == ["tap0", "vm7"]
        assert [p.data for p in all_of_it.packets] == [words(n) for n in range(20)]
        assert [p.interface for p in all_of_it.packets] == [0] * 5 + [1] * 5 + [0] * 5 + [1] * 5
        assert rest.packets == all_of_it.packets[5:]
        assert place.files() == []


@in_loop
async def test_a_slow_reader_loses_its_own_packets_only(tmp_path: Path) -> None:
    """And exactly those are counted; the file and the other reader have all."""
    async with site(tmp_path, reader_bytes=4 << 20) as place:
        await place.tap()
        big = [pcapng.packet(words(n) + bytes(60_000)) for n in range(200)]
        async with place.streams.subscribe("web") as slow, place.streams.subscribe("web") as quick:
            reading = asyncio.create_task(_read(quick))
            async with place.sender() as sender:
                await sender.send(PORT)
                for block in big:
                    await sender.send(block)
                assert await sender.end() == 200
            await place.untap()
            (all_of_it,) = blocks.parse(await reading)
            (some,) = blocks.parse(await _read(slow))
            assert (quick.packets, quick.lost) == (200, 0)
            assert slow.lost > 100
            assert slow.packets + slow.lost == 200
            totals = place.streams.totals()
            assert (totals.packets, totals.lost) == (200, {"api": slow.lost})
        assert [p.data[14:22] for p in all_of_it.packets] == [struct.pack("=Q", n) for n in range(200)]
        assert len(some.packets) == slow.packets
        assert packets(*place.files()) == 200


async def _read(reader: streams.Subscription) -> bytes:
    return b"".join([chunk async for chunk in reader])


@in_loop
async def test_the_reconnected_probe_takes_over(tmp_path: Path) -> None:
    """One stream of a tap and host at a time; each connection counts from zero, the status goes on."""
    async with site(tmp_path) as place:
        await place.tap()
        async with place.sender() as old:
            await old.send(PORT, *numbered(0, 3))
            await old.until_confirmed(3)
            async with place.sender() as new:
                await new.send(PORT, *numbered(3, 4))
                await new.until_confirmed(4)
                assert (await old.reader.read())[-8:] in (b"", struct.pack("<Q", 3))
                assert place.status().connected
                assert await new.end() == 4
        assert place.status().packets == 7
        assert sorted(map(packets, place.files())) == [3, 4]


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("garbage", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"),
        ("no host", pcapng.section(pcapng.option(1, b'{"tap":"web"}'))),
        ("no comment", pcapng.section()),
        ("no name", pcapng.section(pcapng.option(1, b'{"host": "a\\nb", "tap": "web"}'))),
        ("deep", pcapng.section(pcapng.option(1, b"[" * 5000))),
        ("too long", pcapng.section(pcapng.option(1, b" " * 9000))),
        ("another order", pcapng.section(magic=0x4D3C2B1A)),
        ("broken options", pcapng.section(struct.pack("=HH", 1, 99))),
    ],
)
@in_loop
async def test_what_is_no_stream(tmp_path: Path, name: str, sent: bytes) -> None:
    """Is counted and shut out; streams beside it go on."""
    async with site(tmp_path) as place:
        await place.tap()
        async with place.sender() as sound, Sender.connected(place.streams.to) as hostile:
            await sound.send(PORT, *numbered(0, 5))
            hostile.writer.write(sent)
            with suppress(ConnectionResetError):
                assert await hostile.reader.read() == b""
            await place.refused("malformed")
            assert await sound.end() == 5


@in_loop
async def test_a_probe_that_dies(tmp_path: Path) -> None:
    """In the middle of a block: what is whole is kept, and its file is closed."""
    async with site(tmp_path) as place:
        await place.tap()
        async with place.sender() as sender:
            await sender.send(PORT, *numbered(0, 5), numbered(5, 1)[0][:-4])
            await sender.until_confirmed(5)
            sender.writer.close()

            async def closed() -> bool:
                return not place.status().connected and not any((place.path / ".open").iterdir())

            await until(closed)
        (file,) = place.files()
        assert packets(file) == 5


@in_loop
async def test_broken_in_the_middle(tmp_path: Path) -> None:
    """What came before is kept and confirmed; what comes after is not looked at."""
    async with site(tmp_path) as place:
        await place.tap()
        async with place.sender() as sender:
            broken = pcapng.packet(b"x", interface=7)
            await sender.send(PORT, *numbered(0, 5), broken, *numbered(5, 5))
            assert (await sender.reader.read())[-8:] == struct.pack("<Q", 5)
        await place.refused("malformed")
        (file,) = place.files()
        assert packets(file) == 5


@in_loop
async def test_tls(tmp_path: Path) -> None:
    """The same over TLS, with a last count after the probe has said that it ends; plain text is refused."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", "/CN=collector", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", str(key), "-out", str(certificate)),
    )
    trust = ssl.create_default_context(cafile=certificate)
    async with site(tmp_path, tls_certificate=certificate, tls_key=key) as place:
        assert place.streams.tls
        await place.tap()
        told = await asyncio.to_thread(_over_tls, place.streams.to, trust, numbered(0, 5000))
        assert told == 5000
        (file,) = place.files()
        (section,) = blocks.parse(file.read_bytes())
        assert [p.data for p in section.packets] == [words(n) for n in range(5000)]
        async with place.sender() as plain:
            with suppress(ConnectionResetError):
                assert KEY.encode() not in await plain.reader.read()
        assert place.status().packets == 5000


def _over_tls(to: str, trust: ssl.SSLContext, sent: list[bytes]) -> int:
    """Send, half-close, and return the last count."""
    host, _, port = to.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=15) as plain,
        trust.wrap_socket(plain, server_hostname=host) as secure,
    ):
        secure.sendall(b"".join([pcapng.header("h1", "web", KEY), PORT, *sent]))
        secure.setblocking(False)
        with suppress(ssl.SSLWantReadError):
            secure.unwrap()  # our half; the answer comes behind what is still to be read
        told = b""
        while readable(secure, 15):
            try:
                told += secure.recv(4096)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLZeroReturnError:
                break
    return int(struct.unpack("<Q", told[-8:])[0])


@in_loop
async def test_silent_connections_do_not_keep_others_out(tmp_path: Path) -> None:
    """With one more than may be unknown the oldest goes, and a probe gets in at once."""
    async with site(tmp_path) as place:
        await place.tap()
        silent = [
            await asyncio.open_connection(*place.streams.to.split(":")) for _ in range(streams.MOST_UNKNOWN)
        ]
        try:
            async with place.sender() as sender:
                await sender.send(PORT, *numbered(0, 5))
                assert await sender.end() == 5
            assert await silent[0][0].read() == b""
            assert place.streams.refused()["too many at once"] >= 1
        finally:
            for _, writer in silent:
                writer.transport.abort()


@in_loop
async def test_as_many_streams_as_may_be(tmp_path: Path) -> None:
    """One more is turned away, to come again; one that comes back is not one more."""
    async with site(tmp_path, connections=1) as place:
        await place.tap()
        async with place.sender() as first:
            await first.send(PORT, *numbered(0, 1))
            await first.until_confirmed(1)
            async with place.sender(host="h2") as second:
                await place.refused("too many")
                assert await second.reader.read() == b""
            async with place.sender() as again:
                await again.send(PORT, *numbered(1, 1))
                assert await again.end() == 1


@in_loop
async def test_a_tap_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream may end by itself; if it does not, it is ended."""
    monkeypatch.setattr(streams, "ENDING_SECONDS", 1.0)
    async with site(tmp_path) as place:
        await place.tap()
        async with place.sender() as sender:
            await sender.send(PORT, *numbered(0, 5))
            await sender.until_confirmed(5)
            await place.untap()
            await sender.send(*numbered(5, 5))
            assert (await sender.reader.read())[-8:] == struct.pack("<Q", 10)
        async with place.sender() as late:
            assert await late.reader.read() == REFUSED


@in_loop
async def test_a_tap_that_was_gone_before_it_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for its packets is told at once, not when nobody would begin any more."""
    monkeypatch.setattr(streams, "OPENING_SECONDS", 1e6)
    async with site(tmp_path) as place, place.streams.subscribe("web") as reader:
        place.streams.removed("web")
        async with asyncio.timeout(60):
            assert blocks.parse(await _read(reader))[0].packets == []


@in_loop
async def test_counts_are_bounded_and_never_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of hosts that come and go only some are told of; the totals hold all."""
    monkeypatch.setattr(streams, "MOST_COUNTS", 3)
    async with site(tmp_path) as place:
        await place.tap()
        for n in range(9):
            async with place.sender(host=f"h{n}") as sender:
                await sender.send(PORT, *numbered(n, 2))
                assert await sender.end() == 2

        async def bounded() -> bool:
            return len(place.streams.status()) <= 3

        await until(bounded)
        totals = place.streams.totals()
        assert (totals.packets, totals.files, totals.connected, totals.refused) == (18, 9, 0, {})


@in_loop
async def test_a_probe_that_is_faster_than_the_bus(tmp_path: Path) -> None:
    """Who shows the key of a tap that we hear of a moment later is let in."""
    async with site(tmp_path) as place, place.sender() as sender:
        await sender.send(PORT, *numbered(0, 5))
        await place.tap()
        assert await sender.end() == 5


@in_loop
async def test_slow_openings_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that does not come whole in time is no header."""
    monkeypatch.setattr(streams, "OPENING_SECONDS", 0.2)
    async with site(tmp_path) as place, Sender.connected(place.streams.to) as sender:
        await sender.send(pcapng.header("h1", "web", KEY)[:40])
        assert await sender.reader.read() == b""
        await place.refused("slow")


@in_loop
async def test_many_interfaces_and_other_blocks(tmp_path: Path) -> None:
    """Both have their limits; blocks of other kinds are left out."""
    async with site(tmp_path) as place:
        await place.tap()
        other = pcapng.block(5, struct.pack("=III", 0, 0, 0))
        async with place.sender() as sender:
            await sender.send(*[PORT] * 4096, other * 1024, *numbered(0, 5, 4095))
            await sender.until_confirmed(5)
            await sender.send(PORT)
            assert (await sender.reader.read())[-8:] in (b"", struct.pack("<Q", 5))
        await place.refused("malformed")
        async with place.sender(host="h2") as sender:
            await sender.send(other * 1025)
            assert await sender.reader.read() == struct.pack("<Q", 0)
        await place.refused("malformed", 2)
        (file,) = place.files()
        (section,) = blocks.parse(file.read_bytes())
        assert (len(section.interfaces), [p.interface for p in section.packets]) == (4096, [4095] * 5)


@in_loop
async def test_endpoints_are_told(tmp_path: Path) -> None:
    """Probes learn where our connections end: addresses, no wildcards."""
    async with site(tmp_path, listen="0.0.0.0:0", advertise="127.0.0.1:9") as place:
        bucket = place.bus.bucket("eastwest-endpoints")
        found: list[str] = []

        async def told() -> bool:
            async for _, value in bucket.watch():
                found.extend(intake.msgspec.json.decode(value or b"[]"))
                return True
            return False

        await until(told)
        assert place.streams.to == "127.0.0.1:9"
        (port,) = {address.rpartition(":")[2] for address in found}
        assert f"127.0.0.1:{port}" in found
        assert all(address.endswith(f":{port}") and "0.0.0.0" not in address for address in found)
