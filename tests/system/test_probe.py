"""The probe on a real bus: whatever it sees is booked to whom it belongs, at once, late, or again."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eastwest.bus.client import Bus
from eastwest.inventory.source import Source
from eastwest.kernel.netns import OWN as NETNS
from eastwest.kernel.netns import inside
from eastwest.labels.rules import Rule
from eastwest.meter import pins
from eastwest.meter.rows import FLOW_ROW, TOTAL_ROW
from eastwest.probe.config import ProbeConfig, SuspectConfig
from eastwest.probe.probe import Probe
from eastwest.tap.config import TapConfig
from tests.conftest import Workload, quiet, run
from tests.kernel.frames import ethernet, ipv4, udp
from tests.system.bus_server import RunningServer, running, until
from tests.system.stream import messages

IP_BYTES = 100


class Harness:
    """A running probe of a scope of its own, and what it has put on the bus."""

    def __init__(self, probe: Probe, server: RunningServer) -> None:
        self.probe = probe
        self._server = server

    async def rows(self, kind: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """All rows of a kind in the stream."""
        payloads = await messages(self._server, kind)
        return np.frombuffer(b"".join(payloads), dtype)

    async def totals(self) -> dict[int, tuple[int, int]]:
        """label → packets and bytes sent and received, of the last totals of each account."""
        last = {int(row["serial"]): row for row in await self.rows("totals", TOTAL_ROW)}
        sums: dict[int, tuple[int, int]] = {}
        for row in last.values():
            packets, octets = sums.get(int(row["label"]), (0, 0))
            packets += int(row["ingress_packets"] + row["egress_packets"])
            octets += int(row["ingress_bytes"] + row["egress_bytes"])
            sums[int(row["label"])] = packets, octets
        return {label: sum_ for label, sum_ in sums.items() if sum_ != (0, 0)}

    async def flows(self) -> dict[int, tuple[int, int]]:
        """label → packets and bytes in flow rows."""
        rows = await self.rows("flows", FLOW_ROW)
        return {
            int(label): (
                int(rows["packets"][rows["label"] == label].sum()),
                int(rows["bytes"][rows["label"] == label].sum()),
            )
            for label in np.unique(rows["label"])
        }

    async def becomes(self, expected: dict[int, int], seconds: float = 20) -> None:
        """Wait until label → packets is as expected, each of IP_BYTES."""
        await self.counts({label: (n, n * IP_BYTES) for label, n in expected.items()}, seconds)

    async def counts(self, wanted: dict[int, tuple[int, int]], seconds: float = 20) -> None:
        """Wait until label → packets and bytes is as wanted, in totals and in flows alike."""
        got: object = None

        async def same() -> bool:
            nonlocal got
            got = await self.totals(), await self.flows()
            return got == (wanted, wanted)

        try:
            await until(same, seconds)
        except TimeoutError:
            raise AssertionError(f"wanted {wanted}, got {got}") from None

    def label(self, name: str) -> int:
        (label,) = [w.label for w in self.probe.workloads() if w.name == name]
        return label

    async def knows(self, name: str) -> int:
        """Wait for a workload; its label."""
        await holds(lambda: name in [w.name for w in self.probe.workloads() if w.present])
        return self.label(name)


async def holds(condition: Callable[[], bool]) -> None:
    """Wait for a condition; fail if it does not hold in time."""

    async def answer() -> bool:
        return condition()

    await until(answer)


@asynccontextmanager
async def harness(
    server: RunningServer,
    state: Path,
    rules: list[Rule] | None = None,
    sources: Sequence[Source] = (),
    *,
    suspect: SuspectConfig | None = None,
    tap: TapConfig | None = None,
    **settings: Any,
) -> AsyncIterator[Harness]:
    """Run a probe; what it pinned stays."""
    config = ProbeConfig(
        host="h", state_dir=state, interval_seconds=0.2, flow_entries=4096, accounts=64, **settings
    )
    async with (
        Bus(server.files.bus_config("probe")) as bus,
        Probe(config, rules or [], bus, sources, suspect=suspect, tap=tap) as probe,
    ):
        task = asyncio.create_task(probe.run())
        try:
            yield Harness(probe, server)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def with_server(tmp_path: Path, test: Callable[[RunningServer, Path], Awaitable[None]]) -> None:
    """Run an async test with a nats-server of its own, and unpin afterwards."""

    async def main() -> None:
        with running(tmp_path / "nats") as server:
            await test(server, tmp_path / "state")

    try:
        asyncio.run(main())
    finally:
        pins.remove(tmp_path / "state")


def test_a_new_port_is_counted_from_its_first_packet(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Two namespaces with the same address: each has its own label, port and counts, byte-exact."""

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as one, Workload(netns) as two:
                first, second = await h.knows(one.name), await h.knows(two.name)
                one.send(1000)
                two.send(300)
                await h.becomes({first: 1000, second: 300})
                rows = await h.rows("flows", FLOW_ROW)
                assert {(int(r["label"]), r["port"].decode()) for r in rows} == {
                    (first, one.port),
                    (second, two.port),
                }
                (workload,) = [w for w in h.probe.workloads() if w.name == one.name]
                assert workload.addresses == ["10.1.0.1"]
            await holds(lambda: not any(w.present for w in h.probe.workloads() if w.kind == "netns"))
            (workload,) = [w for w in h.probe.workloads() if w.name == one.name]
            assert (workload.past_ports, workload.past_addresses) == ([one.port], ["10.1.0.1"])

    with_server(tmp_path, test)


