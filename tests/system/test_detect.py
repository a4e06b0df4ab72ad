"""The detectors: on rows made by hand, to the digit; and on real attacks and what only looks like one."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from eastwest.kernel.netns import inside
from eastwest.watch.config import DetectConfig
from tests.conftest import Workload, quiet, run
from tests.system.fake_probe import flow_rows, mapped, workload
from tests.system.server_site import site
from tests.system.test_watch import NS, LiveProbe, alerts, looked
from tests.system.user_site import Site, until

SYN, ACK, RST = 2, 16, 4

PATIENT = DetectConfig(window_seconds=60, syn_flood_packets_per_second=50)
"""What happened 6 s before it was fed is in the window, however slow this machine is."""


def attempts(count: int, label: int = 1, **fields: Any) -> NDArray[Any]:
    """SYNs from 10.0.0.1 to `count` ports of 10.0.0.2, sent by `label` five seconds ago."""
    rows = flow_rows([label] * count, [1] * count, time.time_ns() - 6 * NS)
    rows["src_port"], rows["dst_port"] = np.arange(count) + 10_000, np.arange(count) + 1
    rows["tcp_flags"], rows["end"] = SYN, rows["start"]
    for name, value in fields.items():
        rows[name] = value
    return rows


def from_the_other_end(rows: NDArray[Any], label: int) -> NDArray[Any]:
    """The same packets, as the receiver's port saw them."""
    seen = rows.copy()
    seen["label"], seen["direction"] = label, 1 - rows["direction"]
    return seen


def back(rows: NDArray[Any], flags: int = 0) -> NDArray[Any]:
    """An answer to each, as the sender's port saw it."""
    answers = rows.copy()
    for one, other in (("src", "dst"), ("src_port", "dst_port")):
        answers[one], answers[other] = rows[other], rows[one]
    answers["direction"], answers["tcp_flags"] = 1 - rows["direction"], flags
    return answers


def addresses(count: int, prefix: bytes = b"\x0a\x09") -> NDArray[Any]:
    return np.array([mapped(prefix + i.to_bytes(2, "big")) for i in range(1, count + 1)], "V16")


SCAN = attempts(150)
CASES: dict[str, tuple[list[NDArray[Any]], list[tuple[str, int, float]]]] = {
    "a scan seen from both ends counts once": (
        [SCAN, from_the_other_end(SCAN, 2), back(SCAN, RST | ACK)],
        [("port_scan", 1, 150.0)],
    ),
    "a scan in two cuts counts once": ([SCAN, SCAN], [("port_scan", 1, 150.0)]),
    "a scan from outside is told of the one who is scanned": (
        [from_the_other_end(SCAN, 2)],
        [("port_scan", 2, 150.0)],
    ),
    "99 ports are no scan": ([attempts(99)], []),
    "ports that answer are no scan": ([attempts(150, tcp_flags=SYN | ACK), back(SCAN, SYN | ACK)], []),
    "an answer in a later cut is an answer": ([SCAN, attempts(150, tcp_flags=ACK)], []),
    "one closed port, again and again, is no scan": ([attempts(20_000, dst_port=81), back(attempts(20_000,
        dst_port=81), RST | ACK)], []),
    "an ACK sent blindly after each SYN is no answer": (
        [attempts(150, tcp_flags=SYN | ACK, src_port=1), back(attempts(150, src_port=1), RST | ACK)],
        [("port_scan", 1, 150.0)],
    ),
    "SYN-ACKs that a flood left behind are no sweep": (
        [attempts(150, dst=addresses(150), tcp_flags=SYN | ACK)],
        [],
    ),
    "nor are those that are refused": (
        [
            attempts(150, dst=addresses(150), tcp_flags=SYN | ACK),
            back(attempts(150, dst=addresses(150)), RST),
        ],
        [],
    ),
    "UDP that nobody answers": ([attempts(150, protocol=17)], [("port_scan", 1, 150.0)]),
    "UDP that is answered": ([attempts(150, protocol=17), back(attempts(150, protocol=17))], []),
    "a sweep": ([attempts(150, dst=addresses(150), dst_port=22)], [("address_sweep", 1, 150.0)]),
    "a sweep by ping": (
        [attempts(150, dst=addresses(150), protocol=1, src_port=0, dst_port=2048)],
        [("address_sweep", 1, 150.0)],
    ),
    "one-way streams to many are no sweep": (
        [attempts(150, dst=addresses(150), dst_port=5004, protocol=17, packets=500)],
        [],
    ),
    "multicast groups are no sweep": (
        [attempts(150, dst=addresses(150, b"\xef\x01"), dst_port=5004, protocol=17)],
        [],
    ),
    "a flood from spoofed sources": (
        [attempts(6000, label=2, src=addresses(6000), dst_port=80, direction=0)],
        [("syn_flood", 2, 100.0)],
    ),
    "a flood in one flow": (
        [attempts(1, packets=7200)],
        [("syn_flood", 1, 120.0)],
    ),
    "a flood amid as many good connections is a busy server": (
        [
            attempts(6000, label=2, src=addresses(6000), dst_port=80, direction=0),
            attempts(2000, label=2, src=addresses(2000, b"\x0a\x08"), dst_port=80, direction=0, tcp_flags=18),
        ],
        [],
    ),
}  # fmt: skip


