"""Containers of a real podman under a real probe: every figure is held against what the sender recorded."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eastwest.inventory.config import InventoryConfig
from eastwest.inventory.containers import Containers
from eastwest.inventory.scope import Scope
from eastwest.kernel.netns import inside
from eastwest.meter.rows import FLOW_ROW
from tests.conftest import Workload
from tests.system.bus_server import RunningServer, until
from tests.system.podman_site import PodmanSite, Talker
from tests.system.test_probe import IP_BYTES, Harness, harness, holds, with_server

GATEWAY = "10.88.0.1"
"""Of the bridge that podman makes: on the host's side, here in the test's own namespace."""


@contextmanager
def listener(netns: Path, address: str) -> Iterator[tuple[str, int]]:
    """Where containers may send to without an answer, not even that nobody is there."""
    with inside(netns):
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with s:
        s.bind((address, 0))
        yield address, s.getsockname()[1]


def source(podman: PodmanSite, netns: Path, cgroup: Path) -> Containers:
    scope = Scope(netns, f"/{cgroup.name}")
    return Containers("podman", podman.socket, expected=True, scope=scope, config=InventoryConfig())


async def at_least(talker: Talker, more: int) -> None:
    """Wait until so many more datagrams have been sent."""
    wanted = talker.sent + more
    await holds(lambda: talker.sent >= wanted)


async def datagrams(h: Harness, port: int) -> dict[int, tuple[int, int]]:
    """Label → packets and bytes of what was sent to a port, whoever it was booked to."""
    rows = await h.rows("flows", FLOW_ROW)
    rows = rows[(rows["dst_port"] == port) & (rows["protocol"] == socket.IPPROTO_UDP)]
    return {
        int(label): (
            int(rows["packets"][rows["label"] == label].sum()),
            int(rows["bytes"][rows["label"] == label].sum()),
        )
        for label in set(rows["label"])
    }


async def become(h: Harness, port: int, expected: dict[int, int]) -> None:
    """Wait until the datagrams to a port are as recorded, by label; nobody else's label has any."""
    wanted = {label: (count, count * IP_BYTES) for label, count in expected.items()}

    async def same() -> bool:
        return await datagrams(h, port) == wanted

    try:
        await until(same, 60)
    except TimeoutError:
        raise AssertionError(f"wanted {wanted}, got {await datagrams(h, port)}") from None


async def knows(h: Harness, one: Talker) -> int:
    """Wait until a container is a workload, whatever it is called; its label."""

    def labels() -> list[int]:
        return [w.label for w in h.probe.workloads() if w.cgroup.endswith(one.id)]

    await holds(lambda: bool(labels()))
    (label,) = labels()
    return label


async def metered(h: Harness, label: int) -> None:
    """Wait until a container has a port, and its hook."""

    def ports() -> set[str]:
        return {port.name for w in h.probe.workloads() if w.label == label for port in w.ports}

    await holds(lambda: bool(ports()) and ports() <= set(h.probe.ports()))


