"""Hands taps' packets on over TCP: to whoever connects to a tap's port (pcap-over-IP), and to applications.

Each is a reader like any other: who is slow or away loses packets of its own, counted, and holds nobody up.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase

from eastwest.bus.address import connect, host_port
from eastwest.collector.endpoints import Endpoints
from eastwest.collector.hub import RELAY, Subscription
from eastwest.collector.streamconfig import RelayConfig, StreamsConfig, address, shown
from eastwest.collector.wire import Wire, listen
from eastwest.credentials import trust
from eastwest.errors import RefusedError

log = logging.getLogger(__name__)

PCAP_OVER_IP = "pcap-over-ip"
"""The kind of reader who connects by himself."""

_TURN_SECONDS = 0.5
_MOST_TAPS = 256
"""Ports that may be tried for one."""
_CONNECT_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_FINISH_SECONDS = 5.0

Subscribe = Callable[[str, str, int | None], Subscription]


class Outlets:
    """What the settings say of who gets which packets. `subscribe`: to a tap, as a kind of reader, to the
    packets of a service or all. Raises ConfigError."""

    def __init__(self, config: StreamsConfig, subscribe: Subscribe, endpoints: Endpoints) -> None:
        self._base = address("streams.pcap_over_ip", config.pcap_over_ip) if config.pcap_over_ip else None
        self._relays = [
            (relay, trust(relay.ca_file, "[[streams.relay]] ca_file") if relay.tls else None)
            for relay in config.relay
        ]
        self._subscribe = subscribe
        self._endpoints = endpoints
        self._serving: dict[str, tuple[socket.socket, asyncio.Task[None]]] = {}
        self._relaying: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._conversations: set[asyncio.Task[None]] = set()
        self._problems: dict[str, str] = {}
        self._ended = False

    def addresses(self) -> dict[str, str]:
        """tap → ADDRESS:PORT where its packets are for whoever connects."""
        return {tap: shown(*made.getsockname()[:2]) for tap, (made, _) in self._serving.items()}

    def problems(self) -> list[str]:
        """What cannot be handed on now, each with its remedy."""
        return list(self._problems.values())

    async def run(self, taps: Callable[[], Sequence[str]]) -> None:
        """See to every tap that there is, for ever."""
        for number, (relay, _) in enumerate(self._relays):
            self._endpoints.set(f"relay {number}", host_port(relay.to))
        try:
            while True:
                self.see_to(taps())
                await asyncio.sleep(_TURN_SECONDS)
        finally:
            self._ended = True
            tasks = [
                *self._conversations,
                *self._relaying.values(),
                *(task for _, task in self._serving.values()),
            ]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            for made, _ in self._serving.values():
                made.close()

    def see_to(self, taps: Sequence[str]) -> None:
        """These are the taps; what comes of them from now on gets to their relays."""
        if self._ended:
            return
        for tap in set(self._serving) - set(taps):
            self._close(tap)
        # A relay ends by itself, once it has handed on all that waited.
        self._relaying = {key: task for key, task in self._relaying.items() if not task.done()}
        for tap in taps:
            if self._base and tap not in self._serving:
                self._serve(tap, self._base)
            for number, (relay, tls) in enumerate(self._relays):
                if (tap, number) not in self._relaying and fnmatchcase(tap, _literal(relay.match)):
                    work = self._relay(self._subscribe(tap, RELAY, relay.service_id), relay, tls)
                    self._relaying[tap, number] = asyncio.create_task(work)

    # -- pcap-over-IP ----------------------------------------------------------------------------------------

    def _serve(self, tap: str, base: tuple[str, int]) -> None:
        made = self._free(base)
        if made:
            self._problems.pop(PCAP_OVER_IP, None)
            place = made.getsockname()[:2]
            self._endpoints.set(f"{PCAP_OVER_IP} {tap}", place)
            self._serving[tap] = made, asyncio.create_task(self._accept(tap, made))
            log.info("tap %s is at %s for whoever connects", tap, shown(*place))
        elif PCAP_OVER_IP not in self._problems:
            self._problems[PCAP_OVER_IP] = (
                f"tap {tap} has no port for pcap-over-IP: none from {shown(*base)} on is free; "
                "set another [streams] pcap_over_ip"
            )
            log.warning("%s", self._problems[PCAP_OVER_IP])

    def _free(self, base: tuple[str, int]) -> socket.socket | None:
        """The first port, from this one on, that nobody has."""
        used = {made.getsockname()[1] for made, _ in self._serving.values()}
        last = min(base[1] + _MOST_TAPS, 1 << 16) if base[1] else 1
        for port in range(base[1], last):
            if port not in used:
                with suppress(OSError):
                    return listen((base[0], port))
        return None

    def _close(self, tap: str) -> None:
        made, task = self._serving.pop(tap)
        task.cancel()
        made.close()
        self._endpoints.set(f"{PCAP_OVER_IP} {tap}", None)

    async def _accept(self, tap: str, made: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, _ = await loop.sock_accept(made)
                reader = self._subscribe(tap, PCAP_OVER_IP, None)
            except RefusedError as error:
                log.warning("%s", error)
                connected.close()
                continue
            except OSError:
                await asyncio.sleep(_TURN_SECONDS)
                continue
            task = asyncio.create_task(self._answer(reader, connected))
            self._conversations.add(task)
            task.add_done_callback(self._conversations.discard)

    async def _answer(self, reader: Subscription, connected: socket.socket) -> None:
        async with reader:
            with suppress(OSError):
                await _hand_on(reader, Wire(connected))

    # -- relays ----------------------------------------------------------------------------------------------

    async def _relay(self, reader: Subscription, relay: RelayConfig, tls: ssl.SSLContext | None) -> None:
        """Hand a tap's packets on until it ends; connect again whenever that breaks."""
        service = "" if relay.service_id is None else f", service {relay.service_id},"
        pause, key = _FIRST_PAUSE, f"{reader.tap}{service} to {relay.to}"
        async with reader:
            try:
                while True:
                    try:
                        wire = await _reach(relay, tls)
                        self._problems.pop(key, None)
                        pause = _FIRST_PAUSE
                        await _hand_on(reader, wire)
                        return
                    except (OSError, TimeoutError) as error:
                        self._problems[key] = (
                            f"tap {key} is not handed on: {error or 'there is no answer'}; start what is to "
                            "take it, or correct [[streams.relay]]"
                        )
                    if await reader.ended(pause):
                        return
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    reader.begin()
            finally:
                self._problems.pop(key, None)