def test_what_is_found_in_rows(tmp_path: Path) -> None:
    """Each case, in a tenant of its own with the addresses of all: kind, label, figure; nothing else."""

    async def scenario() -> None:
        async with site(tmp_path, detect=PATIENT) as s:
            probe = LiveProbe(s.probe_bus)
            parts, expected = [], set()
            for number, case in enumerate(CASES):
                rows, wanted = CASES[case]
                part = np.concatenate(rows)
                part["label"] += 10 * number
                parts.append(part)
                expected |= {(case, kind, label, figure) for kind, label, figure in wanted}
                ends = (workload(10 * number + end, f"end{end}", tenant=case) for end in (1, 2))
                await probe.workloads(*ends)
            told = np.concatenate(parts)
            told["start"] = told["end"] = time.time_ns() - 6 * NS
            for start in range(0, len(told), 10_000):
                await probe.count(told[start : start + 10_000])
            async with probe.alive():
                found = await alerts(s, len(expected))
                await looked(s, 5)
                assert len(await s.get("alerts", all="true")) == len(expected)
            assert {(a["tenant"], a["kind"], a["label"] % 10, a["figure"]) for a in found} == expected
            for alert in found:
                assert {flow["label"] for flow in alert["flows"]} == {alert["label"]}

    asyncio.run(scenario())


def test_what_began_just_now_may_still_be_answered(tmp_path: Path) -> None:
    """Nothing is said of attempts that have not had their time."""
    detect = DetectConfig(window_seconds=60, settle_seconds=60)

    async def scenario() -> None:
        async with site(tmp_path, detect=detect) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "one"))
            await probe.count(attempts(150))
            async with probe.alive():
                await looked(s, 5)
                assert await s.get("alerts", all="true") == []

    asyncio.run(scenario())


def test_tenants_with_the_same_addresses_are_told_apart(tmp_path: Path) -> None:
    """Half a scan in each of two tenants is none; a whole one is, though the other's ports answer."""

    async def scenario() -> None:
        async with site(tmp_path, detect=PATIENT) as s:
            half, whole = attempts(80), attempts(150)
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "a", tenant="a"), workload(2, "b", tenant="b"))
            other = half.copy()
            other["label"] = 2
            other["dst_port"] += 100
            await probe.count(np.concatenate((half, other)))
            async with probe.alive():
                await looked(s, 5)
                assert await s.get("alerts") == []
                good = whole.copy()
                good["label"], good["tcp_flags"] = 2, SYN | ACK
                await probe.count(np.concatenate((whole, good)))
                (alert,) = await alerts(s, 1)
                assert (alert["label"], alert["tenant"], alert["figure"]) == (1, "a", 150.0)
                assert alert["text"] == (
                    "a (label 1): port scan from 10.0.0.1 on 10.0.0.2: 150 ports without an answer in 60 s,"
                    " 0 answered"
                )

    asyncio.run(scenario())


