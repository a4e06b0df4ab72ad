"""A bus that is told to end while its library has an answer of its own to that."""

import asyncio

import pytest

from eastwest.bus.client import Bus, BusConfig


@pytest.mark.parametrize("instead", [OSError("no servers"), None])
def test_it_ends_when_told_to(monkeypatch: pytest.MonkeyPatch, instead: OSError | None) -> None:
    """Also where connecting fails in the stead of the cancellation, or swallows it."""

    async def connect(*_: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if instead:
                raise instead from None

    async def close(*_: object) -> None:
        """There is nothing to close."""

    monkeypatch.setattr(Bus, "_connect", connect)
    monkeypatch.setattr("eastwest.bus.client._close", close)

    async def main() -> None:
        async with asyncio.timeout(5), Bus(BusConfig()):
            await asyncio.sleep(0)

    asyncio.run(main())
