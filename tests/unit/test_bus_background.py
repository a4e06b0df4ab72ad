"""Background work ends with its owner, and takes it along if it fails."""

import asyncio
from typing import Self

import pytest

from eastwest.bus.background import Background
from eastwest.errors import ConfigError


class Owner:
    def __init__(self, failing: bool) -> None:
        self._failing = failing
        self._work = Background()
        self.cancelled = False

    async def __aenter__(self) -> Self:
        await self._work.start(self._run(), "work")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._work.stop(*error)  # type: ignore[arg-type]

    async def _run(self) -> None:
        if self._failing:
            raise ValueError("broken")
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


def test_work_ends_with_its_owner_and_can_start_again() -> None:
    async def scenario() -> None:
        owner = Owner(failing=False)
        for _ in range(2):
            owner.cancelled = False
            async with owner:
                await asyncio.sleep(0)
            assert owner.cancelled

    asyncio.run(scenario())


def test_failure_ends_the_owner() -> None:
    async def scenario() -> None:
        async with asyncio.timeout(5), Owner(failing=True):
            await asyncio.Event().wait()

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(scenario())


def test_error_of_the_body_stays_what_it_is() -> None:
    async def scenario() -> None:
        async with Owner(failing=False):
            await asyncio.sleep(0)
            raise ConfigError("x")

    with pytest.raises(ConfigError, match="x"):
        asyncio.run(scenario())


def test_cancelled_from_outside_is_cancelled() -> None:
    async def scenario() -> None:
        async def body() -> None:
            async with Owner(failing=False):
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
