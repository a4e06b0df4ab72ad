"""What holds while a source is away. The sources are scripts of the tests': only when they speak counts."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from eastwest.bus.messages import Facts
from eastwest.errors import InventoryError
from eastwest.inventory.model import Claim
from eastwest.inventory.source import Source
from eastwest.kernel.netns import inside
from tests.conftest import Workload, quiet, run
from tests.kernel.frames import ethernet, ipv4, udp
from tests.system.bus_server import RunningServer
from tests.system.test_probe import IP_BYTES, Harness, harness, holds, with_server

VM = "vm:6a0b1c9e-0000-4000-8000-000000000001"
OTHER = "vm:6a0b1c9e-0000-4000-8000-000000000002"
P0 = frozenset({"p0"})
WEB = Claim(VM, "vm", "web", Facts(tenant="a"), devices=P0)


class Spoken(Source):
    """Says what it is told to say; hangs up when it is told to."""

    def __init__(self, *claims: Claim, name: str = "spoken") -> None:
        super().__init__(name)
        self._wish = asyncio.Event()
        self._wanted: list[Claim] | None = None
        if claims:
            self.speak(*claims)

    def speak(self, *claims: Claim) -> None:
        self._wanted = list(claims)
        self._wish.set()

    def hang_up(self) -> None:
        self._wanted = None
        self._wish.set()

    async def _follow(self) -> None:
        while True:
            self._wish.clear()
            if self._wanted is None:
                raise InventoryError("it is away", "start it")
            self._say({claim.identity: claim for claim in self._wanted})
            await self._wish.wait()


def plug(netns: Path) -> None:
    """p0, and q0 from which to send to it; nothing but its name tells it from the one before."""
    run("ip", "-n", netns.name, "link", "add", "p0", "type", "veth", "peer", "q0")
    for device in ("p0", "q0"):
        quiet(netns, device)
        run("ip", "-n", netns.name, "link", "set", device, "up")


def unplug(netns: Path) -> None:
    run("ip", "-n", netns.name, "link", "del", "p0")


def send(netns: Path, count: int) -> None:
    frame = ethernet(ipv4(udp(bytes(IP_BYTES - 28)), 17), 0x0800)
    with inside(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind(("q0", 0))
        for _ in range(count):
            s.send(frame)


def counted(h: Harness, port: str = "p0") -> Callable[[], bool]:
    return lambda: port in h.probe.ports()


def tenants(h: Harness) -> list[str]:
    return [w.tenant for w in h.probe.workloads() if w.present]


def test_a_name_that_is_given_again_is_not_the_absents(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """What an absent source said of p0 holds for that p0, and not for the next one, which another knows."""

    async def test(server: RunningServer, state: Path) -> None:
        plug(netns)
        absent, there = Spoken(WEB, name="absent"), Spoken(name="there")
        there.speak()
        async with harness(server, state, sources=[absent, there], netns=netns, cgroup_root=cgroup) as h:
            web = await h.knows("web")
            send(netns, 3)
            absent.hang_up()
            await holds(lambda: absent.away)
            send(netns, 2)
            await h.becomes({web: 5})
            unplug(netns)
            plug(netns)
            with Workload(netns) as later:  # what happened before it is known has been taken over
                await h.knows(later.name)
                assert counted(h, later.port)()
                assert not counted(h)()
            there.speak(Claim(OTHER, "vm", "db", devices=P0))
            db = await h.knows("db")
            await holds(counted(h))
            send(netns, 4)
            await h.becomes({web: 5, db: 4})

    with_server(tmp_path, test)


def test_what_is_renamed_stays_its_workloads(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Though a source goes on saying the old name, and another interface has that now: no packet is lost, and
    none of the other's is counted; also while the source is away."""

    async def test(server: RunningServer, state: Path) -> None:
        plug(netns)
        source = Spoken(WEB)
        async with harness(server, state, sources=[source], netns=netns, cgroup_root=cgroup) as h:
            web = await h.knows("web")
            for name in ("p1", "p2"):
                send(netns, 3)
                run("ip", "-n", netns.name, "link", "set", h.probe.ports()[0], "name", name)
                send(netns, 4)
                await holds(counted(h, name))
            run("ip", "-n", netns.name, "link", "add", "p0", "type", "veth", "peer", "r0")
            with Workload(netns) as later:  # what happened before it is known has been taken over
                await h.knows(later.name)
                assert sorted(h.probe.ports()) == sorted(["p2", later.port])
            source.hang_up()
            await holds(lambda: source.away)
            send(netns, 5)
            await h.becomes({web: 19})
            run("ip", "-n", netns.name, "link", "set", "p2", "name", "p3")
            await holds(counted(h, "p3"))
            send(netns, 1)
            await h.becomes({web: 20})
            source.speak(msgspec.structs.replace(WEB, devices=frozenset({"p3"})))
            await holds(lambda: not source.away)
            send(netns, 1)
            await h.becomes({web: 21})
            assert h.probe.ports() == ["p3"]

    with_server(tmp_path, test)


def test_a_port_is_counted_on_until_who_knows_it_speaks_again(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """Also by the next probe, whom it has told nothing yet; what it then does not claim is no port."""

    async def test(server: RunningServer, state: Path) -> None:
        plug(netns)
        async with harness(server, state, sources=[Spoken(WEB)], netns=netns, cgroup_root=cgroup) as h:
            label = await h.knows("web")
            send(netns, 3)
            await h.becomes({label: 3})
        send(netns, 2)
        silent = Spoken()
        async with harness(server, state, sources=[silent], netns=netns, cgroup_root=cgroup) as h:
            send(netns, 4)
            await h.becomes({label: 9})
            silent.speak(WEB)
            assert await h.knows("web") == label
            send(netns, 1)
            await h.becomes({label: 10})
        silent = Spoken()
        async with harness(server, state, sources=[silent], netns=netns, cgroup_root=cgroup) as h:
            assert counted(h)()
            silent.speak()
            await holds(lambda: not counted(h)())

    with_server(tmp_path, test)


def test_facts_hold_until_who_said_them_speaks_again(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """A process is there and its name, the tenant was libvirt's word: the next probe has not heard it yet."""
    process = Claim(VM, "vm", "web", devices=P0)

    async def test(server: RunningServer, state: Path) -> None:
        plug(netns)
        sources = [Spoken(WEB), Spoken(process, name="process")]
        async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
            await h.knows("web")
        silent = Spoken()
        sources = [silent, Spoken(process, name="process")]
        async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
            await h.knows("web")
            assert tenants(h) == ["a"]
            silent.speak()
            await holds(lambda: tenants(h) == [""])

    with_server(tmp_path, test)
