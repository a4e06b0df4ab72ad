"""Hostile streams over real connections: the collector stays up, and all that it writes or hands on is pcapng
that others read. EASTWEST_FUZZ_STREAMS: a hundred times how many (see test_fuzz_blocks)."""

import asyncio
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from eastwest.collector import streams
from tests import pcapng
from tests.conftest import require
from tests.hostile_streams import hostile
from tests.system.streams_site import KEY, Sender, Site, in_loop, packets, site, tshark

COUNT = int(os.environ.get("EASTWEST_FUZZ_STREAMS", "20000")) // 100
AT_ONCE = 8


async def attack(place: Site, chance: random.Random, left: list[int]) -> None:
    """One hostile stream after the other, each heard to its end."""
    while left:
        left.pop()
        told = hostile(chance, KEY)
        cut = chance.randrange(len(told) + 1)
        with suppress(ConnectionError):
            async with Sender.connected(place.streams.to) as sender, asyncio.timeout(30):
                await sender.send(told[:cut])
                await sender.send(told[cut:])
                sender.writer.write_eof()
                await sender.reader.read()


@in_loop
async def test_hostile_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every packet that was counted is in a file and with the reader; both are whole for tshark."""
    require(shutil.which("tshark"), "needs tshark: apt-get install tshark")
    monkeypatch.setattr(streams, "_ORDER_SECONDS", 0.05)
    async with site(tmp_path, retention_bytes=1 << 40) as place:
        await place.tap()
        async with place.streams.subscribe("web") as reader:
            reading = asyncio.create_task(_read(reader))
            left = list(range(COUNT))
            await asyncio.gather(*(attack(place, random.Random(f"{n}"), left) for n in range(AT_ONCE)))
            async with place.sender(host="sound") as sender:
                await sender.send(pcapng.interface("a"), *[pcapng.packet(b"x" * 60)] * 99)
                assert await sender.end() == 99
            await place.untap()
            taken = sum(status.packets for status in place.streams.status())
            assert not any(status.lost for status in place.streams.status())
            seen = tmp_path / "seen.pcapng"
            seen.write_bytes(await reading)
            assert (reader.packets, reader.lost) == (taken, 0)
        assert place.streams.refused()["malformed"] > COUNT / 10
        assert place.streams.problems() == []
    assert packets(seen) == len(tshark(seen, "frame.number")) == taken
    assert packets(*place.files()) == taken


async def _read(reader: streams.Subscription) -> bytes:
    return b"".join([chunk async for chunk in reader])
