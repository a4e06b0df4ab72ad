"""What a lab consists of: its workloads, what they are called, and what they say to each other.

All names begin with the lab's, so that what a lab made can be found again, and removed, without having been
told. Both tenants use the same addresses and the same ports: only the VLAN tag of the switch tells their
packets apart. They differ in volume, so that mixing them up shows in the numbers.
"""

import re
import secrets
from typing import Any, Literal

import msgspec

from eastwest.errors import ConfigError

TENANTS = (("a", 101), ("b", 102))
"""Tenant → VLAN tag."""
CLIENT_ADDRESS, SERVER_ADDRESS, PREFIX_LENGTH = "10.0.0.1", "10.0.0.2", 24
GUEST_INTERFACE = "eth0"
LOOPBACK = "127.0.0.1"
MACHINE_ADDRESS, MACHINE_GATEWAY = "10.0.2.15", "10.0.2.2"
"""What QEMU's user-mode networking gives to every VM; the gateway leads to the host's loopback."""
CONTAINER_OWNER = ("c", "cart")
"""Tenant and service, as the containers' labels have them."""
SERVICE_PORTS = {"http": 80, "dns": 53, "bulk": 5201, "udp": 5004}
CLIENT_PORTS = {"http": 40080, "dns": 40053, "bulk": 45201, "udp": 45004}
SMALL_SEGMENT = 1460
"""An MSS far below lo's MTU makes the kernel send GSO super-packets there."""
NAME = re.compile(r"[a-z][a-z0-9]{1,9}")

Kind = Literal["http", "dns", "bulk", "udp"]

QUIET = {
    # Router solicitations, duplicate address detection and multicast reports are frames nobody sent.
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    # SACK blocks would make the size of an acknowledgement something that no counter tells.
    "net/ipv4/tcp_sack": "0",
}


class Flow(msgspec.Struct, frozen=True):
    """One kind of traffic: `size` bytes of payload (HTTP: of page) every `interval` seconds."""

    kind: Kind
    size: int
    interval: float


VOLUMES = {
    "a": (Flow("http", 3000, 0.05), Flow("dns", 0, 0.05), Flow("bulk", 16384, 0.1), Flow("udp", 200, 0.02)),
    "b": (Flow("http", 900, 0.04), Flow("dns", 0, 0.08), Flow("bulk", 8192, 0.12), Flow("udp", 512, 0.025)),
    "host": (
        Flow("http", 5000, 0.05),
        Flow("dns", 0, 0.06),
        Flow("bulk", 50000, 0.1),
        Flow("udp", 160, 0.02),
    ),
    "containers": (
        Flow("http", 2000, 0.05),
        Flow("dns", 0, 0.07),
        Flow("bulk", 30000, 0.1),
        Flow("udp", 300, 0.03),
    ),
    # TCP would end in QEMU, and what the host sees would not be the guest's segments.
    "machine": (Flow("dns", 0, 0.1), Flow("udp", 400, 0.05)),
}


class Guest(msgspec.Struct, frozen=True, tag="guest"):
    """A VM-like workload: a network namespace, and its port in the switch."""

    name: str
    port: str
    mac: str
    address: str
    peer_address: str
    peer_mac: str
    tag: int
    tenant: str


class Group(msgspec.Struct, frozen=True, tag="group"):
    """A group of processes on the host's network; `directory` below the lab's slice."""

    name: str
    directory: str


class Container(msgspec.Struct, frozen=True, tag="container"):
    """A container on the host's network, with labels that say who it belongs to."""

    name: str
    tenant: str
    service: str


class Machine(msgspec.Struct, frozen=True, tag="machine"):
    """A QEMU VM with user-mode networking, its emulator in a cgroup: `directory` below the lab's slice."""

    name: str
    directory: str


Workload = Guest | Group | Container | Machine


