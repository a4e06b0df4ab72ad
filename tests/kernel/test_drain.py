"""Draining loses nothing, whatever happens at the same moment; overflow costs flow detail alone."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from eastwest.errors import KernelError
from eastwest.kernel import features, trial
from eastwest.kernel.attach import unmount_bpffs
from eastwest.kernel.netns import inside
from eastwest.meter.config import MeterConfig
from eastwest.meter.drain import Drain
from eastwest.meter.meter import Meter, Source
from tests.conftest import Workload, require, run
from tests.kernel.frames import ethernet, ipv4, udp

FRAME = ethernet(ipv4(udp(bytes(72)), 17), 0x0800)  # 100 bytes of IP
DRAINS = 10_000
BURST = 200


@contextmanager
def hammer(program: int, cpus: int) -> Iterator[list[int]]:
    """Runs the program on every CPU, without a pause; the list says how often each did."""
    counts, stop = [0] * cpus, threading.Event()

    def work(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        while not stop.is_set():
            trial.run(program, FRAME, repeat=BURST, ifindex=1)
            counts[cpu] += BURST

    threads = [threading.Thread(target=work, args=(cpu,)) for cpu in range(cpus)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_one_flow_hammered_from_both_cpus_through_10000_drains_is_all_there(meter: Meter) -> None:
    """Each cut's flows equal what its accounts grew by, and in the end every packet sent is in a flow."""
    account = meter.open_account()
    meter.set_port(1, Source(5, account))
    drain, packets, octets = Drain(meter), 0, 0
    cpus = os.cpu_count() or 1
    with hammer(meter.program("port_ingress"), cpus) as counts:
        for _ in range(DRAINS):
            cut = drain.cut()
            packets += int(cut.flows.counters["packets"].sum())
            octets += int(cut.flows.counters["bytes"].sum())
            assert cut.accounts[account, 2] == packets  # egress_packets: the same packets, exactly
            drain.clear(cut.flows)
    last = drain.cut()
    packets += int(last.flows.counters["packets"].sum())
    octets += int(last.flows.counters["bytes"].sum())
    assert min(counts) > 0
    assert packets == sum(counts)
    assert octets == 100 * sum(counts)
    assert last.accounts[account].tolist() == [0, 0, packets, octets] + [0] * 8
    assert last.hooks[0].tolist() == [0, 0, packets, octets]


def test_a_full_flow_map_costs_detail_and_no_count(netns: Path, cgroup: Path, pins: Path) -> None:
    """64 entries, 10,000 flows: sum of flows + overflow = label, label + unattributed = hook."""
    config = MeterConfig(netns=netns, cgroup_root=cgroup, flow_entries=64, accounts=16)
    with Meter(config, pins) as meter:
        drain = Drain(meter)
        trial.run(meter.program("port_egress"), FRAME, repeat=7)  # of a port that nobody knows
        drain.clear(drain.cut().flows)
        account = meter.open_account()
        meter.set_port(1, Source(5, account))
        for flow in range(10_000):
            frame = ethernet(ipv4(udp(bytes(72), src=flow + 1), 17), 0x0800)
            trial.run(meter.program("port_egress"), frame, repeat=1 + flow % 3, ifindex=1)
        cut = drain.cut()
        sent = sum(1 + flow % 3 for flow in range(10_000))
        mine = cut.flows.counters[cut.flows.keys["account"] == account]
        ingress_packets, ingress_bytes, *_, full_packets, full_bytes = cut.accounts[account].tolist()
        assert len(cut.flows.keys) == 64
        assert (ingress_packets, ingress_bytes) == (sent, 100 * sent)
        assert int(mine["packets"].sum()) + full_packets == ingress_packets
        assert int(mine["bytes"].sum()) + full_bytes == ingress_bytes
        assert full_packets == sent - sum(1 + flow % 3 for flow in range(64))
        unattributed = cut.accounts[0].tolist()
        assert unattributed[:2] == [7, 700]
        assert cut.hooks[0].tolist() == [sent + 7, 100 * (sent + 7), 0, 0]
        drain.clear(cut.flows)
        trial.run(meter.program("port_egress"), FRAME, ifindex=1)
        assert len(drain.cut().flows.keys) == 1  # room again


_SENDER = """
import os, socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
os.sched_setaffinity(0, {int(sys.argv[2])})
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
receiver.bind(('127.0.0.1', 0))
receiver.setblocking(False)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(receiver.getsockname())
received = 0
for i in range(int(sys.argv[3])):
    sender.send(bytes(72))
    try:
        while True:
            receiver.recv(100)
            received += 1
    except BlockingIOError:
        pass
print(received)
"""


