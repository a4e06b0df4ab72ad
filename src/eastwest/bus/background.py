"""Work that a component does by itself while it is entered, and that never dies unnoticed."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self


class Background:
    """One task that ends with its owner; if it fails, the owner's `async with` body is cancelled and the
    failure raised from there. Start and stop it in `__aenter__` and `__aexit__`."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._task = self._group.create_task(work, name=name)

    async def stop(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel the task and wait for its end. Raises what it failed of, if it did."""
        if self._task is None or self._group is None:
            return
        task, group, self._task = self._task, self._group, None
        task.cancel()
        # Only a cancellation can be the group's own doing; any other error stays what it is.
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        try:
            await group.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from error


class Working(ABC):
    """A component that does nothing but work by itself while it is entered: its `_run`, a Background."""

    def __init__(self, task: str) -> None:
        self._work = Background()
        self._task = task

    @abstractmethod
    async def _run(self) -> None:
        """What it does, for ever."""

    async def __aenter__(self) -> Self:
        await self._work.start(self._run(), self._task)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._work.stop(kind, error, trace)


def heed_cancellation() -> None:
    """End if told to: nats-py may swallow that (wait_for before Python 3.12), or fail in its stead."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
