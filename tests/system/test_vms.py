"""Real VMs and a real probe: every packet of a guest is its own, as itself or its peer recorded it."""

import asyncio
import secrets
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.libvirt import Libvirt
from eastwest.inventory.openvswitch import OpenVSwitch
from eastwest.inventory.qemu import Qemu
from eastwest.inventory.scope import Scope
from eastwest.kernel.netns import inside
from eastwest.meter.check import cgroup_mount
from tests.conftest import require, run
from tests.kernel.frames import ethernet, ipv4, udp
from tests.system.bus_server import RunningServer
from tests.system.guest import EMPTY, GUEST_MAC, Emulator, Image, boot, words
from tests.system.libvirt_site import Libvirtd, definition, libvirtd
from tests.system.test_openvswitch import Switch
from tests.system.test_probe import IP_BYTES, Harness, harness, holds, with_server

BRIDGE_MAC = "02:00:00:00:01:02"
UDP_SIZE = 72
ETHERNET = 14
TAP_NETWORK = {"address": "10.1.0.1/24", "peer": "10.1.0.2", "peer_mac": BRIDGE_MAC}


@pytest.fixture
def bridge(netns: Path) -> str:
    """A Linux bridge with an address, on which nobody says anything by himself."""
    name = f"b{secrets.token_hex(4)}"
    no_ipv6(netns)
    bridge = ("address", BRIDGE_MAC, "type", "bridge", "mcast_snooping", "0")
    run("ip", "-n", netns.name, "link", "add", name, *bridge)
    address(netns, name)
    return name


def no_ipv6(netns: Path) -> None:
    """Nor on what is made later."""
    with inside(netns):
        for which in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")


def address(netns: Path, bridge: str) -> None:
    """The guest's peer, which need not ask for it."""
    run("ip", "-n", netns.name, "link", "set", bridge, "up")
    run("ip", "-n", netns.name, "address", "add", "10.1.0.2/24", "dev", bridge)
    neighbour = ("10.1.0.1", "lladdr", GUEST_MAC, "dev", bridge, "nud", "permanent")
    run("ip", "-n", netns.name, "neighbour", "add", *neighbour)


def qemu(netns: Path, cgroup: Path) -> Qemu:
    mount = cgroup_mount()
    return Qemu(Scope(netns, f"/{cgroup.relative_to(mount)}"), mount)


@contextmanager
def receiver(netns: Path, address: str) -> Iterator[socket.socket]:
    """The other end, which records what comes."""
    with inside(netns):
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with s:
        s.bind((address, 0))
        s.setblocking(False)
        yield s


def received(s: socket.socket) -> int:
    """How many datagrams have come since the last call."""
    count = 0
    while True:
        try:
            s.recv(65536)
        except BlockingIOError:
            return count
        count += 1


def test_a_guest_with_a_tap_is_counted_as_it_counts_itself(
    image: Image, netns: Path, bridge: str, cgroup: Path, tmp_path: Path
) -> None:
    """Both directions, from its first packet: its own interface's counters, less the Ethernet headers."""
    tap = f"t{secrets.token_hex(4)}"
    network = ("-nic", f"tap,ifname={tap},script=no,downscript=no,vnet_hdr=off,model=virtio,mac={GUEST_MAC}")

    async def test(server: RunningServer, state: Path) -> None:
        run("ip", "-n", netns.name, "tuntap", "add", tap, "mode", "tap")
        run("ip", "-n", netns.name, "link", "set", tap, "master", bridge, "up")
        sources = [qemu(netns, cgroup)]
        guest = Emulator(netns, *boot(image, words(**TAP_NETWORK)), *network, "-name", "web")
        async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
            with receiver(netns, "10.1.0.2") as peer, guest:
                label = await h.knows("web")
                await asyncio.to_thread(guest.expect, b"ready")
                port = peer.getsockname()[1]
                command = f"udp 10.1.0.2 {port} 200 {UDP_SIZE}"
                assert "sent 200" in await asyncio.to_thread(guest.tell, command)
                for _ in range(100):
                    peer.sendto(bytes(UDP_SIZE), ("10.1.0.1", 9))
                await holds(lambda: guest.statistic("rx_packets") == 100)
                # It says that nobody listens there, as often as its kernel finds that fit.
                packets = 100 + await asyncio.to_thread(guest.statistic, "tx_packets")
                octets = sum([guest.statistic(name) for name in ("rx_bytes", "tx_bytes")])
                assert (received(peer), packets > 300) == (200, True)
                await h.counts({label: (packets, octets - packets * ETHERNET)})
                (present,) = [w for w in h.probe.workloads() if w.present]
                assert ([port.name for port in present.ports], present.kind) == ([tap], "vm")

    with_server(tmp_path, test)


