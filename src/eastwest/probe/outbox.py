"""Hands the outbox to the stream; what is acknowledged leaves the disk.

In order, but for a run of flows, whose messages are under way side by side: a cut ends with a message of
another kind, which is sent when all before it are in the stream. So who has that one has the whole cut.
"""

import asyncio
import logging

from eastwest.bus.client import Bus
from eastwest.bus.messages import FLOWS
from eastwest.errors import BusError, StoreError
from eastwest.probe.journal import Journal, Outgoing

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_AT_ONCE = 8
"""Messages of flows under way: the bus always has one, and they take little memory."""


class Outbox:
    """The sending side of the journal."""

    def __init__(self, host: str, journal: Journal, bus: Bus) -> None:
        self._host = host
        self._journal = journal
        self._bus = bus
        self._filled = asyncio.Event()
        self.problem: str | None = None

    def wake(self) -> None:
        """There may be messages."""
        self._filled.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            try:
                if not await self._send_next():
                    self._filled.clear()
                    await self._filled.wait()
            except (BusError, StoreError) as e:
                if self.problem != str(e):
                    log.warning("%s", e)
                self.problem = str(e)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _send_next(self) -> bool:
        messages = self._journal.outgoing(_AT_ONCE)
        if not messages:
            return False
        if not messages[0].subject.startswith(f"{FLOWS}."):
            del messages[1:]
        failures = await asyncio.gather(*map(self._publish, messages), return_exceptions=True)
        self._journal.sent([one for one, failure in zip(messages, failures, strict=True) if not failure])
        for failure in failures:
            if failure:
                raise failure
        self.problem = None
        return True

    async def _publish(self, message: Outgoing) -> None:
        await self._bus.publish(
            message.subject,
            message.payload,
            host=self._host,
            boot=message.boot,
            sequence=message.sequence,
        )
