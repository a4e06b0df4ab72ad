"""What is dropped is dropped before anybody has it, and is counted as it would have been; nothing else is."""

import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eastwest.errors import KernelError
from eastwest.kernel import trial
from eastwest.kernel.netns import inside
from eastwest.kernel.records import enumeration
from eastwest.labels import suspect
from eastwest.meter.config import MeterConfig
from eastwest.meter.drain import Drain
from eastwest.meter.enforcer import Enforcer
from eastwest.meter.meter import Meter, Source
from eastwest.meter.suspects import SuspectMaps
from tests.conftest import Workload, readable, run
from tests.kernel.frames import ethernet, ipv4, tcp, udp
from tests.kernel.test_hostile import mutated
from tests.kernel.test_parse import CASES
from tests.kernel.test_suspect import declare

XDP_DROP, XDP_PASS = 1, 2
TC_REDIRECT = 7
DNS = ethernet(ipv4(udp(bytes(72), dst=53), 17), 0x0800)  # to 10.0.0.2
BAD = "udp 10.0.0.1:1000 10.0.0.2:53"
WEB = ethernet(ipv4(udp(bytes(72), dst=80), 17), 0x0800)
FRAMES = 100_000


class Place:
    """A meter of its own with a port that is enforced."""

    def __init__(self, netns: Path, cgroup: Path, pins: Path) -> None:
        self.config = MeterConfig(netns=netns, cgroup_root=cgroup, flow_entries=20000, accounts=64)
        self.meter = Meter(self.config, pins)
        self.enforcer = Enforcer(self.config, pins)
        self.workload = Workload(netns)
        self.scope = netns

    @property
    def maps(self) -> SuspectMaps:
        maps = SuspectMaps(self.meter)
        maps.adopt()
        return maps

    def port(self) -> int:
        """Meter and enforce the workload's port; its account."""
        account, ifindex = self.meter.open_account(), self.workload.ifindex
        self.meter.attach_port(ifindex)
        self.enforcer.attach(ifindex)
        self.meter.set_port(ifindex, Source(5, account, enforced=True))
        return account

    def totals(self, account: int) -> dict[str, int]:
        """The account's counters that are not zero."""
        drain = Drain(self.meter)
        cut = drain.cut()
        drain.clear(cut.flows)
        from eastwest.kernel.records import record

        names = record("account").names or ()
        return {name: int(n) for name, n in zip(names, cut.accounts[account], strict=True) if n}


@pytest.fixture
def place(netns: Path, cgroup: Path, pins: Path) -> Iterator[Place]:
    place = Place(netns, cgroup, pins)
    with place.meter, place.workload:
        try:
            yield place
        finally:
            place.enforcer.close()


@contextmanager
def tapped(netns: Path, device: str) -> Iterator[socket.socket]:
    """What a switch that reads a device by AF_PACKET gets of it."""
    with inside(netns):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with tap:
        tap.bind((device, 3))
        yield tap


def received(tap: socket.socket) -> list[bytes]:
    """The frames there; the loopback of what was sent there itself left out."""
    frames = []
    while readable(tap, 0.2):
        frame, address = tap.recvfrom(70000)
        if address[2] != socket.PACKET_OUTGOING:
            frames.append(frame)
    return frames