def test_what_was_seen_before_a_label_could_be_given_is_booked_to_it(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """With no bus there is no label: traffic waits, and belongs to the workload once the bus is there."""

    async def test(server: RunningServer, state: Path) -> None:
        server.kill()
        async with harness(server, state, netns=netns, cgroup_root=cgroup, hold_seconds=30) as h:
            with Workload(netns) as workload:
                await holds(lambda: bool(h.probe.ports()))
                workload.send(50)
                await holds(lambda: h.probe.held_packets == 50)
                server.start()
                label = await h.knows(workload.name)
                await h.becomes({label: 50})

    with_server(tmp_path, test)


def test_what_waits_too_long_is_label_0_for_good(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """After the hold, traffic is unattributed and stays so; what comes after the label is the workload's."""

    async def test(server: RunningServer, state: Path) -> None:
        server.kill()
        async with harness(server, state, netns=netns, cgroup_root=cgroup, hold_seconds=1) as h:
            with Workload(netns) as workload:
                await holds(lambda: bool(h.probe.ports()))
                workload.send(50)
                await holds(lambda: h.probe.held_packets == 50)
                await holds(lambda: h.probe.held_packets == 0)
                server.start()
                label = await h.knows(workload.name)
                await h.becomes({0: 50})
                workload.send(7)
                await h.becomes({0: 50, label: 7})

    with_server(tmp_path, test)


_SENDER = """
import socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 0))
for _ in range(int(sys.argv[2])):
    s.sendto(bytes(72), s.getsockname())
    s.recv(100)
"""


def talk(cgroup: Path, netns: Path, count: int) -> None:
    """From inside a cgroup, send datagrams to oneself over lo: count in each direction."""
    command = ["nsenter", f"--net={netns}", sys.executable, "-c", _SENDER, str(cgroup), str(count)]
    subprocess.run(command, check=True)


def test_nested_cgroups_belong_to_the_nearest_workload_above(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """scope over slice, plain directories to whatever holds them, at depth five; outside all: label 0."""

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            slice_, scope = cgroup / "a.slice", cgroup / "a.slice/b.scope"
            deep = scope / "c/d/e"
            for path in (slice_, scope, scope / "c", scope / "c/d", deep, slice_ / "x", cgroup / "plain"):
                path.mkdir()
            # At once: some of these packets come before the probe has heard of the cgroup.
            talk(deep, netns, 10)
            talk(scope, netns, 20)
            talk(slice_ / "x", netns, 30)
            talk(cgroup / "plain", netns, 40)
            a, b = await h.knows("a"), await h.knows("b")
            await h.becomes({b: 60, a: 60, 0: 80})

    with_server(tmp_path, test)


def test_a_cgroup_that_lives_shorter_than_a_cut_is_booked(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Made, used and removed before the probe looks: its events kept its name."""

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            brief = cgroup / "brief.scope"
            brief.mkdir()
            talk(brief, netns, 5)
            brief.rmdir()
            await holds(lambda: "brief" in [w.name for w in h.probe.workloads()])
            await h.becomes({h.label("brief"): 10})

    with_server(tmp_path, test)


def test_a_workload_that_comes_back_has_its_label_and_a_new_one_has_its_own(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """The label goes with the identity, over a removal and over the probe's restart; totals go on."""

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as workload:
                label = await h.knows(workload.name)
                workload.send(3)
            with Workload(netns) as other:
                assert await h.knows(other.name) > label
            await h.becomes({label: 3})
        with Workload(netns, name=workload.name) as again:
            async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
                assert await h.knows(again.name) == label
                again.send(4)
                await h.becomes({label: 7})

    with_server(tmp_path, test)


def test_counting_goes_on_without_the_probe(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """What is sent while no probe runs, to a port and from a cgroup, is there for the next one."""

    async def test(server: RunningServer, state: Path) -> None:
        scope = cgroup / "g.scope"
        scope.mkdir()
        with Workload(netns) as workload:
            async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
                label, group = await h.knows(workload.name), await h.knows("g")
                workload.send(5)
            workload.send(6)
            talk(scope, netns, 7)
            async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
                await h.becomes({label: 11, group: 14})

    with_server(tmp_path, test)


def test_clsact_counts_the_same_where_there_is_no_tcx(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Selected by hand: exact counts, over a restart too, and no filter stays behind."""

    def filters(workload: Workload) -> str:
        command = ("tc", "-n", workload.scope, "filter", "show", "dev", workload.port, "ingress")
        return run(*command)

    async def test(server: RunningServer, state: Path) -> None:
        with Workload(netns) as workload:
            async with harness(server, state, netns=netns, cgroup_root=cgroup, attach="clsact") as h:
                label = await h.knows(workload.name)
                workload.send(8)
            workload.send(9)
            assert "port_ingress" in filters(workload)
            async with harness(server, state, netns=netns, cgroup_root=cgroup, attach="clsact") as h:
                await h.becomes({label: 17})
            pins.remove(state)
            assert filters(workload) == ""

    with_server(tmp_path, test)


def test_a_rule_gives_facts_and_class(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """A later rule wins; a suspect workload's packets are counted apart as well."""

    async def test(server: RunningServer, state: Path) -> None:
        with Workload(netns) as workload:
            rules = [
                Rule(match="kind=netns", tenant="a", service="old"),
                Rule(match=f"name={workload.name}", service="web", service_id=7, traffic_class="suspect"),
            ]
            async with harness(server, state, rules, netns=netns, cgroup_root=cgroup) as h:
                label = await h.knows(workload.name)
                workload.send(9)
                await h.becomes({label: 9})
                (known,) = h.probe.workloads()
                assert (known.tenant, known.service, known.service_id) == ("a", "web", 7)
                last = (await h.rows("totals", TOTAL_ROW))[-1]
                assert (last["suspect_egress_packets"], last["suspect_egress_bytes"]) == (9, 900)
                assert (await h.rows("flows", FLOW_ROW))["class"].tolist() == [1]

    with_server(tmp_path, test)


def test_what_no_cgroup_hook_sees_is_said(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Echo requests from a socket: the kernel answers without one, and that egress is said to be unseen."""
    echo = """
import socket, struct, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
for n in range(10):
    packet = struct.pack('!BBHHH', 8, 0, 0, 1, n)
    total = sum(struct.unpack('!4H', packet))
    packet = struct.pack('!BBHHH', 8, 0, ~((total >> 16) + total) & 0xFFFF, 1, n)
    s.sendto(packet, ('127.0.0.1', 0))
    while s.recv(100)[20] != 0:
        pass
"""

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup, host_interfaces=("lo",)) as h:
            run("nsenter", f"--net={netns}", sys.executable, "-c", echo, str(cgroup))
            (lo,) = h.probe.interfaces()
            assert (lo.ingress_packets, lo.egress_packets) == (20, 20)
            assert (lo.ingress_not_seen_by_cgroup, lo.egress_not_seen_by_cgroup) == (0, 10)

    with_server(tmp_path, test)


def test_a_port_whose_other_end_moves_becomes_the_new_workloads(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """What was sent before stays with the old one; from the move on it is the new one's."""

    async def test(server: RunningServer, state: Path) -> None:
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            with Workload(netns) as old, Workload(netns) as new:
                before, after = await h.knows(old.name), await h.knows(new.name)
                old.send(3)
                await h.becomes({before: 3})
                run("ip", "-n", old.name, "link", "set", "eth0", "name", "eth1")
                run("ip", "-n", old.name, "link", "set", "eth1", "netns", new.name)
                await holds(
                    lambda: not [p for w in h.probe.workloads() if w.label == before for p in w.ports]
                )
                run("ip", "-n", new.name, "link", "set", "eth1", "name", "eth9")
                quiet(new.netns, "eth9")
                run("ip", "-n", new.name, "link", "set", "eth9", "up")
                with inside(new.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
                    for _ in range(4):
                        s.sendto(ethernet(ipv4(udp(bytes(72)), 17), 0x0800), ("eth9", 0))
                await h.becomes({before: 3, after: 4})

    with_server(tmp_path, test)


def test_an_unnamed_namespace_is_a_workload_of_its_own(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """The kernel gives its inode to the next one at once; the label goes with the cookie, given once."""

    async def test(server: RunningServer, state: Path) -> None:
        labels = []
        async with harness(server, state, netns=netns, cgroup_root=cgroup) as h:
            for _ in range(2):
                holder = subprocess.Popen(["unshare", "-n", "sleep", "60"])
                try:
                    inode = Path(f"/proc/{holder.pid}/ns/net")
                    await holds(lambda inode=inode: inode.stat().st_ino != NETNS.stat().st_ino)
                    link = ("ip", "-n", netns.name, "link", "add", "p0", "type", "veth", "peer", "eth0")
                    run(*link, "netns", str(holder.pid))
                    await holds(lambda: any(w.present for w in h.probe.workloads()))
                    present = [w for w in h.probe.workloads() if w.present]
                    labels.append(present[0].label)
                    assert present[0].name.startswith("netns-")
                finally:
                    holder.kill()
                    holder.wait()
                await holds(lambda: not any(w.present for w in h.probe.workloads()))
        assert len(set(labels)) == 2

    with_server(tmp_path, test)


def test_a_cgroup_removed_while_no_probe_runs_gives_its_account_back(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """And its last packets are booked to it all the same."""

    async def test(server: RunningServer, state: Path) -> None:
        settings = {"netns": netns, "cgroup_root": cgroup, "linger_seconds": 0.5}
        async with harness(server, state, **settings) as h:
            (cgroup / "g.scope").mkdir()
            label = await h.knows("g")
        talk(cgroup / "g.scope", netns, 5)
        (cgroup / "g.scope").rmdir()
        async with harness(server, state, **settings) as h:
            await h.becomes({label: 10})
            await holds(lambda: h.probe.open_accounts == 1)
            await h.becomes({label: 10})

    with_server(tmp_path, test)


def test_another_way_to_attach_starts_anew_and_counts_once(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Pinned links of one way must not stay beside the filters of the other."""

    async def test(server: RunningServer, state: Path) -> None:
        with Workload(netns) as workload:
            async with harness(server, state, netns=netns, cgroup_root=cgroup, attach="tcx") as h:
                label, boot = await h.knows(workload.name), h.probe.boot
                workload.send(5)
                await h.becomes({label: 5})
            async with harness(server, state, netns=netns, cgroup_root=cgroup, attach="clsact") as h:
                assert h.probe.boot != boot
                await h.knows(workload.name)
                workload.send(6)
                await h.becomes({label: 11})

    with_server(tmp_path, test)


def test_two_meters_with_filters_on_one_port_count_each_for_itself(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """Side by side by clsact, and the end of one leaves the other."""

    async def test(server: RunningServer, state: Path) -> None:
        settings = {"netns": netns, "cgroup_root": cgroup, "attach": "clsact"}
        other = state.with_name("other")
        try:
            with Workload(netns) as workload, running(tmp_path / "nats2") as server2:
                async with harness(server2, other, **settings) as two:
                    async with harness(server, state, **settings) as one:
                        label = await one.knows(workload.name)
                        await two.knows(workload.name)
                        workload.send(5)
                        await one.becomes({label: 5})
                    pins.remove(state)
                    workload.send(6)
                    await two.becomes({label: 11})
        finally:
            pins.remove(other)

    with_server(tmp_path, test)


def test_a_full_outbox_is_a_named_loss_that_lasts(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """With the bus away and no room, flow detail goes and totals stay; over a restart, label 0's too."""

    async def test(server: RunningServer, state: Path) -> None:
        settings: dict[str, Any] = {"netns": netns, "cgroup_root": cgroup, "outbox_max_bytes": 0}
        async with harness(server, state, **settings) as h:
            with Workload(netns) as workload:
                label = await h.knows(workload.name)
                server.kill()
                workload.send(1)
                await holds(lambda: bool(h.probe.pending_bytes))
                workload.send(9)
                (cgroup / "plain").mkdir(exist_ok=True)
                talk(cgroup / "plain", netns, 4)
                lost = {label: {"outbox_full": 9}, 0: {"outbox_full": 8}}
                await holds(lambda: {n: t.lost for n, t in h.probe.ledger().items()} == lost)
        async with harness(server, state, **settings) as h:
            await holds(lambda: bool(h.probe.ledger()))
            assert h.probe.ledger()[0].lost == {"outbox_full": 8}
            assert h.probe.ledger()[label].seen == 10

    with_server(tmp_path, test)
