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


def test_who_waits_for_it_ends_when_told_to() -> None:
    """Also where the connection comes at the same moment."""

    async def main() -> None:
        bus = Bus(BusConfig())
        bus._client = object()  # type: ignore[assignment]

        async def use() -> None:
            await bus.connection(wait=60)
            await asyncio.Event().wait()

        using = asyncio.create_task(use())
        await asyncio.sleep(0)
        bus._connected.set()
        await asyncio.sleep(0)
        using.cancel()
        done, _ = await asyncio.wait({using}, timeout=5)
        assert done == {using} and using.cancelled()

    asyncio.run(main())
