"""Orders to copy packets: what they select is copied, and nothing else; real kernel, exact numbers."""

import asyncio
import json
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from eastwest.kernel import pcap
from eastwest.probe import tap
from eastwest.probe import taps as standing
from eastwest.tap.config import TapConfig
from tests.conftest import Workload
from tests.kernel.frames import ethernet, ipv4, ipv6, tcp, udp
from tests.kernel.tapping import packet_socket
from tests.system.bus_server import RunningServer
from tests.system.capturing import Group
from tests.system.receiver import Receiver
from tests.system.tap_desk import KEY, site
from tests.system.test_probe import holds, with_server

FRAME = 114
"""Bytes of what `Workload.send` sends, with its Ethernet header."""

_SENDER = """
import socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 0))
for word in sys.argv[2:]:
    count, port = map(int, word.split('x'))
    for _ in range(count):
        s.sendto(bytes(72), ('127.0.0.1', port))
"""


async def talk(cgroup: Path, netns: Path, *what: str) -> None:
    """From inside a cgroup, send datagrams over lo to where nobody listens: COUNTxPORT."""
    command = ["nsenter", f"--net={netns}", sys.executable, "-c", _SENDER, str(cgroup), *what]
    sender = await asyncio.create_subprocess_exec(*command)
    assert await sender.wait() == 0


def loaded() -> int:
    """Programs that this process, where the probe runs, has loaded."""
    links = [Path(entry.path) for entry in os.scandir("/proc/self/fd")]
    return sum("bpf-prog" in str(link.readlink()) for link in links if link.is_symlink())


