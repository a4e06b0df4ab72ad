"""Who gives orders to copy, and asks what became of them."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from eastwest.bus.client import Bus
from eastwest.bus.taps import (
    ENDPOINTS_BUCKET,
    TAPS_BUCKET,
    TapOrder,
    TapPoint,
    TapsAnswer,
    TapStream,
    taps_subject,
)
from eastwest.errors import BusError
from tests.system.bus_server import RunningServer, until
from tests.system.test_probe import Harness, harness

KEY = "k" * 43


class Desk:
    """Gives orders, and asks what became of them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def order(self, name: str, to: str, **said: Any) -> None:
        told: dict[str, Any] = {"selector": "", "receiver": "collector", "key": KEY, "expires": 0}
        told |= {"added": time.time_ns()} | said
        await self.put(name, msgspec.json.encode(TapOrder(name=name, to=to, **told)))

    async def put(self, name: str, document: bytes) -> None:
        await self._bus.bucket(TAPS_BUCKET).put(name, document)

    async def endpoints(self, who: str, *ends: str) -> None:
        await self._bus.bucket(ENDPOINTS_BUCKET).put(who, msgspec.json.encode(ends))

    async def take_back(self, name: str) -> None:
        await self._bus.bucket(TAPS_BUCKET).delete(name)

    async def answer(self) -> TapsAnswer:
        return msgspec.json.decode(await self._bus.request(taps_subject("h"), b"", 5), type=TapsAnswer)

    async def stream(self, tap: str) -> TapStream:
        """Of one that goes on, or is refused."""
        (stream,) = [one for one in (await self.answer()).streams if one.tap == tap]
        return stream

    async def point(self, tap: str, port: str | None = None) -> TapPoint:
        """Of the one place at which something is copied for it, or of the one port."""
        points = [one for one in (await self.answer()).points if one.tap == tap]
        (point,) = [one for one in points if port is None or one.port == port]
        return point

    async def becomes(self, condition: Callable[[TapsAnswer], object]) -> TapsAnswer:
        """Wait until the answer is so."""
        last: list[TapsAnswer] = []

        async def is_so() -> bool:
            try:
                last[:] = [await self.answer()]
            except BusError:  # not there yet, or not there again
                return False
            return bool(condition(last[0]))

        try:
            await until(is_so, 60)
        except TimeoutError:
            raise AssertionError(f"never became so: {last}") from None
        return last[0]

    async def copying(self, tap: str, places: int = 1, connected: bool = True) -> None:
        """Wait until it is delivered, and something is copied at so many places."""

        def is_so(answer: TapsAnswer) -> bool:
            streams = [one for one in answer.streams if one.tap == tap and one.connected == connected]
            return bool(streams) and sum(one.tap == tap for one in answer.points) == places

        await self.becomes(is_so)

    async def over(self, tap: str) -> tuple[TapPoint, TapStream]:
        """Wait for a tap's end; its sums."""

        def is_over(answer: TapsAnswer) -> bool:
            going_on = any(one.tap == tap for one in (*answer.points, *answer.streams))
            return not going_on and any(one.tap == tap for one in answer.past_streams)

        answer = await self.becomes(is_over)
        (point,) = [one for one in answer.past if one.tap == tap]
        (stream,) = [one for one in answer.past_streams if one.tap == tap]
        return point, stream


@asynccontextmanager
async def site(server: RunningServer, state: Path, **settings: Any) -> AsyncIterator[tuple[Harness, Desk]]:
    """A probe, and somebody who gives it orders."""
    async with (
        Bus(server.files.bus_config("server")) as bus,
        harness(server, state, **settings) as h,
    ):
        yield h, Desk(bus)
