"""A question whose answer may take long: who asks waits a while, then makes do with the last answer."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from eastwest.errors import EastwestError

T = TypeVar("T")


class Latest(Generic[T]):
    """Asks `question` once at a time, however many wait for its answer."""

    def __init__(self, question: Callable[[], Awaitable[T]]) -> None:
        self._question = question
        self._asking: asyncio.Task[None] | None = None
        self._answered = 0.0
        self.answer: T | None = None
        """The last answer; None before the first."""
        self.problem: EastwestError | None = None
        """What the last attempt failed of."""

    @property
    def age(self) -> float:
        """Seconds since the last answer."""
        return time.monotonic() - self._answered

    @property
    def current(self) -> T | None:
        """The answer to the last question; None where that failed, or has not been answered yet."""
        answered = self._asking is not None and self._asking.done() and self.problem is None
        return self.answer if answered else None

    async def refresh(self, seconds: float) -> None:
        """Ask, and wait so long for the answer; it may still come for the next who asks."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="metrics")
        await asyncio.wait((self._asking,), timeout=seconds)

    async def stop(self) -> None:
        """Give up a question that has not been answered."""
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError):
                await self._asking

    async def _ask(self) -> None:
        try:
            self.answer = await self._question()
            self._answered, self.problem = time.monotonic(), None
        except EastwestError as error:
            self.problem = error
