"""Orders to copy packets, from the bucket to a TCP receiver: on the real kernel, with exact numbers."""

import json
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from eastwest.bus.client import Bus
from eastwest.bus.taps import TAPS_BUCKET, TapOrder, TapPoint, TapsAnswer, TapStream, taps_subject
from tests.conftest import Workload
from tests.system.bus_server import RunningServer, until
from tests.system.receiver import Receiver
from tests.system.test_probe import Harness, harness, holds, with_server

KEY = "k" * 43


class Desk:
    """Gives orders, and asks what became of them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def order(self, name: str, to: str, **said: Any) -> None:
        told = {
            "selector": "",
            "receiver": "collector",
            "key": KEY,
            "added": time.time_ns(),
            "expires": 0,
        } | said
        order = TapOrder(name=name, to=to, **told)
        await self._bus.bucket(TAPS_BUCKET).put(name, msgspec.json.encode(order))

    async def take_back(self, name: str) -> None:
        await self._bus.bucket(TAPS_BUCKET).delete(name)

    async def answer(self) -> TapsAnswer:
        return msgspec.json.decode(await self._bus.request(taps_subject("h"), b"", 5), type=TapsAnswer)

    async def stream(self, tap: str) -> TapStream | None:
        """Of the one that goes on."""
        found = [one for one in (await self.answer()).streams if one.tap == tap]
        return found[0] if found else None

    async def past(self, tap: str) -> tuple[TapPoint, TapStream] | None:
        """What is left of a tap that is over; None while it is not."""
        answer = await self.answer()
        points = [one for one in answer.past if one.tap == tap]
        streams = [one for one in answer.past_streams if one.tap == tap]
        over = not any(one.tap == tap for one in (*answer.points, *answer.streams))
        return (points[0], streams[0]) if over and points and streams else None

    async def connected(self, tap: str) -> None:
        """Wait until it is delivered, and something is copied."""

        async def is_so() -> bool:
            answer = await self.answer()
            stream = [one for one in answer.streams if one.tap == tap and one.connected]
            return bool(stream) and any(one.tap == tap for one in answer.points)

        await until(is_so)

    async def over(self, tap: str) -> tuple[TapPoint, TapStream]:
        """Wait for a tap's end; the sums."""
        await until(lambda: self._is_over(tap))
        found = await self.past(tap)
        assert found
        return found

    async def _is_over(self, tap: str) -> bool:
        return await self.past(tap) is not None


@asynccontextmanager
async def site(server: RunningServer, state: Path, **settings: Any) -> AsyncIterator[tuple[Harness, Desk]]:
    """A probe, and somebody who gives it orders."""
    async with (
        Bus(server.files.bus_config("server")) as bus,
        harness(server, state, **settings) as h,
    ):
        yield h, Desk(bus)


def test_an_orders_packets_arrive_and_are_confirmed(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """From the order to the receiver: every frame, in order, under tap, key and label; and an end of it."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Workload(netns) as other, Receiver() as receiver:
                label = await h.knows(one.name)
                await h.knows(other.name)
                await desk.order("web", receiver.to, selector=f"name={one.name}", filter="udp port 53")
                await desk.connected("web")
                for port in (53, 54):
                    one.send(300, port=port)
                    other.send(100, port=port)
                await holds(lambda: len(receiver.streams[0].packets) == 300)
                await desk.take_back("web")
                point, stream = await desk.over("web")
            assert (point.matched, point.not_matched, point.written, point.lost) == (300, 300, 300, {})
            assert (stream.confirmed, stream.pending, stream.unanswered, stream.lost) == (300, 0, 0, {})
            (received,) = receiver.streams
            assert received.ended
            assert stream.sent_bytes == len(received.data)
            (section,) = received.sections
            assert json.loads(section.options[1]) == {"host": "h", "tap": "web"}
            assert section.options[19372] == struct.pack("=I", 32473) + KEY.encode()
            (interface,) = section.interfaces
            assert interface.name == one.port
            assert {packet.custom[0] for packet in section.packets} == {label}
            assert [len(packet.data) for packet in section.packets] == [114] * 300

    with_server(tmp_path, test)