def send(netns: Path, device: str, *frames: bytes) -> None:
    with inside(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        for frame in frames:
            s.sendto(frame, (device, 0))  # nobody is told of a drop


def bytes_of(frames: list[bytes]) -> int:
    return sum(len(frame) - 14 for frame in frames)


def test_what_a_workload_sends_is_dropped_before_a_packet_socket_has_it(place: Place) -> None:
    """50 suspect packets of 120: the tap gets the 70 others; totals hold all, and 50 as enforced."""
    account = place.port()
    declare(place.maps, BAD)
    with tapped(place.scope, place.workload.port) as tap:
        send(place.workload.netns, "eth0", *[DNS, WEB] * 50, *[WEB] * 20)
        got = received(tap)
    assert got == [WEB] * 70
    assert place.totals(account) == {
        "egress_packets": 120,
        "egress_bytes": 12000,
        "suspect_egress_packets": 50,
        "suspect_egress_bytes": 5000,
        "enforced_packets": 50,
        "enforced_bytes": 5000,
    }


def test_what_is_sent_to_a_workload_is_dropped_before_it_arrives(place: Place) -> None:
    account = place.port()
    declare(place.maps, BAD)
    with tapped(place.workload.netns, "eth0") as tap:
        send(place.scope, place.workload.port, *[DNS, WEB] * 50)
        got = received(tap)
    assert got == [WEB] * 50
    assert place.totals(account) == {
        "ingress_packets": 100,
        "ingress_bytes": 10000,
        "suspect_ingress_packets": 50,
        "suspect_ingress_bytes": 5000,
        "enforced_packets": 50,
        "enforced_bytes": 5000,
    }


def test_a_tagged_frame_is_dropped_like_any_other(place: Place) -> None:
    """With its 802.1Q tag in the frame, or handed over beside it; its bytes are those of the IP packet."""
    account = place.port()
    declare(place.maps, BAD)
    bad, good = (
        ethernet(ipv4(udp(bytes(72), dst=dst), 17), 0x0800, tags)
        for dst, tags in ((53, ((0x8100, 5),)), (80, ((0x8100, 5),)))
    )
    twice = ethernet(ipv4(udp(bytes(72), dst=53), 17), 0x0800, ((0x88A8, 9), (0x8100, 5)))
    with tapped(place.scope, place.workload.port) as tap:
        send(place.workload.netns, "eth0", *[bad, good, twice] * 10)
        assert len(received(tap)) == 10
    totals = place.totals(account)
    assert (totals["egress_packets"], totals["egress_bytes"]) == (30, 3000)
    assert (totals["enforced_packets"], totals["enforced_bytes"]) == (20, 2000)


def test_without_enforcement_nothing_is_dropped(place: Place) -> None:
    """Attached, but the source says nothing: all pass, none is counted twice."""
    account = place.port()
    place.meter.set_port(place.workload.ifindex, Source(5, account))
    declare(place.maps, "10.0.0.0/8")
    with tapped(place.scope, place.workload.port) as tap:
        send(place.workload.netns, "eth0", *[DNS] * 30)
        assert len(received(tap)) == 30
    totals = place.totals(account)
    assert (totals["suspect_egress_packets"], totals.get("enforced_packets", 0)) == (30, 0)


def test_all_of_a_suspect_workload_is_dropped(place: Place) -> None:
    """Its own class is suspect: ARP, too, both ways."""
    account = place.port()
    place.meter.set_port(place.workload.ifindex, Source(5, account, suspect=True, enforced=True))
    arp = ethernet(bytes(28), 0x0806)
    with tapped(place.scope, place.workload.port) as out, tapped(place.workload.netns, "eth0") as back:
        send(place.workload.netns, "eth0", arp, DNS, WEB)
        send(place.scope, place.workload.port, arp, DNS, WEB)
        assert received(out) + received(back) == []
    totals = place.totals(account)
    assert (totals["enforced_packets"], totals["enforced_bytes"]) == (6, 456)


def test_super_packets_are_counted_as_segments(place: Place) -> None:
    """A TCP connection that fills its port's MTU, cut off in its midst: every segment is counted."""
    account = place.port()
    run("ip", "-n", place.scope.name, "address", "add", "10.1.0.2/24", "dev", place.workload.port)
    mac = run("ip", "-n", place.scope.name, "-o", "link", "show", place.workload.port).split("link/ether ")[
        1
    ][:17]
    run("ip", "-n", place.workload.name, "neighbour", "replace", "10.1.0.2", "lladdr", mac, "dev", "eth0")
    with inside(place.scope):
        listener = socket.create_server(("10.1.0.2", 0))
    with inside(place.workload.netns):
        sender = socket.create_connection(listener.getsockname(), timeout=10)
    receiver, _ = listener.accept()
    with listener, sender, receiver:
        src, dst = sender.getsockname(), receiver.getsockname()
        sender.sendall(bytes(200_000))
        got = 0
        while got < 200_000:
            got += len(receiver.recv(1 << 20))
        before = place.totals(account)
        assert "enforced_packets" not in before
        declare(place.maps, f"tcp {src[0]}:{src[1]} {dst[0]}:{dst[1]}")
        drain = Drain(place.meter)
        drain.clear(drain.cut().flows)
        sender.setblocking(False)
        sender.send(bytes(14480))  # ten segments of 1448 bytes, sent at once: the window is open
        receiver.settimeout(0.3)
        with pytest.raises(TimeoutError):
            receiver.recv(1)
        after = place.totals(account)
    packets, octets = after["enforced_packets"], after["enforced_bytes"]
    assert packets >= 10
    # Whatever was sent again was a segment as well, or (a probe for the tail) the last one.
    assert octets == packets * 1500
    assert after["egress_packets"] - before["egress_packets"] == packets


def test_a_refused_port_says_who_is_there(place: Place) -> None:
    """Another's XDP program, in whichever mode, keeps ours out; it stays, and what it passes is metered."""
    ifindex = place.workload.ifindex
    foreign = Enforcer(place.config, place.enforcer._pins)
    with inside(place.scope):
        from eastwest.kernel import attach

        link = attach.link(foreign.program(), ifindex, attach.XDP)
    try:
        with pytest.raises(KernelError, match="another XDP program is attached there"):
            place.enforcer.attach(ifindex)
    finally:
        import os

        os.close(link)
        foreign.close()


_SELF = """
import socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
a.bind(('127.0.0.1', 4000))
a.settimeout(0.2)
b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
b.bind(('127.0.0.1', 4001))
b.settimeout(0.2)
refused = received = 0
for i in range(int(sys.argv[2])):
    try:
        a.sendto(bytes(72), b.getsockname())
    except PermissionError:
        refused += 1
    else:
        try:
            b.recv(100)
            received += 1
        except TimeoutError:
            pass
print(refused, received)
"""


def _talk(cgroup: Path, netns: Path, count: int) -> str:
    command = ["nsenter", f"--net={netns}", sys.executable, "-c", _SELF, str(cgroup), str(count)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_cgroup_is_told_at_once(place: Place, cgroup: Path) -> None:
    """On the host's network the sender gets EPERM; nothing is received, and all is counted as dropped."""
    assert _talk(cgroup, place.scope, 7) == "0 7"
    (number, source), *_ = place.meter.cgroup_sources().items()
    place.meter.set_cgroup(number, Source(3, source.account, enforced=True))
    declare(place.maps, "udp 127.0.0.1:4000 127.0.0.1:4001")
    drain = Drain(place.meter)
    drain.clear(drain.cut().flows)
    assert _talk(cgroup, place.scope, 20) == "20 0"
    totals = place.totals(source.account)
    assert (totals["egress_packets"], totals["suspect_egress_packets"], totals["enforced_packets"]) == (
        27,
        20,
        20,
    )
    assert totals["ingress_packets"] == 7


def test_every_mutated_frame_of_a_suspect_workload_is_dropped_and_counted(place: Place) -> None:
    """In XDP as in the meter: frames = dropped = enforced = flows and what the full map lost."""
    rng, frames = random.Random(21), [case[1] for case in CASES]
    account = place.meter.open_account()
    place.meter.set_port(1, Source(5, account, suspect=True, enforced=True))
    drain, program, ran = Drain(place.meter), place.enforcer.program(), 0
    while ran < FRAMES:
        assert trial.run_xdp(program, mutated(rng, rng.choice(frames))).verdict == XDP_DROP
        ran += 1
    cut = drain.cut()
    row = cut.accounts[account].tolist()
    assert row[2] == row[6] == row[8] == ran
    assert row[3] == row[7] == row[9]
    assert int(cut.flows.counters["packets"].sum()) + row[10] == ran
    assert int(cut.flows.counters["bytes"].sum()) + row[11] == row[3]
    assert cut.hooks[enumeration("hook")["HOOK_PORT"]].tolist() == [0, 0, ran, row[3]]


def test_both_programs_read_a_frame_alike(place: Place) -> None:
    """Every kind of frame: the same flow, packets and bytes whether XDP or the meter counted it."""
    account = place.meter.open_account()
    source = Source(5, account, suspect=True, enforced=True)
    seen = []
    for xdp in (True, False):
        drain = Drain(place.meter)
        place.meter.set_port(1, source)
        for _, frame, *_ in CASES:
            if xdp:
                trial.run_xdp(place.enforcer.program(), frame)
            else:
                assert trial.run(place.meter.program("port_ingress"), frame, ifindex=1).verdict == 0xFFFFFFFF
        cut = drain.cut()
        drain.clear(cut.flows)
        counted = zip(
            cut.flows.keys.tolist(),
            cut.flows.counters[["packets", "bytes", "tcp_flags"]].tolist(),
            strict=True,
        )
        seen.append(sorted(counted))
        assert trial.run(place.meter.program("port_egress"), tcp() and DNS, ifindex=1).verdict == TC_REDIRECT
        cut = drain.cut()
        drain.clear(cut.flows)
    assert seen[0] == seen[1]


def test_the_entry_of_a_prefix_is_not_hit_twice(place: Place) -> None:
    """What XDP drops the meter never sees, what it passes it does not count: one hit a packet."""
    place.port()
    declare(place.maps, "10.0.0.2")
    send(place.workload.netns, "eth0", *[DNS] * 9)
    assert {text: hits.packets for text, hits in place.maps.hits(0).items()} == {
        suspect.parse("10.0.0.2").text: 9
    }


def test_it_is_taken_off_at_once(place: Place) -> None:
    """So another, or the same again, finds room; also by the meter, and where the port is gone."""
    ifindex = place.workload.ifindex
    for _ in range(20):
        place.enforcer.attach(ifindex)
        place.enforcer.detach(ifindex)
        place.enforcer.attach(ifindex)
        place.meter.detach_port(ifindex)
    place.enforcer.detach(ifindex)
    place.enforcer.attach(ifindex)
    run("ip", "-n", place.scope.name, "link", "del", place.workload.port)
    place.enforcer.detach(ifindex)
    assert place.enforcer.attached() == set()
