"""Which sources of workloads a probe asks: section [inventory] of the TOML file."""

import msgspec


class InventoryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Each source: None is used where it is there, a value must be there, empty is never asked."""

    podman: str | None = None
    """Socket of podman's API service; None: /run/podman/podman.sock."""

    docker: str | None = None
    """Socket of the docker daemon; None: /run/docker.sock."""

    libvirt: str | None = None
    """URI of the libvirt daemon; None: qemu:///system."""

    openvswitch: str | None = None
    """OVSDB socket of Open vSwitch; None: /var/run/openvswitch/db.sock."""

    qemu: bool = True
    """Whether QEMU processes that no daemon speaks of are workloads."""

    tenant_label: str = "eastwest.tenant"
    """Key of a container's label, or attribute of a VM's metadata, that names its tenant …"""

    service_label: str = "eastwest.service"
    """… its service …"""

    service_id_label: str = "eastwest.service_id"
    """… and the number of what it belongs to."""
