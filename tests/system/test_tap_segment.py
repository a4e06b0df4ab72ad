"""Orders for copies as on the wire, from the bucket to a TCP receiver, with exact numbers."""

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import Workload
from tests.kernel.test_tap_segment import MADE, MSS, Offer, links, offer, read
from tests.system.bus_server import RunningServer
from tests.system.receiver import Receiver
from tests.system.tap_desk import site
from tests.system.test_probe import holds, with_server
from tests.system.test_tap_killed import killable

IP_AND_TCP = 40


def test_segments_arrive_and_are_nobodys_traffic(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Two taps, one with segment: 5 + 1 packets to the one, 2 to the other; 6 are metered."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Receiver() as wire, Receiver() as plain:
                label = await h.knows(one.name)
                before = links(netns)
                await desk.order("wire", wire.to, selector=f"name={one.name}", segment=True)
                await desk.order("plain", plain.to, selector=f"name={one.name}")
                await desk.copying("wire")
                await desk.copying("plain")
                assert len(links(netns) - before) == 2
                content = random.Random(1).randbytes(4 * MSS + 9)
                offer(one, [Offer.of(content, 6, 4), Offer.of(b"alone", 17, 4)])
                await holds(lambda: wire.streams[0].count == 6 and plain.streams[0].count == 2)
                wires = [read(packet.data) for packet in wire.streams[0].packets]
                assert b"".join(found.payload for found in wires[:5]) == content
                assert wires[5].payload == b"alone"
                assert {packet.custom[0] for packet in wire.streams[0].packets} == {label}
                assert {packet.custom[2] for packet in wire.streams[0].packets} == {MADE}
                assert [packet.original for packet in plain.streams[0].packets] == [54 + 4 * MSS + 9, 47]
                await h.counts({label: (6, 5 * IP_AND_TCP + len(content) + 28 + 5)})
                await desk.take_back("wire")
                point, stream = await desk.over("wire")
                assert (point.matched, point.written, point.lost) == (6, 6, {})
                assert (stream.confirmed, stream.lost) == (6, {})
                await holds(lambda: links(netns) == before)
                assert not (state / "relay.json").exists()
                assert [found.name for found in h.probe.workloads()] == [one.name]

    with_server(tmp_path, test)


def test_on_the_hosts_network_it_is_refused_by_name(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """The tap goes on where it can; of the cgroup it says why nothing is copied."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            (cgroup / "web.slice").mkdir()
            await h.knows("web")
            with Workload(netns, "web-" + netns.name) as one, Receiver() as receiver:
                await h.knows(one.name)
                await desk.order("wire", receiver.to, selector="name=web*", segment=True)
                answer = await desk.becomes(
                    lambda answer: len(answer.points) == 2 and answer.streams[0].connected
                )
                told = {point.port: point.problem for point in answer.points}
                assert told[one.port] == ""
                assert "bpf_clone_redirect" in told[""]
                assert "without segment" in told[""]
                offer(one, [Offer.of(bytes(2 * MSS), 6, 4)])
                await holds(lambda: receiver.streams[0].count == 2)

    with_server(tmp_path, test)


def test_a_killed_probes_relay_is_found_and_removed(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """By the next probe, though nobody orders anything any more; and by `eastwest down`."""

    async def test() -> None:
        before = links(netns)
        async with killable(tmp_path, netns=netns, cgroup_root=cgroup) as (probe, desk):
            with Workload(netns) as one, Receiver() as receiver:
                with_port = links(netns)
                await desk.order("wire", receiver.to, selector=f"name={one.name}", segment=True)
                await desk.copying("wire")
                probe.end(signal.SIGKILL)
                assert len(links(netns) - with_port) == 2
                probe.start()
                await desk.copying("wire")
                assert len(links(netns) - with_port) == 2
                probe.end(signal.SIGKILL)
                await desk.take_back("wire")
                probe.start()
                await holds(lambda: links(netns) == with_port)
                await desk.order("wire", receiver.to, selector=f"name={one.name}", segment=True)
                await desk.copying("wire")
                probe.end(signal.SIGKILL)
                down = [sys.executable, "-m", "eastwest", "down", "--state-dir", str(tmp_path / "state")]
                said = await asyncio.to_thread(subprocess.check_output, down, text=True)
                assert "veths that a killed probe left" in said
                assert links(netns) == with_port
        assert links(netns) == before

    asyncio.run(test())
