"""What Open vSwitch says of its ports: whose they are (external_ids), on which network (tag or tunnel key).

Hearsay: whoever plugs an interface in writes down what it likes, and what is plugged in need not be a
workload's. So a port without a name of its owner only adds its network to a workload that others know.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from eastwest.bus.messages import Facts
from eastwest.errors import InventoryError
from eastwest.inventory.config import ovsdb_endpoint
from eastwest.inventory.model import Claim, readable
from eastwest.inventory.ovsdb import Map, Monitor, Optional, references
from eastwest.inventory.source import Source, is_there

SYSTEM_SOCKET = "/var/run/openvswitch/db.sock"

_COLUMNS = {
    "Bridge": ("ports", "datapath_type"),
    "Port": ("tag", "interfaces", "other_config"),
    "Interface": ("name", "type", "external_ids"),
}
_WORKLOAD_TYPES = {"", "system", "tap"}
"""An interface of another type is the switch's own, a tunnel, a patch, or none that the kernel knows."""

_KERNEL_DATAPATHS = {"", "system"}
_NUMBER = re.compile("[0-9]{1,10}")
_IDS = {"vm-id", "vm-uuid", "iface-id"}
_LONGEST_ID = 255
_MOST_INTERFACES = 100_000


class Bridge(msgspec.Struct, frozen=True, gc=False):
    """A row of table Bridge, as far as it is asked for."""

    ports: tuple[str, Any]
    datapath_type: str


class Port(msgspec.Struct, frozen=True, gc=False):
    """A row of table Port; several interfaces are a bond."""

    tag: Optional
    interfaces: tuple[str, Any]
    other_config: Map


class Interface(msgspec.Struct, frozen=True, gc=False):
    """A row of table Interface."""

    name: str
    type: str
    external_ids: Map


class BridgeChange(msgspec.Struct, frozen=True, gc=False):
    """None: the row is gone."""

    new: Bridge | None = None


class PortChange(msgspec.Struct, frozen=True, gc=False):
    """None: the row is gone."""

    new: Port | None = None


class InterfaceChange(msgspec.Struct, frozen=True, gc=False):
    """None: the row is gone."""

    new: Interface | None = None


class Change(msgspec.Struct, frozen=True):
    """Rows that changed together, by table and UUID."""

    bridges: dict[str, BridgeChange] = msgspec.field(default_factory=dict, name="Bridge")
    ports: dict[str, PortChange] = msgspec.field(default_factory=dict, name="Port")
    interfaces: dict[str, InterfaceChange] = msgspec.field(default_factory=dict, name="Interface")


class Rows:
    """The monitored rows, and what they say; only what changed is looked at again."""

    def __init__(self) -> None:
        self._bridges: dict[str, Bridge] = {}
        self._ports: dict[str, Port] = {}
        self._interfaces: dict[str, Interface] = {}
        self._port_of: dict[str, str] = {}
        self._unusable: dict[str, str] = {}
        self.claims: dict[str, Claim] = {}
        """By the interface's UUID."""

    @property
    def refused(self) -> str | None:
        """What of it cannot be used, with the remedy."""
        if not self._unusable:
            return None
        where, count = min(self._unusable.values()), len(self._unusable)
        return f"{where} has more than {_LONGEST_ID} characters ({count} such in all); shorten it"

    def apply(self, change: Change) -> None:
        """InventoryError: more than any host has."""
        for key, bridge in change.bridges.items():
            _put(self._bridges, key, bridge.new)
        touched = set(change.interfaces)
        for key, port in change.ports.items():
            before = self._ports.get(key)
            touched.update(references(before.interfaces) if before else ())
            touched.update(references(port.new.interfaces) if port.new else ())
            for one in references(before.interfaces) if before else ():
                self._port_of.pop(one, None)
            for one in references(port.new.interfaces) if port.new else ():
                self._port_of[one] = key
            _put(self._ports, key, port.new)
        for key, changed in change.interfaces.items():
            _put(self._interfaces, key, changed.new)
        if max(len(self._ports), len(self._interfaces), len(self._bridges)) > _MOST_INTERFACES:
            raise InventoryError(f"says that it has more than {_MOST_INTERFACES:,} interfaces")
        for key in touched:
            interface, of = self._interfaces.get(key), self._ports.get(self._port_of.get(key, ""))
            _put(self.claims, key, claim(interface, of) if interface and of else None)
            _put(self._unusable, key, _too_long(interface) if interface else None)

    def userspace_devices(self) -> Iterator[str]:
        """Interfaces of bridges whose datapath is in user space."""
        for bridge in self._bridges.values():
            if bridge.datapath_type not in _KERNEL_DATAPATHS:
                for port in filter(None, map(self._ports.get, references(bridge.ports))):
                    for interface in filter(None, map(self._interfaces.get, references(port.interfaces))):
                        yield readable(interface.name)