class Pair(msgspec.Struct, frozen=True):
    """Two workloads that talk only with each other. `flows` go from the client to the server."""

    client: Workload
    server: Workload
    flows: tuple[Flow, ...]

    def offers(self) -> list[dict[str, Any]]:
        """What the server opens. The host's ports may be taken: there the kernel chooses them."""
        shared = not isinstance(self.server, Guest)
        address = self.server.address if isinstance(self.server, Guest) else LOOPBACK
        return [
            {
                "kind": flow.kind,
                "address": address,
                "port": 0 if shared else SERVICE_PORTS[flow.kind],
                "segment": SMALL_SEGMENT * (shared and flow.kind == "bulk"),
            }
            for flow in self.flows
        ]

    def orders(self, ports: dict[str, int]) -> list[dict[str, Any]]:
        """What the client does, where the server listens at `ports`."""
        shared = not isinstance(self.client, Guest)
        address = self.client.address if isinstance(self.client, Guest) else LOOPBACK
        peer = self.server.address if isinstance(self.server, Guest) else LOOPBACK
        if isinstance(self.client, Machine):
            address, peer = MACHINE_ADDRESS, MACHINE_GATEWAY
        return [
            {
                **msgspec.to_builtins(flow),
                "address": address,
                "port": 0 if shared else CLIENT_PORTS[flow.kind],
                "to": peer,
                "to_port": ports[flow.kind],
                "segment": SMALL_SEGMENT * (shared and flow.kind == "bulk"),
            }
            for flow in self.flows
        ]


class Plan(msgspec.Struct, frozen=True):
    """A whole lab."""

    name: str
    bridge: str
    slice: str
    pairs: tuple[Pair, ...]

    @property
    def workloads(self) -> list[Workload]:
        return [workload for pair in self.pairs for workload in (pair.client, pair.server)]

    @property
    def guests(self) -> list[Guest]:
        return [workload for workload in self.workloads if isinstance(workload, Guest)]

    @property
    def groups(self) -> list[Group]:
        return [workload for workload in self.workloads if isinstance(workload, Group)]

    @property
    def containers(self) -> list[Container]:
        return [workload for workload in self.workloads if isinstance(workload, Container)]

    @property
    def machines(self) -> list[Machine]:
        return [workload for workload in self.workloads if isinstance(workload, Machine)]


def random_name() -> str:
    """A name that no other lab on the host has; one that did would be refused, not mixed up."""
    return f"lab{secrets.token_hex(3)}"


def tenant_pair(lab: str, tenant: str, tag: int, flows: tuple[Flow, ...]) -> Pair:
    """A client and a server of one tenant."""
    macs = [f"02:{tag & 0xFF:02x}:" + ":".join(secrets.token_hex(1) for _ in range(4)) for _ in range(2)]
    addresses = (CLIENT_ADDRESS, SERVER_ADDRESS)
    client, server = (
        Guest(
            name=f"{lab}-{tenant}{number + 1}",
            port=f"{lab}{tenant}{number + 1}",
            mac=macs[number],
            address=addresses[number],
            peer_address=addresses[1 - number],
            peer_mac=macs[1 - number],
            tag=tag,
            tenant=tenant,
        )
        for number in range(2)
    )
    return Pair(client, server, flows)


def container_pair(lab: str) -> Pair:
    """Two containers behind one address."""
    tenant, service = CONTAINER_OWNER
    client, server = (Container(f"{lab}-{tenant}{number}", tenant, service) for number in (1, 2))
    return Pair(client, server, VOLUMES["containers"])


def machine_pair(lab: str) -> Pair:
    """A VM without an address of its own, and a group that answers it."""
    server = Group(f"{lab}-dns", f"{lab}-dns.scope")
    return Pair(Machine(f"{lab}-vm", f"{lab}-vm"), server, VOLUMES["machine"])


def plan(name: str = "", *, containers: bool = False, machine: bool = False) -> Plan:
    """The lab called `name`, or a random name. ConfigError: no interface could be named after it."""
    name = name or random_name()
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a lab's name", "use 2 to 10 lower-case letters and digits, first a letter"
        )
    load, web = (Group(f"{name}-{role}", f"{name}-{role}.scope") for role in ("load", "web"))
    pairs = [tenant_pair(name, tenant, tag, VOLUMES[tenant]) for tenant, tag in TENANTS]
    pairs.append(Pair(load, web, VOLUMES["host"]))
    pairs += [container_pair(name)] if containers else []
    pairs += [machine_pair(name)] if machine else []
    return Plan(name, f"{name}br", f"{name}.slice", tuple(pairs))