async def _reach(relay: RelayConfig, tls: ssl.SSLContext | None) -> Wire:
    """Raises OSError, TimeoutError."""
    host, port = host_port(relay.to)
    async with asyncio.timeout(_CONNECT_SECONDS):
        wire = Wire(await connect(host, port))
        try:
            if tls:
                await wire.secure(tls, host)
        except BaseException:
            wire.close()
            raise
        return wire


async def _hand_on(reader: Subscription, wire: Wire) -> None:
    """All that a reader gets, until its tap ends. Raises OSError where the other end has left."""
    sending = asyncio.create_task(_send(reader, wire))
    leaving = asyncio.create_task(_leaves(wire))
    try:
        await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            reader.give_back()
            raise ConnectionResetError("it has closed the connection")
        if sending.exception():
            reader.give_back()
        sending.result()
        leaving.cancel()
        await asyncio.wait((leaving,))
        await wire.finish(_FINISH_SECONDS)
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.wait((sending, leaving))
        wire.close()


async def _send(reader: Subscription, wire: Wire) -> None:
    async for data in reader:
        await wire.send(data)


async def _leaves(wire: Wire) -> None:
    """Until the other end has closed; what it says is not looked at."""
    room = memoryview(bytearray(4096))
    with suppress(OSError):
        while await wire.receive(room):
            pass


def _literal(pattern: str) -> str:
    """Only `*` is special."""
    return pattern.replace("[", "[[]").replace("?", "[?]")