def test_an_orders_packets_arrive_and_are_confirmed(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """From the order to the receiver: every frame, in order, under tap, key and label; and an end of it."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Workload(netns) as other, Receiver() as receiver:
                label = await h.knows(one.name)
                await h.knows(other.name)
                await desk.order("web", receiver.to, selector=f"name={one.name}", filter="udp port 53")
                await desk.copying("web")
                for port in (53, 54):
                    one.send(300, port=port)
                    other.send(100, port=port)
                await holds(lambda: receiver.streams[0].count == 300)
                await desk.take_back("web")
                point, stream = await desk.over("web")
            assert (point.matched, point.not_matched, point.written, point.lost) == (300, 300, 300, {})
            assert (stream.confirmed, stream.pending, stream.unanswered, stream.lost) == (300, 0, 0, {})
            (received,) = receiver.streams
            assert received.ended
            assert stream.sent_bytes == len(received.data)
            (section,) = received.sections
            assert json.loads(section.options[1]) == {"host": "h", "tap": "web"}
            assert section.options[19372] == struct.pack("=I", 32473) + KEY.encode()
            (interface,) = section.interfaces
            assert interface.name == one.port
            assert {packet.custom[0] for packet in section.packets} == {label}
            assert [len(packet.data) for packet in section.packets] == [FRAME] * 300

    with_server(tmp_path, test)


def test_taps_follow_workloads_as_they_come_and_go(
    netns: Path, cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later one is copied too; when the last has gone the stream ends, and begins when it is back."""
    monkeypatch.setattr(standing, "_LINGER_SECONDS", 0.5)

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (_, desk):
            with Receiver() as receiver:
                await desk.order("all", receiver.to, selector="kind=netns")
                with Workload(netns) as one:
                    await desk.copying("all")
                    one.send(10)
                    with Workload(netns) as two:
                        await desk.copying("all", 2)
                        two.send(20)
                        await holds(lambda: receiver.streams[0].count == 30)
                point, stream = await desk.over("all")
                assert (point.matched, stream.confirmed) == (30, 30)
                assert receiver.streams[0].ended
                names = [interface.name for interface in receiver.streams[0].sections[0].interfaces]
                assert names == [one.port, two.port]
                with Workload(netns, name=one.name) as again:
                    await desk.copying("all")
                    again.send(5)
                    await holds(lambda: receiver.streams[1].count == 5)
                point, stream = await desk.over("all")
                assert (point.matched, stream.confirmed, len(receiver.streams)) == (35, 35, 2)

    with_server(tmp_path, test)


def test_a_cgroups_descendants_are_copied_and_new_ones_too(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """All that is the workload's, at any depth, made before or after; not what is another's within it."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            web, other = cgroup / "web.slice", cgroup / "web.slice/db.scope"
            for path in (web, web / "a", web / "a/b", other):
                path.mkdir()
            label = await h.knows("web")
            await h.knows("db")
            with Receiver() as receiver:
                await desk.order("web", receiver.to, selector="name=web", filter="udp port 53")
                await desk.copying("web")
                await talk(web, netns, "10x53", "1x54")
                await talk(web / "a/b", netns, "20x53")
                await talk(other, netns, "40x53")
                assert (await desk.point("web")).not_matched == 1
                late = web / "a/late"
                late.mkdir()
                # It is followed a moment after it was made.
                seen = 1
                while seen == 1:
                    await talk(late, netns, "1x54")
                    seen = (await desk.point("web")).not_matched
                await talk(late, netns, "30x53")
                await holds(lambda: receiver.streams[0].count == 60)
                await desk.take_back("web")
                point, stream = await desk.over("web")
            assert (point.matched, point.not_matched, stream.confirmed) == (60, seen, 60)
            (section,) = receiver.streams[0].sections
            assert {interface.link_type for interface in section.interfaces} == {101}
            assert {packet.custom[0] for packet in section.packets} == {label}

    with_server(tmp_path, test)


def test_a_fresh_cgroup_is_copied_from_its_first_packet(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """The kernel knows before user space does; what may be another workload is not copied."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            web = cgroup / "web.slice"
            web.mkdir()
            label = await h.knows("web")
            with Receiver() as receiver:
                await desk.order("web", receiver.to, selector="name=web", filter="udp port 53")
                await desk.copying("web")
                # The probe runs in this thread: until the next await it hears of nothing.
                for path, count in (("a", 10), ("a/b", 20), ("db.scope", 40), ("c" * 63, 5), ("d" * 64, 80)):
                    (web / path).mkdir()
                    command = ["nsenter", f"--net={netns}", sys.executable, "-c", _SENDER, str(web / path)]
                    subprocess.run([*command, f"{count}x53", "1x54"], check=True)
                point = await desk.point("web")
                assert (point.matched, point.not_matched) == (35, 3)
                await h.knows("db")
                # Now they are entered by the probe, and are so once.
                await talk(web / "a/b", netns, "7x53")
                await talk(web / "db.scope", netns, "40x53")
                await holds(lambda: receiver.streams[0].count == 42)
                await desk.take_back("web")
                point, stream = await desk.over("web")
            assert (point.matched, point.not_matched, stream.confirmed, stream.lost) == (42, 3, 42, {})
            assert {packet.custom[0] for packet in receiver.streams[0].packets} == {label}

    with_server(tmp_path, test)


def test_ipv6_is_copied_byte_by_byte(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """By a filter for IPv6 and a port, in both directions, with extension headers too; nothing else."""
    fragment = struct.pack("!BBHI", 17, 0, 1, 7)  # the first of several
    wanted = [ethernet(ipv6(udp(bytes([n]) * n, dst=53), 17), 0x86DD) for n in range(40, 60)]
    received = [ethernet(ipv6(udp(bytes([n]) * n, src=53), 17), 0x86DD) for n in range(60, 70)]
    others = [
        ethernet(ipv6(udp(bytes(50), dst=54), 17), 0x86DD),
        ethernet(ipv6(fragment + udp(bytes(50), dst=53), 44), 0x86DD),  # libpcap follows no headers
        ethernet(ipv6(tcp(bytes(50), dst=53), 6), 0x86DD),
        ethernet(ipv4(udp(bytes(50), dst=53), 17), 0x0800),
    ]

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Receiver() as receiver:
                label = await h.knows(one.name)
                await desk.order("six", receiver.to, selector="kind=netns", filter="ip6 and udp port 53")
                await desk.copying("six")
                with packet_socket(one.netns, "eth0") as s:
                    for frame in (*wanted, *others):
                        s.send(frame)
                with packet_socket(netns, one.port) as s:
                    for frame in (*received, *others):
                        s.send(frame)
                await holds(lambda: receiver.streams[0].count == 30)
                await desk.take_back("six")
                point, stream = await desk.over("six")
            assert (point.matched, point.not_matched, stream.confirmed, stream.lost) == (30, 8, 30, {})
            packets = receiver.streams[0].packets
            assert [packet.data for packet in packets if packet.flags & 3 == 2] == wanted
            assert [packet.data for packet in packets if packet.flags & 3 == 1] == received
            assert {packet.custom[0] for packet in packets} == {label}

    with_server(tmp_path, test)


@pytest.mark.parametrize("filter_", ["", "udp"])
def test_one_direction_is_copied_alone(netns: Path, cgroup: Path, tmp_path: Path, filter_: str) -> None:
    """As the workload sees it, at a port and at a cgroup, filtered or not; the other is not matched."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Group(netns, cgroup / "web.scope") as group, Receiver() as receiver:
                for kind, name in (("port", one.name), ("cgroup", "web")):
                    await h.knows(name)
                    for direction in ("ingress", "egress", "both"):
                        said = {"selector": f"name={name}", "direction": direction, "filter": filter_}
                        await desk.order(f"{kind}-{direction}", receiver.to, **said)
                        await desk.copying(f"{kind}-{direction}")
                one.send(30)
                with packet_socket(netns, one.port) as s:
                    for number in range(50):
                        s.send(ethernet(ipv4(udp(bytes([number] * 64)), 17), 0x0800))
                group.send(20)
                points = {point.tap: point for point in (await desk.answer()).points}
                await holds(lambda: sum(stream.count for stream in receiver.streams) == 2 * (80 + 40))
            counts = {
                name: (point.matched, point.not_matched, point.written) for name, point in points.items()
            }
            assert counts == {
                "port-ingress": (50, 30, 50), "port-egress": (30, 50, 30), "port-both": (80, 0, 80),
                "cgroup-ingress": (20, 20, 20), "cgroup-egress": (20, 20, 20), "cgroup-both": (40, 0, 40),
            }  # fmt: skip
            told = {}
            for stream in receiver.streams:
                name = json.loads(stream.sections[0].options[1])["tap"]
                told[name] = Counter(packet.flags & 3 for packet in stream.packets)
            assert told == {
                "port-ingress": {1: 50}, "port-egress": {2: 30}, "port-both": {1: 50, 2: 30},
                "cgroup-ingress": {1: 20}, "cgroup-egress": {2: 20}, "cgroup-both": {1: 20, 2: 20},
            }  # fmt: skip

    with_server(tmp_path, test)


def test_an_order_ends_by_its_own_clock(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Prolonged, it goes on without a break; with the bus away it expires as well, and all is unloaded."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Receiver() as receiver:
                await h.knows(one.name)
                before = loaded()  # nobody has ordered anything
                added, soon = time.time_ns(), time.time_ns() + 3 * 10**9
                said = {"added": added, "selector": "kind=netns"}
                await desk.order("brief", receiver.to, **said, expires=added + 3600 * 10**9)
                await desk.copying("brief")
                assert loaded() > before
                one.send(7)
                await desk.order("brief", receiver.to, **said, expires=soon)
                await desk.becomes(lambda answer: answer.taps == ["brief"])
                await holds(lambda: receiver.streams[0].count == 7)
                await desk.order("brief", receiver.to, **said, expires=soon + 1)
                server.kill()
                await holds(lambda: receiver.streams[0].ended)
                assert len(receiver.streams) == 1
                await holds(lambda: loaded() == before)
                server.start()
                await desk.becomes(lambda answer: answer.past_streams and answer.taps == [])

    with_server(tmp_path, test)


def test_an_order_that_cannot_be_had_says_so_and_touches_no_other(
    netns: Path, cgroup: Path, tmp_path: Path
) -> None:
    """A bad document, selector, address, filter or pattern, one too many: named, and the good one goes on."""
    bad = {
        "selector": {"selector": "nonsense=1"},
        "filter": {"filter": "tcp prot 80"},
        "snaplen": {"snaplen": 5},
        "payload": {"payload": "xyz"},
        "to": {"to": "nowhere"},
    }

    async def test(server: RunningServer, state: Path) -> None:
        most = TapConfig(most=2, memory=1 << 20)
        async with site(server, state, netns=netns, cgroup_root=cgroup, tap=most) as (h, desk):
            with Workload(netns) as one, Receiver() as receiver:
                await h.knows(one.name)
                await desk.order("good", receiver.to, selector="kind=netns")
                await desk.copying("good")
                for name, said in bad.items():
                    await desk.order(name, **({"to": receiver.to} | said))
                await desk.put("garbage", b"\xff{")
                await desk.order("second", receiver.to, selector="kind=netns")
                await desk.copying("second")
                await desk.order("waits", receiver.to, selector="kind=netns")
                answer = await desk.becomes(lambda answer: sum(bool(s.problem) for s in answer.streams) == 7)
                problems = {stream.tap: stream.problem for stream in answer.streams}
                one.send(50)
                await holds(lambda: any(stream.count == 50 for stream in receiver.streams))
            assert "libpcap refuses the filter" in problems["filter"]
            assert "is not a selector condition" in problems["selector"]
            assert "choose 0 or 32 to" in problems["snaplen"]
            assert "write it like" in problems["to"]
            assert "most" in problems["waits"]
            assert problems["good"] == ""
            assert KEY not in str(answer)

    with_server(tmp_path, test)


def test_sixteen_taps_fit_at_one_port(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Each gets its own packets; the seventeenth is told why it has none, and has them once there is room."""

    async def test(server: RunningServer, state: Path) -> None:
        many = TapConfig(most=20, memory=1 << 20)
        async with site(server, state, netns=netns, cgroup_root=cgroup, tap=many) as (h, desk):
            with Workload(netns) as one, Receiver(confirms=False) as receiver:
                await h.knows(one.name)
                said = {"selector": "kind=netns", "receiver": "application", "key": ""}
                for n in range(17):
                    await desk.order(f"t{n}", receiver.to, **said, filter=f"udp port {100 + n}", added=n + 1)
                answer = await desk.becomes(lambda answer: sum(s.connected for s in answer.streams) == 17)
                await desk.becomes(lambda answer: any(point.problem for point in answer.points))
                for n in range(17):
                    one.send(n + 1, port=100 + n)
                answer = await desk.answer()
                counts = {point.tap: (point.matched, point.not_matched) for point in answer.points}
                total = sum(range(1, 18))
                assert {f"t{n}": (n + 1, total - n - 1) for n in range(16)} | {"t16": (0, 0)} == counts
                (late,) = [point for point in answer.points if point.problem]
                assert late.tap == "t16"
                assert "16 other taps are at this place" in late.problem
                await desk.take_back("t3")
                await desk.becomes(lambda answer: not any(point.problem for point in answer.points))
                one.send(9, port=116)
                assert (await desk.point("t16")).matched == 9

    with_server(tmp_path, test)


def test_ports_that_are_gone_do_not_crowd_a_stream(
    netns: Path, cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new stream tells of those that are there alone; no packet is lost between the two."""
    monkeypatch.setattr(tap, "_MANY_INTERFACES", 4)

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Receiver() as receiver:
                await h.knows(one.name)
                await desk.order("all", receiver.to, selector="kind=netns")
                await desk.copying("all")
                for n in range(6):
                    with Workload(netns) as brief:
                        await desk.copying("all", 2)
                        brief.send(10)
                        one.send(n + 1)
                    await desk.copying("all")
                await holds(lambda: sum(stream.count for stream in receiver.streams) == 81)
                await desk.take_back("all")
                point, stream = await desk.over("all")
            assert (point.matched, point.lost, stream.confirmed, stream.lost) == (81, {}, 81, {})
            first, second = receiver.streams
            assert first.ended
            assert second.ended
            assert [len(stream.sections[0].interfaces) for stream in (first, second)] == [5, 3]

    with_server(tmp_path, test)


def test_an_order_given_anew_is_another_stream(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """The same name with another key: the old stream ends before the new one begins; counts are summed up."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Receiver() as receiver:
                await h.knows(one.name)
                for n, key in enumerate(("first", "second"), 1):
                    await desk.order("web", receiver.to, selector="kind=netns", key=key)
                    await holds(lambda n=n: len(receiver.streams) == n)
                    await desk.copying("web")
                    one.send(10 * n)
                    await holds(lambda n=n: receiver.streams[n - 1].count == 10 * n)
                assert receiver.streams[0].ended
                keys = [stream.sections[0].options[19372][4:] for stream in receiver.streams]
                assert keys == [b"first", b"second"]
                await desk.take_back("web")
                point, stream = await desk.over("web")
            assert (point.matched, stream.confirmed, stream.lost) == (30, 30, {})

    with_server(tmp_path, test)


def test_a_probe_that_is_stopped_delivers_what_it_has(netns: Path, cgroup: Path, tmp_path: Path) -> None:
    """Its hooks go first; then what is in the buffers arrives, and the end of it."""

    async def test(server: RunningServer, state: Path) -> None:
        before = loaded()
        with Workload(netns) as one, Receiver() as receiver:
            async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
                await h.knows(one.name)
                await desk.order("web", receiver.to, selector="kind=netns")
                await desk.copying("web")
                one.send(2000)
            assert receiver.streams[0].count == 2000
            await holds(lambda: receiver.streams[0].ended)
            assert loaded() == before

    with_server(tmp_path, test)


def test_a_filter_that_could_not_be_compiled_is_tried_again(
    netns: Path, cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an interpreter for libpcap's process the order says so; once there is one, it is had."""

    async def test(server: RunningServer, state: Path) -> None:
        async with site(server, state, netns=netns, cgroup_root=cgroup) as (h, desk):
            with Workload(netns) as one, Receiver() as receiver:
                await h.knows(one.name)
                with monkeypatch.context() as away:
                    away.setattr(pcap.sys, "executable", "/bin/false")
                    await desk.order("web", receiver.to, selector="kind=netns", filter="udp port 2000")
                    answer = await desk.becomes(lambda answer: any(s.problem for s in answer.streams))
                assert "cannot be started" in answer.streams[0].problem
                await desk.copying("web")
                one.send(3)
                await holds(lambda: receiver.streams[0].count == 3)

    with_server(tmp_path, test)