def test_one_workload_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It scans five addresses, each more than the other workload its one: room for three is room for that."""
    monkeypatch.setattr("eastwest.store.detection._MOST", 3)
    monkeypatch.setattr("eastwest.store.detection._MOST_OF_LABEL", 2)

    async def scenario() -> None:
        async with site(tmp_path, detect=PATIENT) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "one", tenant="a"), workload(2, "two", tenant="b"))
            many = [attempts(200, dst=mapped(bytes([10, 0, 1, host]))) for host in range(5)]
            await probe.count(np.concatenate([*many, attempts(150, label=2)]))
            async with probe.alive():
                found = await alerts(s, 3)
                assert sorted((a["label"], a["figure"]) for a in found) == [
                    (1, 200.0),
                    (1, 200.0),
                    (2, 150.0),
                ]
                # It is always the same ones that there is room for.
                await looked(s, 5)
                assert {a["id"] for a in await s.get("alerts", all="true")} == {a["id"] for a in found}

    asyncio.run(scenario())


def test_detectors_can_be_switched_off_and_moved(tmp_path: Path) -> None:
    """Off: nothing; with another limit: there."""
    off = DetectConfig(window_seconds=60, port_scan=False, syn_flood=False, address_sweep_addresses=20)

    async def scenario() -> None:
        async with site(tmp_path, detect=off) as s:
            probe = LiveProbe(s.probe_bus)
            await probe.workloads(workload(1, "one"))
            sweep = attempts(20, dst=addresses(20), dst_port=22)
            await probe.count(np.concatenate((attempts(300), attempts(1, packets=70_000), sweep)))
            async with probe.alive():
                (alert,) = await alerts(s, 1)
                assert (alert["kind"], alert["threshold"]) == ("address_sweep", 20.0)
                # The scanned one is an address, too.
                assert alert["figure"] == 21.0

    asyncio.run(scenario())


# -- real traffic ------------------------------------------------------------------------------------------


@contextmanager
def switched(scope: Path) -> Iterator[tuple[Workload, Workload]]:
    """Two workloads on a bridge, 10.1.0.1 and 10.1.0.2; each has the other as its way to everywhere."""
    with ExitStack() as stack:
        ends = [stack.enter_context(Workload(scope)) for _ in range(2)]
        inner = ("ip", "-n", scope.name, "link")
        run(*inner, "add", "br-test", "type", "bridge", "mcast_snooping", "0")
        quiet(scope, "br-test")
        run(*inner, "set", "br-test", "up")
        for number, end in enumerate(ends, 1):
            run(*inner, "set", end.port, "master", "br-test")
            mac = f"02:00:00:00:01:{number:02x}"
            run("ip", "-n", end.name, "link", "set", "eth0", "address", mac)
            run("ip", "-n", end.name, "link", "set", "lo", "up")
            run("ip", "-n", end.name, "address", "flush", "dev", "eth0")
            run("ip", "-n", end.name, "address", "add", f"10.1.0.{number}/24", "dev", "eth0")
            peer = (f"10.1.0.{3 - number}", "lladdr", f"02:00:00:00:01:{3 - number:02x}", "dev", "eth0")
            run("ip", "-n", end.name, "neighbour", "replace", *peer, "nud", "permanent")
            run("ip", "-n", end.name, "route", "add", "default", "via", f"10.1.0.{3 - number}")
        run("ip", "-n", ends[1].name, "route", "add", "local", "10.9.1.0/24", "dev", "lo")
        yield ends[0], ends[1]


@contextmanager
def listening(where: Workload, ports: range) -> Iterator[None]:
    """Every connection to these ports is taken, answered and closed."""
    with inside(where.netns):
        servers = [socket.create_server(("0.0.0.0", port), backlog=1024) for port in ports]
    stopped = threading.Event()

    def serve(server: socket.socket) -> None:
        server.settimeout(0.1)
        while not stopped.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(5)
                connection.recv(100)
                connection.sendall(b"answer")

    threads = [threading.Thread(target=serve, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread, server in zip(threads, servers, strict=True):
            thread.join()
            server.close()


def ask(where: Workload, address: str, port: int) -> None:
    with inside(where.netns):
        client = socket.create_connection((address, port), timeout=10)
    with client:
        client.sendall(b"question")
        assert client.recv(100) == b"answer"


def refused(where: Workload, address: str, port: int) -> None:
    with inside(where.netns), socket.socket() as client:
        client.settimeout(10)
        assert client.connect_ex((address, port)) != 0


def resolve(where: Workload, servers: Workload, count: int) -> None:
    """One datagram to each of `count` servers, and one back."""
    with inside(servers.netns):
        listeners = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        for number, listener in enumerate(listeners, 1):
            listener.bind((f"10.9.1.{number}", 53))
            listener.settimeout(10)
    with inside(where.netns):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(10)
    for number, listener in enumerate(listeners, 1):
        client.sendto(b"?", (f"10.9.1.{number}", 53))
        question, sender = listener.recvfrom(10)
        listener.sendto(question, sender)
        assert client.recv(10) == b"?"
        listener.close()
    client.close()


def syns(where: Workload, destination: str, port: int, count: int) -> None:
    """SYNs from as many addresses that are not the sender's, each right to its checksums."""
    target = socket.inet_aton(destination)
    with inside(where.netns), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number in range(count):
            source = socket.inet_aton("172.16.0.0")[:2] + number.to_bytes(2, "big")
            tcp = struct.pack("!HHIIBBHHH", 1024 + number % 60_000, port, number, 0, 0x50, SYN, 1024, 0, 0)
            pseudo = source + target + struct.pack("!BBH", 0, 6, len(tcp)) + tcp
            words = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
            while words >> 16:
                words = (words & 0xFFFF) + (words >> 16)
            tcp = tcp[:16] + struct.pack("!H", ~words & 0xFFFF) + tcp[18:]
            ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, source, target)
            raw.sendto(ip + tcp, (destination, 0))


