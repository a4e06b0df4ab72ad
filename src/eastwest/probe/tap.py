"""One order to copy, as a probe carries it out: its filters, and its stream to the receiver."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from eastwest.bus.address import host_port
from eastwest.bus.taps import TapOrder
from eastwest.credentials import trust
from eastwest.errors import RefusedError
from eastwest.labels.selector import Selector
from eastwest.tap import pcapng
from eastwest.tap.config import TapConfig
from eastwest.tap.connection import Peer
from eastwest.tap.delivery import Delivery
from eastwest.tap.filter import Filter, Wanted, compiled
from eastwest.tap.payload import parse
from eastwest.tap.pcapng import Interface
from eastwest.tap.reading import Hook
from eastwest.tap.taps import CAPTURE, SHORTEST_SNAPLEN

_EVERY = Wanted()
_MANY_INTERFACES = 512


def decoded(name: str, document: bytes) -> TapOrder:
    """The order under a name. Raises RefusedError for what is none, or cannot be carried out."""
    try:
        order = msgspec.json.decode(document, type=TapOrder)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise RefusedError(f"no order can be read: {error}", "give it again") from None
    if order.name != name:
        raise RefusedError("it is for another name", "give it again under its own")
    if not 0 <= order.snaplen <= CAPTURE or 0 < order.snaplen < SHORTEST_SNAPLEN:
        raise RefusedError(f"snaplen {order.snaplen}", f"choose 0 or {SHORTEST_SNAPLEN} to {CAPTURE}")
    if not 0 <= (order.service_id or 0) < 1 << 32:
        raise RefusedError(f"service_id {order.service_id}", "choose 0 to 4294967295")
    return order


@dataclass(eq=False)
class Running:
    """A stream of a tap that is delivered: its destination's number, and the interfaces it has told of."""

    tap: str
    number: int
    delivery: Delivery
    task: "asyncio.Task[None]"
    interfaces: dict[Interface, int] = field(default_factory=dict)
    unused_since: float = 0.0
    """When the last workload that is selected went (monotonic s); 0: some are here."""

    in_use: set[int] = field(default_factory=set)
    """Interfaces at which something is copied now."""

    @property
    def crowded(self) -> bool:
        """Whether most of what it tells a receiver at each connection is of interfaces that are gone."""
        return len(self.interfaces) > max(_MANY_INTERFACES, 2 * len(self.in_use))

    def interface(self, of: Interface) -> int:
        """Its number in the stream."""
        if of not in self.interfaces:
            self.interfaces[of] = self.delivery.reader.add_interface(of)
        return self.interfaces[of]


class Tap:
    """An order that can be carried out. Raises RefusedError, ConfigError for one that cannot."""

    def __init__(self, order: TapOrder, config: TapConfig) -> None:
        self.order = order
        self.name = order.name
        self.selector = Selector.parse(order.selector)
        self.snaplen = order.snaplen or CAPTURE
        tls = trust(config.ca_file, "[tap] ca_file") if order.tls else None
        self.peer = Peer(*host_port(order.to), tls)
        self.running: Running | None = None
        self.problem = ""
        """Why it is not carried out here at all."""
        self.retries = False
        """Whether that may be over without anybody's doing."""
        self._wanted = Wanted(order.filter, parse(order.payload))
        self._filters: dict[Hook, Filter | RefusedError] = {}

    @property
    def age(self) -> tuple[int, str]:
        """Orders are served in this order where there is not room for all."""
        return self.order.added, self.name

    def take_over(self, before: "Tap") -> bool:
        """Go on with the stream of the order before this one, if it goes to the same receiver."""
        same = ("to", "receiver", "key", "tls")
        if any(getattr(self.order, one) != getattr(before.order, one) for one in same):
            return False
        self.running = before.running
        if self._wanted == before._wanted:
            self._filters = before._filters
        return True

    def section(self, host: str, enterprise: int) -> bytes:
        """What its streams begin with. Only a collector is shown the key."""
        key = self.order.key if self.order.receiver == "collector" else ""
        return pcapng.section(host, self.name, key, enterprise)

    def prepare(self, hooks: Iterable[Hook]) -> None:
        """Have filters for these kinds of hook, or the reasons why there are none. Blocks; see `compiled`.

        Raises RefusedError where there is none at all, KernelError where libpcap cannot be asked now.
        """
        if self._wanted == _EVERY:
            return
        for hook in hooks:
            if hook not in self._filters:
                (self._filters[hook],) = compiled([self._wanted], hook)
        if self.hopeless(hooks):
            self.filter(next(iter(hooks)))

    def hopeless(self, hooks: Iterable[Hook]) -> bool:
        """Whether it is known that there is no filter for any of these."""
        return all(isinstance(self._filters.get(hook), RefusedError) for hook in hooks)

    def filter(self, hook: Hook) -> Filter | None:
        """None: every packet. Raises RefusedError where there can be none; `prepare` it first."""
        if self._wanted == _EVERY:
            return None
        found = self._filters.get(hook)
        if found is None:
            raise RefusedError("its filter is not compiled yet", "it is tried again every second")
        if isinstance(found, RefusedError):
            raise found
        return found
