"""What every role's process has in common: its log, and how it is ended."""

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

_UMASK = 0o077
"""Who talks to whom is nobody else's business: what a role writes is its user's alone."""

_SETTLED_SECONDS = 5.0
"""After which what a role has made is mostly what it keeps."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(role: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a role until it ends, or until SIGTERM or SIGINT, on which it is cancelled and cleans up."""
    os.umask(_UMASK)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # One for each VM, or each connection: the customary 1,024 are for programs that use select().
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=_FORMAT)
    # Every request of every poll is not news.
    for chatty in ("httpx", "httpcore", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    asyncio.run(_until_told(role))


async def told() -> None:
    """What a role waits for that has nothing else to do: being cancelled."""
    await asyncio.Event().wait()


async def _until_told(role: Callable[[], Coroutine[Any, Any, None]]) -> None:
    task = asyncio.create_task(role(), name="role")
    told = False

    def end() -> None:
        nonlocal told
        told = True
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.call_later(_SETTLED_SECONDS, _settle)
    try:
        await task
    except asyncio.CancelledError:
        if not told:
            raise


def _settle() -> None:
    """What is there for good is not looked through again and again for what is not."""
    gc.collect()
    gc.freeze()