def test_egress_and_the_softirq_that_interrupts_it_count_both(
    meter: Meter, cgroup: Path, netns: Path
) -> None:
    """Process-context egress and softirq ingress of one label, on every CPU at once, while drained."""
    cpus, each = os.cpu_count() or 1, 500_000
    require(cpus > 1, "needs two CPUs")
    drain, packets = Drain(meter), np.zeros(2, np.int64)
    with inside(netns):
        senders = [
            subprocess.Popen(
                [sys.executable, "-c", _SENDER, str(cgroup), str(cpu), str(each)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for cpu in range(cpus)
        ]
    while any(sender.poll() is None for sender in senders):
        cut = drain.cut()
        np.add.at(packets, cut.flows.keys["direction"], cut.flows.counters["packets"].astype(np.int64))
        drain.clear(cut.flows)
    received = sum(int(sender.communicate()[0]) for sender in senders)
    cut = drain.cut()
    np.add.at(packets, cut.flows.keys["direction"], cut.flows.counters["packets"].astype(np.int64))
    sent = each * cpus
    assert received == sent
    assert packets.tolist() == [sent, sent]
    assert cut.hooks[1].tolist() == [sent, 100 * sent, sent, 100 * sent]
    (source,) = meter.cgroup_sources().values()
    assert cut.accounts[source.account].tolist() == [sent, 100 * sent, sent, 100 * sent] + [0] * 8


def test_the_next_probe_takes_over_where_the_last_one_stopped(netns: Path, cgroup: Path, pins: Path) -> None:
    """Pinned counters go on: totals span two meters, and what was not drained is there for the second."""
    config = MeterConfig(netns=netns, cgroup_root=cgroup, flow_entries=64, accounts=16)
    with Meter(config, pins) as first:
        boot, account = first.boot, first.open_account()
        first.set_port(1, Source(5, account))
        trial.run(first.program("port_ingress"), FRAME, repeat=3, ifindex=1)
        Drain(first).cut()  # flipped, and killed before the flows were safe
        trial.run(first.program("port_ingress"), FRAME, repeat=4, ifindex=1)
    with Meter(config, pins) as second:
        drain = Drain(second)
        assert (second.adopted, second.boot) == (True, boot)
        left = drain.idle_flows()
        assert left.counters["packets"].tolist() == [3]
        drain.clear(left)
        cut = drain.cut()
        assert cut.flows.counters["packets"].tolist() == [4]
        assert cut.accounts[account].tolist() == [0, 0, 7, 700] + [0] * 8


def test_a_socket_of_another_namespace_is_not_counted_at_the_cgroup(
    meter: Meter, cgroup: Path, port: tuple[Path, int]
) -> None:
    """A container in a namespace of its own has a port that counts it: its cgroup must not count it again."""
    other, _ = port
    with inside(other):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        sender = [sys.executable, "-c", _SENDER, str(cgroup), "0", "10"]
        received = subprocess.run(sender, check=True, capture_output=True, text=True).stdout
    assert int(received) == 10
    assert Drain(meter).cut().hooks[1].tolist() == [0, 0, 0, 0]


def test_the_kernel_knows_the_map_of_every_look_into_one(meter: Meter) -> None:
    """A map that is a variable costs an indirect call: the compiler makes one of two calls if it can."""
    for name in ("port_ingress", "port_egress", "cgroup_ingress", "cgroup_egress"):
        info = Path(f"/proc/self/fdinfo/{meter.program(name)}").read_text()
        number = info.split("prog_id:")[1].split()[0]
        dump = ["bpftool", "prog", "dump", "xlated", "id", number]
        code = subprocess.run(dump, capture_output=True, check=True, text=True).stdout
        assert "htab_map_lookup_elem" in code, name
        assert "call bpf_map_lookup_elem" not in code, name
        assert "call bpf_map_update_elem" not in code, name


def test_a_closed_meter_leaves_nothing_once_unpinned(netns: Path, cgroup: Path, pins: Path) -> None:
    """No program, map or link stays when the pins are gone."""

    def there() -> int:
        listing = subprocess.run(["bpftool", "-j", "prog"], capture_output=True, check=True, text=True).stdout
        return listing.count('"name":"port_ingress"') + listing.count('"name":"cgroup_egress"')

    before = there()
    with Meter(MeterConfig(netns=netns, cgroup_root=cgroup, flow_entries=64, accounts=16), pins):
        assert there() == before + 2
    unmount_bpffs(pins)
    deadline = time.monotonic() + 5  # the kernel frees programs after a grace period
    while there() != before:
        assert time.monotonic() < deadline


def test_namespaces_are_told_apart_where_programs_see_no_cookie(
    netns: Path, cgroup: Path, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels before 6.15: the namespace is read from the socket; one in scope counts, another does not."""
    monkeypatch.setattr(features, "cgroup_programs_see_netns_cookie", lambda: False)
    config = MeterConfig(netns=netns, cgroup_root=cgroup, flow_entries=64, accounts=16)
    with Meter(config, pins) as meter, Workload(netns) as other:
        run("ip", "-n", other.name, "link", "set", "lo", "up")
        for space, count in ((netns, "10"), (other.netns, "20")):
            run("nsenter", f"--net={space}", sys.executable, "-c", _SENDER, str(cgroup), "0", count)
        cut = Drain(meter).cut()
        assert cut.hooks[1].tolist() == [10, 1000, 10, 1000]


def test_a_meter_that_cannot_load_leaves_the_counters_there_alone(
    netns: Path, cgroup: Path, pins: Path
) -> None:
    """Other sizes do not fit what is pinned: refused with the remedy, and what was counted is still there."""
    config = MeterConfig(netns=netns, cgroup_root=cgroup, flow_entries=64, accounts=16)
    with Meter(config, pins) as first:
        trial.run(first.program("port_ingress"), FRAME, repeat=3, ifindex=1)
    other = MeterConfig(netns=netns, cgroup_root=cgroup, flow_entries=128, accounts=16)
    with pytest.raises(KernelError, match="run eastwest down"), Meter(other, pins):
        pass
    with Meter(config, pins) as again:
        assert again.adopted
        assert Drain(again).cut().hooks[0].tolist() == [0, 0, 3, 300]