def found(s: Site) -> dict[str, dict[str, Any]]:
    answer = httpx.get(f"{s.url}/api/v1/alerts", params={"all": "true"}, trust_env=False, timeout=30)
    return {alert["kind"]: alert for alert in answer.json()}


def test_real_attacks_are_found_and_look_alikes_are_not(site: Site, netns: Path) -> None:
    """A scan of 500 ports, a sweep over 200 addresses, a flood of 20,000 SYNs: three alerts, to the digit."""
    site.config.write_text(site.config.read_text() + "[alerts]\ninterval_seconds = 0.5\n")
    with switched(netns) as (actor, victim), site.up():
        names = {actor.name, victim.name}
        until(lambda: names <= {row["name"] for row in site.json("workloads")}, "both are listed")

        with listening(victim, range(8000, 8150)):
            for port in range(8000, 8150):
                ask(actor, "10.1.0.2", port)  # a monitoring system
            for _ in range(1500):
                ask(actor, "10.1.0.2", 8000)  # a busy client, or a load test
            for number in range(1, 151):
                ask(actor, f"10.9.1.{number}", 8000)  # a crawler
        for _ in range(6000):
            refused(actor, "10.1.0.2", 20_001)  # a client whose server is down
        resolve(actor, victim, 150)

        for port in range(20_001, 20_501):
            refused(actor, "10.1.0.2", port)
        until(lambda: found(site).get("port_scan", {}).get("figure") == 500.0, "the scan is found")
        scan = found(site)["port_scan"]
        assert (scan["name"], scan["subject"], scan["threshold"]) == (
            actor.name,
            "10.1.0.1 to 10.1.0.2",
            100.0,
        )
        assert {(f["src"], f["dst"], f["direction"], f["tcp_flags"]) for f in scan["flows"]} == {
            ("10.1.0.1", "10.1.0.2", "egress", SYN)
        }
        until(lambda: found(site)["port_scan"]["state"] == "resolved", "the scan is over")
        assert set(found(site)) == {"port_scan"}

        with inside(actor.netns):
            for number in range(1, 201):
                with socket.socket() as client:
                    client.setblocking(False)
                    client.connect_ex((f"10.8.0.{number}", 22))
        until(lambda: found(site).get("address_sweep", {}).get("figure") == 200.0, "the sweep is found")
        assert found(site)["address_sweep"]["name"] == actor.name

        with inside(victim.netns):
            server = socket.create_server(("0.0.0.0", 80))
        with server:
            syns(actor, "10.1.0.2", 80, 20_000)
            until(lambda: found(site).get("syn_flood", {}).get("figure") == 2000.0, "the flood is found")
        flood = found(site)["syn_flood"]
        assert (flood["name"], flood["severity"]) == (victim.name, "critical")
        assert f"from {20_000} addresses over 10 s" in flood["text"]
        assert {f["dst_port"] for f in flood["flows"]} == {80}

        assert len(site.json("alerts", "--all")) == 3
        until(lambda: {a["state"] for a in found(site).values()} == {"resolved"}, "they end by themselves")
        assert site.run("alerts").stdout == "no alerts\n"


def test_a_person_watches_and_silences(site: Site, netns: Path) -> None:
    """By the command alone: a watch that fires at once, a silence, and both taken back."""
    site.config.write_text(site.config.read_text() + "[alerts]\ninterval_seconds = 0.5\n")
    with Workload(netns) as one, site.up():
        until(lambda: any(row["name"] == one.name for row in site.json("workloads")), "it is listed")
        added = site.run("watch", "add", "low", f"name={one.name}", "rate_below", "1", "--window", "1")
        assert added.stdout.startswith("watch low: rate_below 1 packets/s both, "), added.stderr
        until(lambda: [a["watch"] for a in site.json("alerts")] == ["low"], "it fires")
        said = site.run("alerts", "silence", f"name={one.name}", "--for", "1h")
        assert said.returncode == 0, said.stderr
        until(lambda: [a["state"] for a in site.json("alerts")] == ["silenced"], "it is silenced")
        (silence,) = site.json("alerts", "silences")
        assert site.run("alerts", "unsilence", silence["id"]).returncode == 0
        until(lambda: [a["state"] for a in site.json("alerts")] == ["firing"], "it fires again")
        assert [row["state"] for row in site.json("watch", "list")] == ["firing"]
        assert site.run("watch", "rm", "low").returncode == 0
        until(lambda: site.json("alerts") == [], "it has ended")
        assert site.run("watch", "rm", "low").returncode == 1
