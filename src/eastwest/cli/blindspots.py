"""What no probe on this host can see, however healthy it is: `doctor` names it with its consequence."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from eastwest.cli.machine import Check, Machine

_USERSPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")
_USERSPACE_PORTS = frozenset(
    {"dpdk", "dpdkr", "dpdkvhostuser", "dpdkvhostuserclient", "afxdp", "afxdp-nonpmd"}
)
_USER_NETWORK = re.compile(r"(-netdev|-nic)[\0 ]user|-net[\0 ]user")


def sriov(machine: Machine) -> Check:
    """SR-IOV: a VM that owns a virtual function talks to the network card directly."""
    used = []
    for file in machine.find("/sys/class/net/*/device/sriov_numvfs"):
        count = file.read_text().strip()
        if count not in ("", "0"):
            used.append(f"{file.parts[-3]} ({count})")
    if used:
        return Check(
            "sr-iov",
            "degraded",
            f"virtual functions on {', '.join(used)}: their traffic passes this kernel by and is not seen",
            "give such VMs a tap port, or meter at the network's switch",
        )
    return Check("sr-iov", "ok", "no virtual functions in use")


def userspace_drivers(machine: Machine) -> Check:
    """DPDK and passthrough: a network card that the kernel does not drive."""
    devices = [
        path.name
        for driver in _USERSPACE_DRIVERS
        for path in machine.find(f"/sys/bus/pci/drivers/{driver}/????:*")
        if _is_network(path)
    ]
    if devices:
        return Check(
            "dpdk devices",
            "degraded",
            f"{', '.join(devices)} belong to user-space drivers: traffic there is not seen",
            "leave them to the kernel's driver where the traffic is to be metered",
        )
    return Check("dpdk devices", "ok", "the kernel drives every network card")


def _is_network(device: Path) -> bool:
    # PCI class 02: network controller.
    try:
        return (device / "class").read_text().startswith("0x02")
    except OSError:
        return False


def vhost_user(machine: Machine) -> Check:
    """vhost-user: a VM that shares memory with the virtual switch, with no interface in between."""
    listing = machine.ask(
        "ovs-vsctl", "--timeout=3", "--format=json", "--columns=name,type", "list", "Interface"
    )
    rows = json.loads(listing)["data"] if listing else []
    ports = [str(name) for name, kind in rows if kind in _USERSPACE_PORTS]
    if ports:
        return Check(
            "vhost-user",
            "degraded",
            f"Open vSwitch ports without an interface: {', '.join(ports[:8])}: their traffic is not seen",
            "use tap ports, or an Open vSwitch mirror",
        )
    return Check("vhost-user", "ok", "no ports that bypass the kernel")


def internal_ports(machine: Machine) -> Check:
    """A workload behind an internal port of the switch has no end at the host, where hooks are."""
    listing = machine.ask(
        "ovs-vsctl", "--timeout=3", "--format=json", "--columns=name,type,external_ids", "list", "Interface"
    )
    rows = json.loads(listing)["data"] if listing else []
    ports = [str(name) for name, kind, ids in rows if kind == "internal" and "iface-id" in dict(ids[1])]
    if ports:
        return Check(
            "internal ports",
            "degraded",
            f"Open vSwitch internal ports of workloads: {', '.join(ports[:8])}: not counted as theirs",
            "connect what is to be metered by a veth pair",
        )
    return Check("internal ports", "ok", "no workload is behind one")


def hardware_offload(machine: Machine) -> Check:
    """Offloaded flows are switched in the card: after the first packet no program sees them."""
    offloading = [
        interface.parent.name
        for interface in machine.find("/sys/class/net/*/device")
        if re.search(r"^hw-tc-offload: on", machine.ask("ethtool", "-k", interface.parent.name), re.MULTILINE)
    ]
    switch = machine.ask(
        "ovs-vsctl", "--timeout=3", "--if-exists", "get", "Open_vSwitch", ".", "other_config:hw-offload"
    )
    if "true" in switch:
        offloading.append("Open vSwitch (other_config:hw-offload)")
    if offloading:
        return Check(
            "hardware offload",
            "degraded",
            f"on for {', '.join(offloading)}: flows switched in hardware are not counted",
            "ethtool -K INTERFACE hw-tc-offload off, for interfaces that are to be metered",
        )
    return Check("hardware offload", "ok", "off")


def portless_machines(machine: Machine) -> Check:
    """VMs with user-mode networking have no port here; their traffic is their process's."""
    found = []
    for comm in machine.find("/proc/[0-9]*/comm"):
        try:
            if not comm.read_text().startswith("qemu"):
                continue
            command = (comm.parent / "cmdline").read_text(errors="replace")
        except OSError:  # it has ended
            continue
        if _USER_NETWORK.search(command) or "vfio-pci" in command:
            found.append(comm.parent.name)
    if found:
        return Check(
            "vms without a port",
            "degraded",
            f"qemu processes {', '.join(found)}: with user-mode networking their traffic counts to their "
            "cgroup, with a passed-through card it is not seen",
            "give them a tap port to see what they send",
        )
    return Check("vms without a port", "ok", "none found")


ALL: tuple[Callable[[Machine], Check], ...] = (
    sriov,
    userspace_drivers,
    vhost_user,
    internal_ports,
    hardware_offload,
    portless_machines,
)
