"""`eastwest enforce`: what is said to be dropped does not arrive, all else does; shown at the receiver.

Each on the place where it has to hold: a Linux bridge, a switch in user space, sockets on the host's network.
"""

import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eastwest.kernel import attach
from eastwest.kernel.netns import inside
from eastwest.meter.config import MeterConfig
from eastwest.meter.enforcer import Enforcer
from tests.conftest import Workload, quiet, readable, run
from tests.kernel.frames import ethernet, ipv4, udp
from tests.system.user_site import Site, until

BAD, GOOD = 53, 80
"""Ports that senders send to: flows of the first are declared suspect."""
FLOW = f"udp 10.0.0.1:1000 10.0.0.2:{BAD}"


def frame(number: int, port: int, back: bool = False) -> bytes:
    """100 bytes of IP with a number, from 10.0.0.1:1000 to 10.0.0.2, or its answer."""
    payload = struct.pack("!I", number) + bytes(68)
    packet = bytearray(ipv4(udp(payload, port if back else 1000, 1000 if back else port), 17))
    if back:
        packet[12:16], packet[16:20] = packet[16:20], packet[12:16]
    # A bridge may look at it (bridge-nf-call-iptables).
    total = sum(struct.unpack("!10H", packet[:20]))
    packet[10:12] = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
    plain = ethernet(bytes(packet), 0x0800)
    return plain[6:12] + plain[:6] + plain[12:] if back else plain


