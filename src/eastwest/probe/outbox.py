"""Hands the outbox to the stream, in order; what is acknowledged leaves the disk."""

import asyncio
import logging

from eastwest.bus.client import Bus
from eastwest.errors import BusError, StoreError
from eastwest.probe.journal import Journal

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


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
        message = self._journal.outgoing()
        if message is None:
            return False
        await self._bus.publish(
            message.subject,
            message.payload,
            host=self._host,
            boot=message.boot,
            sequence=message.sequence,
        )
        self._journal.sent(message)
        self.problem = None
        return True
