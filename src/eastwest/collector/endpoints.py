"""Tells the probes where the collector's own connections end, so that no tap copies them."""

import asyncio
import json
import logging
import socket
from contextlib import suppress
from ipaddress import ip_address

from pyroute2 import IPRoute

from eastwest.bus.background import Working
from eastwest.bus.client import Bus
from eastwest.bus.taps import ENDPOINTS_BUCKET
from eastwest.collector.streamconfig import shown
from eastwest.errors import BusError

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 60.0
"""Names may come to mean other addresses, and a bus may have lost its disk."""
_RETRY_SECONDS = 2.0


class Endpoints(Working):
    """Says on the bus, while it is entered, which addresses and TCP ports are ours."""

    def __init__(self, bus: Bus) -> None:
        super().__init__("endpoints")
        self._bus = bus
        self._places: dict[str, tuple[str, int]] = {}
        self._changed = asyncio.Event()

    def set(self, name: str, place: tuple[str, int] | None) -> None:
        """`name` is at this host and port now, where one of our connections ends; None: no more."""
        if place is None:
            self._places.pop(name, None)
        else:
            self._places[name] = place
        self._changed.set()

    async def _run(self) -> None:
        bucket = self._bus.bucket(ENDPOINTS_BUCKET)
        while True:
            self._changed.clear()
            wait = _AGAIN_SECONDS
            try:
                if "streams" in self._places:
                    await bucket.put(self._key(), json.dumps(await self._addresses()).encode())
            except BusError as error:
                log.debug("endpoints are not told: %s", error)
                wait = _RETRY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def _key(self) -> str:
        """One for each collector of a fleet: its host and the port where it takes streams."""
        host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname())
        return f"streams-{host}-{self._places['streams'][1]}"

    async def _addresses(self) -> list[str]:
        loop = asyncio.get_running_loop()
        found: set[str] = set()
        for host, port in list(self._places.values()):
            addresses: list[str] = []
            with suppress(OSError):
                told = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = [str(sockaddr[0]) for *_, sockaddr in told]
            for one in addresses:
                every = await asyncio.to_thread(_own) if ip_address(one).is_unspecified else [one]
                found |= {shown(each, port) for each in every}
        return sorted(found)


def _own() -> list[str]:
    """All addresses of this host."""
    with IPRoute() as netlink:
        return [str(message.get_attr("IFA_ADDRESS")) for message in netlink.get_addr()]