def _put(rows: dict[str, Any], key: str, row: object) -> None:
    if row is None:
        rows.pop(key, None)
    else:
        rows[key] = row


def _too_long(interface: Interface) -> str | None:
    """Where an id stands that cannot be used; None: nowhere."""
    long = (key for key, value in interface.external_ids[1] if key in _IDS and len(value) > _LONGEST_ID)
    key = next(long, None)
    return f"external_ids:{key} of interface '{readable(interface.name)[:_LONGEST_ID]}'" if key else None


def claim(interface: Interface, port: Port) -> Claim | None:
    """What a port says of its interface; None: it is no workload's, or nothing is said.

    Identity `vm:<uuid>` or `port:<iface-id>`, as libvirt, Nova and Neutron write them; empty where its owner
    is not named.
    """
    if interface.type not in _WORKLOAD_TYPES:
        return None
    devices, facts = frozenset((readable(interface.name),)), Facts(network=network(port) or None)
    told = interface.external_ids[1]
    ids = {key: value for key, value in told if key in _IDS and 0 < len(value) <= _LONGEST_ID}
    vm = ids.get("vm-id") or ids.get("vm-uuid") or ""
    with suppress(ValueError):
        machine = str(uuid.UUID(vm))
        return Claim(f"vm:{machine}", "vm", machine, facts, devices)
    if "iface-id" in ids:
        name = readable(ids["iface-id"])
        return Claim(f"port:{name}", "port", name, facts, devices)
    return Claim("", "port", "", facts, devices) if facts.network else None


def network(port: Port) -> str:
    """The number of a port's network: as Neutron's agent writes it down, else its VLAN; empty: it has none.

    Under Neutron a port's tag means something on this host only; the segment's number does everywhere.
    """
    told = dict(port.other_config[1])
    number = told.get("segmentation_id", "")
    if told.get("network_type") in {"vxlan", "gre", "geneve", "vlan"} and _NUMBER.fullmatch(number):
        return number
    return str(port.tag) if isinstance(port.tag, int) else ""


class OpenVSwitch(Source):
    """Follows the ports of one Open vSwitch. `where` None: the host's own, if there is one."""

    def __init__(self, where: str | None, *, patience: float = 15.0, quiet: float = 30.0) -> None:
        """ConfigError: `where` is no place of an OVSDB server. Seconds as for `Monitor`."""
        super().__init__("openvswitch")
        self.hearsay = True
        self._wanted = where is not None
        self._endpoint = ovsdb_endpoint(where or SYSTEM_SOCKET)
        self._patience, self._quiet = patience, quiet
        self._rows = Rows()

    @property
    def userspace_devices(self) -> frozenset[str]:
        """Interfaces that a switch in user space reads (AF_PACKET): no TCX program can keep from it what they
        receive. As said last."""
        return frozenset(self._rows.userspace_devices())

    async def _follow(self) -> None:
        if self._absent():
            self._name(None)
            return
        monitor = Monitor(
            self._endpoint, "Open_vSwitch", _COLUMNS, Change, patience=self._patience, quiet=self._quiet
        )
        rows = Rows()
        try:
            async with monitor:
                async for changes in monitor:
                    self._heed(rows, changes)
        except InventoryError as e:
            where = self._endpoint if isinstance(self._endpoint, Path) else ":".join(map(str, self._endpoint))
            remedy = 'start openvswitch-switch, or correct openvswitch in [inventory] ("": never ask)'
            raise InventoryError(f"its database at {where} {e.what}", remedy) from e

    def _absent(self) -> bool:
        """Whether nobody asked for it, and it never said a thing."""
        there = self._wanted or self._claims or not isinstance(self._endpoint, Path)
        return not there and not is_there(Path(SYSTEM_SOCKET))

    def _heed(self, rows: Rows, changes: list[Change]) -> None:
        for change in changes:
            rows.apply(change)
        self._rows = rows
        self._say(dict(rows.claims), rows.refused)
        if any(change.bridges for change in changes):
            self._changed()