def test_a_tap_that_is_renamed_stays_its_vms(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """While QEMU has it open: what is sent to it under either name is the VM's, to the packet."""
    require(shutil.which("qemu-system-x86_64"), "needs QEMU: apt-get install qemu-system-x86")
    names = [f"t{secrets.token_hex(4)}" for _ in range(3)]
    network = ("-nic", f"tap,ifname={names[0]},script=no,downscript=no,vnet_hdr=off")
    link = ("ip", "-n", netns.name, "link", "set")

    def send(name: str) -> None:
        with inside(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
            s.bind((name, 0))
            for _ in range(50):
                s.send(ethernet(ipv4(udp(bytes(IP_BYTES - 28)), 17), 0x0800))

    async def test(server: RunningServer, state: Path) -> None:
        no_ipv6(netns)
        sources = [qemu(netns, cgroup)]
        async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
            with Emulator(netns, *EMPTY, *network, "-name", "web"):
                label = await h.knows("web")
                await holds(lambda: h.probe.ports() == names[:1])
                run(*link, names[0], "up")
                send(names[0])
                for old, new in pairwise(names):
                    run(*link, old, "down")
                    run(*link, old, "name", new, "up")
                    send(new)
                    await holds(lambda new=new: h.probe.ports() == [new])
                    send(new)
                await h.becomes({label: 250})

    with_server(tmp_path, test)


def test_a_guest_with_user_mode_networking_is_counted_at_its_emulators_sockets(
    image: Image, netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """It has no interface or address of its own; its datagrams are counted as the other end records them."""
    (cgroup / "vm.scope").mkdir()

    async def test(server: RunningServer, state: Path) -> None:
        sources = [qemu(netns, cgroup)]
        arguments = (*boot(image, words()), "-nic", "user,model=virtio", "-name", "nat")
        async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
            with (
                receiver(netns, "127.0.0.1") as peer,
                Emulator(netns, *arguments, cgroup=cgroup / "vm.scope") as guest,
            ):
                label = await h.knows("nat")
                await asyncio.to_thread(guest.expect, b"ready")
                port = peer.getsockname()[1]
                await asyncio.to_thread(guest.tell, f"udp 10.0.2.2 {port} 150 {UDP_SIZE}")
                count = 0

                def all_came() -> bool:
                    nonlocal count
                    count += received(peer)
                    return count == 150

                await holds(all_came)
                await h.becomes({label: 150})
                assert [w.name for w in h.probe.workloads() if w.present] == ["nat"]

    with_server(tmp_path, test)


@pytest.fixture
def switch(tmp_path: Path, netns: Path) -> Iterator[Switch]:
    """An Open vSwitch whose bridge has the address of the bridge above, in VLAN 7."""
    require(shutil.which("ovs-vswitchd"), "needs Open vSwitch: apt-get install openvswitch-switch")
    no_ipv6(netns)
    (tmp_path / "ovs").mkdir()
    with Switch(tmp_path / "ovs", netns) as switch:
        switch.vsctl(
            "set", "bridge", "br0", f"other_config:hwaddr={BRIDGE_MAC}", "--", "set", "port", "br0", "tag=7"
        )
        address(netns, "br0")
        yield switch


@contextmanager
def defined(daemon: Libvirtd, image: Image, port: int) -> Iterator[Any]:
    """A domain that is defined, on the switch; when it has booted it sends 25 datagrams to `port`."""
    line = words(**TAP_NETWORK, more=f"PORT={port} COUNT=25 SIZE={UDP_SIZE}")
    kernel = f"<kernel>{image.kernel}</kernel><initrd>{image.initramfs}</initrd><cmdline>{line}</cmdline>"
    # The switch takes frames as they come from the tap: the guest finishes its checksums itself.
    card = f"""
<interface type='bridge'><mac address='{GUEST_MAC}'/><source bridge='br0'/><virtualport type='openvswitch'/>
<vlan><tag id='7'/></vlan><model type='virtio'/><driver><host csum='off' gso='off'/></driver></interface>"""
    metadata = '<e:workload xmlns:e="https://eastwest.dev/libvirt/1" tenant="a" service="web"/>'
    connection = daemon.connect()
    try:
        yield connection.defineXML(definition("web", str(uuid.uuid4()), card, metadata=metadata, boot=kernel))
    finally:
        connection.close()


def test_a_vm_that_three_sources_know_is_one_and_keeps_its_label(
    image: Image, netns: Path, switch: Switch, cgroup: Path, tmp_path: Path
) -> None:
    """libvirt, Open vSwitch, and its process: one label with all facts, over pause, renaming and restart."""

    async def life(h: Harness, vm: Any, name: str, packets: int) -> int:
        """From its start to its end, paused in between; its label."""
        await asyncio.to_thread(vm.create)
        label = await h.knows(name)
        await asyncio.to_thread(vm.suspend)
        await asyncio.to_thread(vm.resume)
        await h.counts({label: (packets, packets * (UDP_SIZE + 28))}, seconds=120)
        (one,) = [w for w in h.probe.workloads() if w.present]
        assert (one.label, one.kind, one.tenant, one.service, one.network) == (label, "vm", "a", "web", "7")
        assert len(one.ports) == 1
        await asyncio.to_thread(vm.destroy)
        await holds(lambda: not [w for w in h.probe.workloads() if w.present])
        return label

    async def test(server: RunningServer, state: Path) -> None:
        with (
            libvirtd(tmp_path / "libvirt", netns, cgroup / "libvirt") as daemon,
            receiver(netns, "10.1.0.2") as peer,
            defined(daemon, image, peer.getsockname()[1]) as vm,
        ):
            # Where libvirt looks for the switch.
            (daemon.directory / "run/openvswitch").symlink_to(switch.directory)
            libvirt = Libvirt(daemon.uri, expected=True, config=InventoryConfig())
            sources = [libvirt, qemu(netns, cgroup), OpenVSwitch(str(switch.socket))]
            async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
                label = await life(h, vm, "web", 25)
                await asyncio.to_thread(vm.rename, "shop")
                assert await life(h, vm, "shop", 50) == label
            assert received(peer) == 50
            assert [source.problem for source in sources] == [None, None, None]

    with_server(tmp_path, test)
