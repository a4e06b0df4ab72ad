"""Workloads that come and go faster than anybody looks: each counted for itself, and nothing left of them."""

import asyncio
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eastwest.inventory import namespaces
from eastwest.inventory.namespaces import Namespaces
from eastwest.inventory.ports import Ports
from eastwest.meter import pins
from tests.conftest import Workload, quiet, run
from tests.system.bus_server import RunningServer
from tests.system.test_probe import harness, holds, with_server

CHURN = 200


def held(state: Path) -> Counter[str]:
    """How often this process has what open, and what is pinned."""
    open_now = [one.readlink() for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    kinds = [re.sub(r"\d+", "N", str(one)) for one in open_now]
    return Counter([*kinds, *map(str, pins.directory(state).iterdir())])


def test_200_namespaces_come_and_go_within_a_minute(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Each has a label of its own and exactly its packets; no descriptor, pin, account or port stays."""

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            looks = []
            for _ in range(2):  # what is open for a moment, on a thread, is not there at both
                with Workload(netns) as first:
                    await h.knows(first.name)
                await holds(lambda: not h.probe.ports())
                looks.append(held(state))
            before = looks[0] & looks[1]
            sent: dict[str, int] = {}
            for number in range(CHURN):
                with Workload(netns) as workload:
                    await holds(lambda port=workload.port: port in h.probe.ports())
                    sent[workload.name] = 1 + number % 3
                    workload.send(sent[workload.name])
            await holds(lambda: not h.probe.ports() and h.probe.open_accounts == 1)
            labels = {w.name: w.label for w in h.probe.workloads() if w.name in sent}
            assert len(set(labels.values())) == CHURN
            await h.becomes({labels[name]: count for name, count in sent.items()}, seconds=40)
            assert not any(w.present for w in h.probe.workloads() if w.kind == "netns")
            await holds(lambda: held(state) == before)

    with_server(tmp_path, test)


def test_a_number_used_again_is_another_interface(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Same ifindex, same name, another namespace, within one reading of the news: nothing is inherited."""

    def made(workload: Workload) -> None:
        link = ("ip", "-n", workload.scope, "link", "add", "p0", "index", "4242")
        run(*link, "type", "veth", "peer", "eth0", "netns", workload.name)
        for space, device in ((workload.scope, "p0"), (workload.name, "eth0")):
            quiet(Path("/run/netns") / space, device)
            run("ip", "-n", space, "link", "set", device, "up")
        run("ip", "-n", workload.name, "address", "add", "10.1.0.1/24", "dev", "eth0")
        neighbour = ("10.1.0.2", "lladdr", "02:00:00:00:00:02", "dev", "eth0", "nud", "permanent")
        run("ip", "-n", workload.name, "neighbour", "add", *neighbour)

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            names = [f"{cgroup.name}-{number}" for number in range(2)]
            old, new = (Workload(netns, name) for name in names)
            try:
                for name in names:
                    run("ip", "netns", "add", name)
                made(old)
                label = await h.knows(old.name)
                old.send(3)
                # No await in between: the probe hears of both at once.
                run("ip", "-n", netns.name, "link", "del", "p0")
                made(new)
                other = await h.knows(new.name)
                await holds(lambda: ports_of(h.probe, new.name) == ["p0"])
                new.send(4)
                await h.becomes({label: 3, other: 4})
                assert ports_of(h.probe, old.name) == []
            finally:
                for name in names:
                    run("ip", "netns", "del", name)

    with_server(tmp_path, test)


def test_what_a_bridge_says_of_its_port_changes_nothing(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """A port that a bridge takes, changes and lets go is the same port of the same workload all along."""

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as workload:
                label = await h.knows(workload.name)
                await holds(lambda: ports_of(h.probe, workload.name) == [workload.port])
                accounts = h.probe.open_accounts
                run("ip", "-n", netns.name, "link", "add", "br0", "type", "bridge")
                run("ip", "-n", netns.name, "link", "set", workload.port, "master", "br0")
                run("bridge", "-n", netns.name, "link", "set", "dev", workload.port, "cost", "7")
                run("ip", "-n", netns.name, "link", "set", workload.port, "nomaster")
                with Workload(netns) as later:  # the probe has heard of all that once it knows this one
                    await h.knows(later.name)
                    await holds(lambda: ports_of(h.probe, later.name) == [later.port])
                    workload.send(3)
                    await h.becomes({label: 3})
                    assert ports_of(h.probe, workload.name) == [workload.port]
                    assert h.probe.open_accounts == accounts + 1

    with_server(tmp_path, test)


def ports_of(probe: Any, name: str) -> list[str]:
    return [port.name for w in probe.workloads() if w.name == name for port in w.ports]


HOSTILE_NAME = """
import ctypes, os, sys, time
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
libc = ctypes.CDLL(None)
assert libc.unshare(0x40000000) == 0 and libc.prctl(15, b"\\xff) 1\\n") == 0
print("ready", flush=True)
time.sleep(600)
"""


@contextmanager
def in_container(scope: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a container's cgroup, alone in a namespace, that calls itself by a hostile name."""
    command = [sys.executable, "-c", HOSTILE_NAME, str(scope)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def test_a_process_may_call_itself_whatever_it_likes(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Bytes that are no text, a parenthesis, a line's end: its namespace is its container's all the same."""
    number = secrets.token_hex(32)
    scope = cgroup / f"libpod-{number}.scope"
    scope.mkdir()

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with in_container(scope) as process:
                link = ("ip", "-n", netns.name, "link", "add", "p0", "type", "veth", "peer", "eth0")
                run(*link, "netns", str(process.pid))
                await holds(lambda: ports_of(h.probe, number[:12]) == ["p0"])

    with_server(tmp_path, test)


def test_names_that_are_known_are_not_asked_for_again(netns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands, one more costs one more; a name that is given again is another namespace's."""
    asked: list[Path] = []
    real = Namespaces._nsid

    async def asking(self: Namespaces, path: Path) -> int:
        asked.append(path)
        return await real(self, path)

    monkeypatch.setattr(Namespaces, "_nsid", asking)
    monkeypatch.setattr(namespaces, "_TELLING_NS", 0)

    async def names(ports: Ports) -> set[str]:
        asked.clear()
        await ports.scan()
        spaces = [one.namespace for one in ports.all().values() if one.namespace]
        return {space.owner.name for space in spaces if space.owner}

    async def test() -> None:
        with Workload(netns) as one:
            async with Ports(netns, lambda: None) as ports:
                with Workload(netns) as two:
                    assert await names(ports) == {one.name, two.name}
                    assert two.netns in asked and one.netns not in asked
                    one.down()
                    with Workload(netns, one.name) as again:
                        assert await names(ports) == {again.name, two.name}
                        assert one.netns in asked

    asyncio.run(test())


def test_the_next_namespace_of_an_inode_is_not_the_last_containers(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """The kernel gives an inode to the next one at once; what was read before does not hold."""
    numbers = [secrets.token_hex(32) for _ in range(3)]

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            for number in numbers:
                scope = cgroup / f"libpod-{number}.scope"
                scope.mkdir()
                with in_container(scope) as process:
                    link = ("ip", "-n", netns.name, "link", "add", "p0", "type", "veth", "peer", "eth0")
                    run(*link, "netns", str(process.pid))
                    await holds(lambda number=number: ports_of(h.probe, number[:12]) == ["p0"])
                await holds(lambda: not h.probe.ports())
            assert {w.name for w in h.probe.workloads() if w.ports or w.past_ports} == {
                n[:12] for n in numbers
            }

    with_server(tmp_path, test)
