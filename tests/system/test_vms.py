"""Real VMs and a real probe: every packet of a guest is its own, as itself or its peer recorded it."""

import asyncio
import secrets
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.libvirt import Libvirt
from eastwest.inventory.qemu import Qemu
from eastwest.inventory.scope import Scope
from eastwest.kernel.netns import inside
from eastwest.meter.check import cgroup_mount
from tests.conftest import run
from tests.system.bus_server import RunningServer
from tests.system.guest import GUEST_MAC, Emulator, Image, boot, words
from tests.system.libvirt_site import definition, libvirtd
from tests.system.test_probe import Harness, harness, holds, with_server

BRIDGE_MAC = "02:00:00:00:01:02"
UDP_SIZE = 72
ETHERNET = 14
TAP_NETWORK = {"address": "10.1.0.1/24", "peer": "10.1.0.2", "peer_mac": BRIDGE_MAC}


@pytest.fixture
def bridge(netns: Path) -> str:
    """A Linux bridge with an address, on which nobody says anything by himself."""
    name = f"b{secrets.token_hex(4)}"
    with inside(netns):
        for which in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
    link = ("ip", "-n", netns.name, "link")
    run(*link, "add", name, "address", BRIDGE_MAC, "type", "bridge", "mcast_snooping", "0")
    run(*link, "set", name, "up")
    run("ip", "-n", netns.name, "address", "add", "10.1.0.2/24", "dev", name)
    neighbour = ("10.1.0.1", "lladdr", GUEST_MAC, "dev", name, "nud", "permanent")
    run("ip", "-n", netns.name, "neighbour", "add", *neighbour)
    return name


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


def test_a_vm_that_two_sources_know_is_one_and_keeps_its_label(
    image: Image, netns: Path, bridge: str, cgroup: Path, tmp_path: Path
) -> None:
    """libvirt's domain and its QEMU process: one label, through pause, stop, renaming and another start."""
    number = str(uuid.uuid4())
    card = f"<interface type='bridge'><mac address='{GUEST_MAC}'/><source bridge='{bridge}'/>"
    metadata = '<e:workload xmlns:e="https://eastwest.dev/libvirt/1" tenant="a" service="web"/>'

    async def test(server: RunningServer, state: Path) -> None:
        with libvirtd(tmp_path / "libvirt", netns, cgroup / "libvirt") as daemon:
            sources = [
                Libvirt(daemon.uri, expected=True, config=InventoryConfig()),
                qemu(netns, cgroup),
            ]
            async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
                admin = await asyncio.to_thread(daemon.connect)
                with receiver(netns, "10.1.0.2") as peer:
                    port = peer.getsockname()[1]
                    line = words(**TAP_NETWORK, more=f"PORT={port} COUNT=25 SIZE={UDP_SIZE}")
                    kernel = f"<kernel>{image.kernel}</kernel><initrd>{image.initramfs}</initrd>"
                    xml = definition(
                        "web",
                        number,
                        f"{card}<model type='virtio'/></interface>",
                        metadata=metadata,
                        boot=f"{kernel}<cmdline>{line}</cmdline>",
                    )
                    vm = await asyncio.to_thread(admin.defineXML, xml)
                    label = await _life(h, vm, "web", number, 25)
                    await asyncio.to_thread(vm.rename, "shop")
                    assert await _life(h, vm, "shop", number, 50) == label
                    assert received(peer) == 50
                admin.close()
            assert [source.problem for source in sources] == [None, None]

    async def _life(h: Harness, vm: Any, name: str, identity: str, packets: int) -> int:
        """One life of the VM, paused in between; its label."""
        await asyncio.to_thread(vm.create)
        label = await h.knows(name)
        await asyncio.to_thread(vm.suspend)
        await asyncio.to_thread(vm.resume)
        await h.counts({label: (packets, packets * (UDP_SIZE + 28))}, seconds=120)
        (present,) = [w for w in h.probe.workloads() if w.present]
        assert (present.label, present.tenant, present.service) == (label, "a", "web")
        assert len(present.ports) == 1
        await asyncio.to_thread(vm.destroy)
        await holds(lambda: not [w for w in h.probe.workloads() if w.present])
        return label

    with_server(tmp_path, test)
