"""Which sources of workloads a probe asks: section [inventory] of the TOML file."""

import re
from pathlib import Path

import msgspec

from eastwest.errors import ConfigError

_TCP = re.compile(r"tcp:(?P<host>[^:\[\]]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")


class InventoryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Each source: None is used where it is there, a value must be there, empty is never asked."""

    podman: str | None = None
    """Socket of podman's API service; None: /run/podman/podman.sock."""

    docker: str | None = None
    """Socket of the docker daemon; None: /run/docker.sock."""

    libvirt: str | None = None
    """URI of the libvirt daemon; None: qemu:///system."""

    openvswitch: str | None = None
    """OVSDB socket of Open vSwitch, a path or `tcp:HOST:PORT`; None: /var/run/openvswitch/db.sock."""

    qemu: bool = True
    """Whether VMs are also found by their QEMU processes, of which libvirt need not know."""

    tenant_label: str = "eastwest.tenant"
    """Key of a container's label that names its tenant (the last word: of an attribute of a VM) …"""

    service_label: str = "eastwest.service"
    """… its service …"""

    service_id_label: str = "eastwest.service_id"
    """… and the number of what it belongs to."""

    def __post_init__(self) -> None:
        if self.openvswitch:
            ovsdb_endpoint(self.openvswitch)


def ovsdb_endpoint(text: str) -> Path | tuple[str, int]:
    """Where an OVSDB server listens: a UNIX socket, or host and port. Raises ConfigError."""
    path = Path(text.removeprefix("unix:"))
    if path.is_absolute():
        return path
    remote = _TCP.fullmatch(text)
    if remote is None or not 0 < int(remote["port"]) < 65536:
        raise ConfigError(f"openvswitch = '{text}'", "choose the path of a socket, or tcp:HOST:PORT")
    return remote["host"].strip("[]"), int(remote["port"])