def test_two_containers_on_the_hosts_network_are_told_apart(
    podman: PodmanSite, netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """One address, two labels: each has exactly what its sender recorded, from the first packet on."""

    async def test(server: RunningServer, state: Path) -> None:
        podman.serve()
        sources = [source(podman, netns, cgroup)]
        with listener(netns, "127.0.0.1") as target:
            async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
                facts = ("--label=eastwest.tenant=a", "--label=eastwest.service_id=7")
                one = await podman.talker("one", target, "--network=host", *facts)
                two = await podman.talker("two", target, "--network=host")
                first, second = await h.knows("one"), await h.knows("two")
                await at_least(one, 200)
                await at_least(two, 50)
                await podman.podman("stop", "one", "two")
                assert one.sent > 200
                assert two.sent > 50
                await h.becomes({first: one.sent, second: two.sent}, seconds=60)
                (workload,) = [w for w in h.probe.workloads() if w.label == first]
                told = (workload.kind, workload.name, workload.tenant, workload.service_id, workload.ports)
                assert told == ("container", "one", "a", 7, [])
                assert first != second

    with_server(tmp_path, test)


def test_a_container_keeps_its_label_whatever_is_done_to_it(
    podman: PodmanSite, netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """Paused, renamed, restarted, stopped, started, sending all the while: all of it is under one label."""

    async def test(server: RunningServer, state: Path) -> None:
        podman.serve()
        sources = [source(podman, netns, cgroup)]
        with listener(netns, "127.0.0.1") as target:
            async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
                one = await podman.talker("one", target, "--network=host")
                label = await h.knows("one")
                await at_least(one, 20)
                await podman.podman("pause", "one")
                await podman.podman("unpause", "one")
                await at_least(one, 20)
                await podman.podman("rename", "one", "uno")
                assert await h.knows("uno") == label
                await at_least(one, 20)
                await podman.podman("restart", "uno")
                await at_least(one, 20)
                await podman.podman("stop", "uno")
                await holds(lambda: not any(w.present for w in h.probe.workloads() if w.label == label))
                await podman.podman("start", "uno")
                await at_least(one, 20)
                assert await h.knows("uno") == label
                await podman.podman("rm", "--force", "--time=60", "uno")
                await h.becomes({label: one.sent}, seconds=60)
                await holds(lambda: not any(w.present for w in h.probe.workloads() if w.label == label))

    with_server(tmp_path, test)


def test_a_container_with_a_network_of_its_own_is_counted_at_its_port(
    podman: PodmanSite, netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """Its veth is its port, with its name and tenant; over a restart, which makes another, the label stays.

    Before its port is metered it is silent here: what a port passes in the first moments no hook sees.
    """

    async def test(server: RunningServer, state: Path) -> None:
        podman.serve()
        sources = [source(podman, netns, cgroup)]
        async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
            await podman.run("first")  # makes the bridge
            with listener(netns, GATEWAY) as target:
                one = await podman.talker("one", target, "--label=eastwest.tenant=a", silent=True)
                guest = await podman.talker("guest", target, "--network=container:one", silent=True)
                label = await h.knows("one")
                await metered(h, label)
                one.talk()
                guest.talk()
                await at_least(one, 20)
                await at_least(guest, 20)
                await podman.podman("pause", "one")
                await podman.podman("rename", "one", "uno")
                await podman.podman("unpause", "uno")
                assert await h.knows("uno") == label
                await at_least(one, 20)
                await podman.podman("stop", "guest")
                await podman.podman("rm", "--force", "guest")
                one.hush()
                await podman.podman("restart", "uno")
                await metered(h, label)
                one.talk()
                await at_least(one, 20)
                await podman.podman("stop", "uno")
                # Who joins another's namespace sends from the other's port.
                await become(h, target[1], {label: one.sent + guest.sent})
                (workload,) = [w for w in h.probe.workloads() if w.label == label]
                assert (workload.kind, workload.name, workload.tenant) == ("container", "uno", "a")
                totals, flows = await h.totals(), await h.flows()
                assert totals[label] == flows[label]

    with_server(tmp_path, test)


def test_a_container_inherits_nothing(podman: PodmanSite, netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Same name, address and interface as one that is gone: another label, and each its own packets."""

    async def test(server: RunningServer, state: Path) -> None:
        podman.serve()
        sources = [source(podman, netns, cgroup)]
        async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
            await podman.run("first")
            with listener(netns, GATEWAY) as target:
                expected: dict[int, int] = {}
                for _ in range(3):
                    one = await podman.talker("one", target, "--ip=10.88.0.99", silent=True)
                    label = await knows(h, one)
                    await metered(h, label)
                    one.talk()
                    await at_least(one, 20)
                    await podman.podman("stop", "one")
                    await podman.podman("rm", "one")
                    expected[label] = one.sent
                assert len(expected) == 3
                await become(h, target[1], expected)

    with_server(tmp_path, test)


def test_a_namespace_that_somebody_made_is_no_containers(
    podman: PodmanSite, netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """One container after the other enters it: what they send is the namespace's, which was there first."""

    async def test(server: RunningServer, state: Path) -> None:
        podman.serve()
        sources = [source(podman, netns, cgroup)]
        async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as space:
                label, sent = await h.knows(space.name), 0
                await metered(h, label)
                for name in ("one", "two"):
                    one = await podman.talker(name, ("10.1.0.2", 2000), f"--network=ns:{space.netns}")
                    assert await h.knows(name) != label
                    await at_least(one, 20)
                    await podman.podman("stop", name)
                    await podman.podman("rm", name)
                    sent += one.sent
                await h.becomes({label: sent}, seconds=60)

    with_server(tmp_path, test)


def test_a_container_is_known_while_its_engine_is_away(
    podman: PodmanSite, netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """Its cgroup says who it is: its label is right from the start; the engine adds the name later."""

    async def test(server: RunningServer, state: Path) -> None:
        sources = [source(podman, netns, cgroup)]
        with listener(netns, "127.0.0.1") as target:
            async with harness(server, state, sources=sources, netns=netns, cgroup_root=cgroup) as h:
                one = await podman.talker("one", target, "--network=host", "--label=eastwest.tenant=a")
                label = await h.knows(one.id[:12])
                await at_least(one, 20)
                podman.serve()
                assert await h.knows("one") == label
                podman.kill_service()
                await holds(lambda: sources[0].problem is not None)
                two = await podman.talker("two", target, "--network=host")
                other = await h.knows(two.id[:12])
                await at_least(two, 20)
                assert await h.knows("one") == label
                podman.serve()
                assert await h.knows("two") == other
                await podman.podman("stop", "one", "two")
                await h.becomes({label: one.sent, other: two.sent}, seconds=60)
                (workload,) = [w for w in h.probe.workloads() if w.label == label]
                assert (workload.kind, workload.name, workload.tenant) == ("container", "one", "a")

    with_server(tmp_path, test)
