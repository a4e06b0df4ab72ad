"""Which taps there are, as the bus says."""

import asyncio
import logging
import re
import time
from contextlib import suppress

import msgspec

from eastwest.bus.background import Working
from eastwest.bus.client import Bus
from eastwest.bus.taps import TAPS_BUCKET, TapOrder

log = logging.getLogger(__name__)

_NAME = re.compile("[a-z0-9][a-z0-9-]{0,62}")
_AFTER_EXPIRY_NS = 60 * 10**9
"""Clocks of hosts differ, and a stream needs some time to end."""


class TapOrders(Working):
    """Follows the orders while it is entered. Of one that is gone nobody may tell: then its expiry counts."""

    def __init__(self, bus: Bus) -> None:
        super().__init__("orders of taps")
        self._bus = bus
        self._orders: dict[str, TapOrder] = {}
        self._changed = asyncio.Condition()

    @property
    def names(self) -> list[str]:
        """Of all taps in effect that deliver to collectors, the oldest first."""
        found = [order for name in self._orders if (order := self.get(name))]
        return [order.name for order in sorted(found, key=_age) if order.receiver == "collector"]

    def get(self, name: str) -> TapOrder | None:
        """The order of a tap that is in effect."""
        order = self._orders.get(name)
        if order and order.expires and time.time_ns() > order.expires + _AFTER_EXPIRY_NS:
            return None
        return order

    async def soon(self, name: str, seconds: float) -> TapOrder | None:
        """The same, if it comes within this time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self.get(name))
        return self.get(name)

    async def _run(self) -> None:
        async for name, value in self._bus.bucket(TAPS_BUCKET).watch():
            order = _order(name, value)
            if order:
                self._orders[name] = order
            else:
                self._orders.pop(name, None)
            async with self._changed:
                self._changed.notify_all()


def _age(order: TapOrder) -> tuple[int, str]:
    return order.added, order.name


def _order(name: str, value: bytes | None) -> TapOrder | None:
    """Without a word of its content: there is a secret in it."""
    if value is None:
        return None
    try:
        order = msgspec.json.decode(value, type=TapOrder)
    except (msgspec.DecodeError, UnicodeDecodeError):
        order = None
    if order is None or order.name != name or not _NAME.fullmatch(name):
        log.warning("an order of a tap cannot be read: '%s'", name[:64])
        return None
    return order