def send(netns: Path, frames: list[bytes]) -> None:
    with inside(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        for one in frames:
            s.sendto(one, ("eth0", 0))


@contextmanager
def listening(netns: Path) -> Iterator[socket.socket]:
    """What arrives at a workload."""
    with inside(netns):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with tap:
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        tap.bind(("eth0", 3))
        yield tap


def arrived(tap: socket.socket, expected: int) -> list[tuple[int, int]]:
    """Number and port of each packet between 1000 and the ports above, in the order of arrival."""
    got = []
    wait = 20.0 if expected else 1.0
    while readable(tap, wait):
        data, address = tap.recvfrom(70000)
        if address[2] != socket.PACKET_OUTGOING and len(data) >= 46 and data[12:14] == b"\x08\x00":
            ports = struct.unpack("!HH", data[34:38])
            got.append((int.from_bytes(data[42:46]), min(ports)))
        if len(got) >= expected:
            wait = 0.3  # and nothing more
    return got


class Pair:
    """Two workloads in a scope, with whatever connects their ports."""

    def __init__(self, netns: Path) -> None:
        self.netns = netns
        self.one, self.two = Workload(netns), Workload(netns)

    def __enter__(self) -> "Pair":
        self.one.__enter__()
        try:
            self.two.__enter__()
        except BaseException:
            self.one.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.two.__exit__()
        self.one.__exit__()


def bridged(netns: Path, pair: Pair) -> None:
    """Join the ports by a Linux bridge."""
    link = ("ip", "-n", netns.name, "link")
    run(*link, "add", "br0", "type", "bridge", "mcast_snooping", "0")
    quiet(netns, "br0")
    run(*link, "set", "br0", "up")
    for workload in (pair.one, pair.two):
        run(*link, "set", workload.port, "master", "br0")


@contextmanager
def switched(netns: Path, pair: Pair, directory: Path) -> Iterator[None]:
    """Join the ports by an Open vSwitch in user space, its daemons in the namespace and in `directory`."""
    directory.mkdir()
    inside_ = ("nsenter", f"--net={netns}")
    database, address = str(directory / "conf.db"), f"unix:{directory}/db.sock"
    run("ovsdb-tool", "create", database)
    quietly = ("-vconsole:off", "-vsyslog:off", f"--log-file={directory}/log")
    server = subprocess.Popen(
        [
            *inside_,
            "ovsdb-server",
            database,
            f"--remote=p{address}",
            f"--unixctl={directory}/db.ctl",
            *quietly,
        ]
    )
    daemons = [server]
    vsctl = ("ovs-vsctl", f"--db={address}", "--timeout=20")
    try:
        run(*vsctl, "--retry", "--no-wait", "init")
        switch = ["ovs-vswitchd", address, "--enable-dummy", f"--unixctl={directory}/vs.ctl", *quietly]
        daemons.append(subprocess.Popen([*inside_, *switch]))
        bridge = f"b{secrets.token_hex(4)}"
        settings = ("datapath_type=netdev", "other-config:disable-in-band=true")
        run(*vsctl, "add-br", bridge, "--", "set", "bridge", bridge, *settings)
        for workload in (pair.one, pair.two):
            run(*vsctl, "add-port", bridge, workload.port)
        yield
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(20)


def label(site: Site, name: str) -> dict[str, Any]:
    """A workload's counters, once it is known."""
    rows = until(lambda: [row for row in site.json("labels") if row["name"] == name], f"workload {name}")
    found: dict[str, Any] = rows[0]
    return found


def counters(site: Site, name: str, **expected: int) -> None:
    """Wait until a label's counters are these."""
    last: dict[str, Any] = {}

    def same() -> bool:
        last.update(label(site, name))
        return all(last[key] == value for key, value in expected.items())

    try:
        until(same, f"{expected}")
    except pytest.fail.Exception:
        pytest.fail(f"{name}: wanted {expected}, got {last}")


def document(site: Site, *words: str) -> dict[str, Any]:
    found: Any = site.json(*words)
    assert isinstance(found, dict)
    return found


def sources(site: Site) -> list[dict[str, Any]]:
    """What is enforced or refused."""
    found: list[dict[str, Any]] = document(site, "enforce", "--list")["sources"]
    return found


def declare(site: Site, *what: str) -> None:
    """Declare suspect, and wait until that is in effect."""
    done = site.run("suspect", "add", *what)
    assert done.returncode == 0, done.stderr
    text = done.stdout.removeprefix("suspect: ").strip()

    def there() -> bool:
        entries = document(site, "suspect", "list")["entries"]
        return any(e["what"] == text and e["hosts"] == ["h1"] for e in entries)

    until(there, f"{text} in effect")


def enforce(site: Site, selector: str, count: int = 1) -> list[dict[str, Any]]:
    """Enforce, and wait until so many sources have decided."""
    done = site.run("enforce", selector)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = []

    def decided() -> bool:
        found[:] = sources(site)
        return len(found) == count

    until(decided, f"{selector} decided")
    return found


def balanced(site: Site) -> bool:
    return all(row["balanced"] for row in site.json("ledger"))


def exchange(site: Site, pair: Pair, count: int) -> None:
    """Both ways, half of it suspect: with `one` enforced nothing suspect arrives, and all the rest does."""
    numbers = range(count)
    with listening(pair.one.netns) as one, listening(pair.two.netns) as two:
        send(pair.one.netns, [frame(n, port) for n in numbers for port in (BAD, GOOD)])
        got = arrived(two, count)
        send(pair.two.netns, [frame(n, port, back=True) for n in numbers for port in (BAD, GOOD)])
        back = arrived(one, count)
    assert got == [(n, GOOD) for n in numbers]
    assert back == [(n, GOOD) for n in numbers]


def enforced_pair(site: Site, pair: Pair) -> None:
    """The whole story, on whatever connects the two: before, enforced, killed, adopted, taken back."""
    one, two = pair.one.name, pair.two.name
    for name in (one, two):
        label(site, name)
    declare(site, *FLOW.split())
    with listening(pair.two.netns) as tap:
        send(pair.one.netns, [frame(n, BAD) for n in range(20)])
        assert arrived(tap, 20) == [(n, BAD) for n in range(20)]  # counted apart, not dropped
    (source,) = enforce(site, f"name={one}")
    assert (source["state"], source["hook"], source["port"]) == ("enforced", "port", pair.one.port)
    exchange(site, pair, 100)
    probe = site.roles()["probe"]
    os.kill(probe, signal.SIGKILL)
    exchange(site, pair, 50)  # whether or not the next one is there already
    until(lambda: site.roles().get("probe", probe) != probe, "another probe")
    until(lambda: len(sources(site)) == 1, "the next probe's answer")
    exchange(site, pair, 50)
    sent, bad = 420, 220
    counters(
        site,
        one,
        egress_packets=sent,
        egress_bytes=sent * 100,
        ingress_packets=400,
        suspect_egress_packets=bad,
        suspect_ingress_packets=200,
        enforced_drops=400,
    )
    # What was dropped at `one`'s port the other never had; what it sent it had sent.
    counters(site, two, ingress_packets=220, egress_packets=400, suspect_egress_packets=200, enforced_drops=0)
    until(lambda: balanced(site), "the ledger is balanced")
    done = site.run("enforce", f"name={one}", "--off")
    assert done.stdout.strip() == f"not enforced any more: name={one}"
    until(lambda: not sources(site), "not enforced")
    with listening(pair.two.netns) as tap:
        send(pair.one.netns, [frame(n, BAD) for n in range(20)])
        assert arrived(tap, 20) == [(n, BAD) for n in range(20)]


def test_on_a_linux_bridge(site: Site, netns: Path) -> None:
    """Dropped in both directions, no normal packet is; the probe killed in between makes no difference."""
    with Pair(netns) as pair:
        bridged(netns, pair)
        with site.up():
            enforced_pair(site, pair)


def test_on_a_switch_in_user_space(site: Site, netns: Path, tmp_path: Path) -> None:
    """A switch that reads its ports by AF_PACKET gets nothing that is said to be dropped."""
    with Pair(netns) as pair, switched(netns, pair, tmp_path / "ovs"), site.up():
        enforced_pair(site, pair)


_TALK = """
import socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', int(sys.argv[2])))
print('ready', flush=True)
sent = refused = 0
for line in sys.stdin:
    to, count = map(int, line.split())
    for _ in range(count):
        try:
            s.sendto(bytes(72), ('127.0.0.1', to))
            sent += 1
        except PermissionError:
            refused += 1
    print(sent, refused, flush=True)
s.setblocking(False)
received = 0
try:
    while s.recv(100):
        received += 1
except BlockingIOError:
    pass
print(received, flush=True)
"""


class Talker:
    """A process in a cgroup on the host's network."""

    def __init__(self, netns: Path, cgroup: Path, port: int) -> None:
        command = ["nsenter", f"--net={netns}", sys.executable, "-c", _TALK, str(cgroup), str(port)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == ["ready"]

    def _line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def send(self, to: int, count: int) -> tuple[int, int]:
        """Packets sent and refused so far."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{to} {count}\n")
        self.process.stdin.flush()
        sent, refused = map(int, self._line())
        return sent, refused

    def end(self) -> int:
        """How many were received in all."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        received = int(self._line()[0])
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait(20)
        return received


def test_on_the_hosts_network(site: Site, netns: Path, cgroup: Path) -> None:
    """The sender is told at once (EPERM); what another sends to the enforced one does not arrive."""
    for name in ("bad.scope", "other.scope"):
        (cgroup / name).mkdir()
    with site.up():
        bad, other = Talker(netns, cgroup / "bad.scope", 4000), Talker(netns, cgroup / "other.scope", 4001)
        label(site, "bad")
        label(site, "other")
        assert bad.send(4001, 10) == (10, 0)
        declare(site, "udp", "127.0.0.1:4001", "127.0.0.1:4000")
        assert bad.send(4001, 5) == (15, 0)
        (source,) = enforce(site, "name=bad")
        assert (source["state"], source["hook"], source["name"]) == ("enforced", "cgroup", "bad")
        assert bad.send(4001, 30) == (15, 30)
        assert bad.send(4000, 7) == (22, 30)  # to itself: a flow that nobody declared
        assert other.send(4000, 40) == (40, 0)
        assert (bad.end(), other.end()) == (7, 15)
        counters(
            site,
            "bad",
            egress_packets=52,
            suspect_egress_packets=35,
            ingress_packets=47,
            suspect_ingress_packets=40,
            enforced_drops=70,
        )
        counters(site, "other", egress_packets=40, ingress_packets=15, enforced_drops=0)
        until(lambda: balanced(site), "the ledger is balanced")


def test_all_of_a_workload_of_class_suspect(site: Site, netns: Path) -> None:
    """`enforce` says that ALL is dropped, and so it is; the other goes on."""
    with Pair(netns) as pair:
        bridged(netns, pair)
        with site.up():
            label(site, pair.one.name)
            assert site.run("label", "set", pair.one.name, "class=suspect").returncode == 0
            until(lambda: {"suspect"} & {w["class"] for w in site.json("workloads")}, "its class")
            done = site.run("enforce", f"name={pair.one.name}")
            assert f"of class suspect, ALL packets are dropped of {pair.one.name} (label " in done.stdout
            until(lambda: sources(site), "enforced")
            with listening(pair.two.netns) as tap:
                send(pair.one.netns, [frame(n, GOOD) for n in range(30)])
                assert arrived(tap, 0) == []
            counters(site, pair.one.name, egress_packets=30, enforced_drops=30)


def test_a_workload_that_comes_later_is_meant_as_well(site: Site, netns: Path) -> None:
    """An order by kind is resolved for what comes; and is over where `down` removed everything."""
    with site.up():
        assert site.run("enforce", "kind=netns").returncode == 0
        declare(site, "10.0.0.0/8")
        with Pair(netns) as pair:
            bridged(netns, pair)
            until(lambda: len(sources(site)) == 2, "both enforced")
            with listening(pair.two.netns) as tap:
                send(pair.one.netns, [frame(n, GOOD) for n in range(30)])
                assert arrived(tap, 0) == []
                site.down()
                # The kernel takes a program off a moment after its last pin is gone.
                until(lambda: send(pair.one.netns, [frame(0, GOOD)]) or arrived(tap, 0), "an end to it")
                send(pair.one.netns, [frame(n, GOOD) for n in range(30)])
                assert arrived(tap, 30) == [(n, GOOD) for n in range(30)]


def test_where_a_foreign_program_sits_it_is_refused(site: Site, netns: Path, tmp_path: Path) -> None:
    """With the reason, for that workload alone; nothing of it is dropped, and nothing is said to be."""
    with Pair(netns) as pair:
        bridged(netns, pair)
        foreign = Enforcer(MeterConfig(netns=netns), tmp_path / "elsewhere")
        attach.mount_bpffs(tmp_path / "elsewhere")
        try:
            with inside(netns):
                link = attach.link(foreign.program(), pair.one.ifindex, attach.XDP)
            with site.up():
                for workload in (pair.one, pair.two):
                    label(site, workload.name)
                declare(site, "10.0.0.0/8")
                first, second = enforce(site, "kind=netns", 2)
                refused, enforced = sorted((first, second), key=lambda s: s["state"], reverse=True)
                assert refused["name"] == pair.one.name
                assert refused["reason"] == "another XDP program is attached there; detach that one"
                assert (enforced["name"], enforced["state"]) == (pair.two.name, "enforced")
                problems = until(lambda: site.json("hosts")[0]["problems"], "a problem")
                assert f"is not enforced at {pair.one.port}: another XDP program" in problems[0]
                send(pair.one.netns, [frame(n, GOOD) for n in range(30)])
                counters(site, pair.one.name, egress_packets=30, suspect_egress_packets=30, enforced_drops=0)
                counters(site, pair.two.name, ingress_packets=30, enforced_drops=30)
                os.close(link)
                until(
                    lambda: {s["state"] for s in sources(site)} == {"enforced"},
                    "enforced once it is gone",
                )
        finally:
            foreign.close()
            attach.unmount_bpffs(tmp_path / "elsewhere")
