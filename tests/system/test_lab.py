"""The lab's record is the truth: it equals an independent capture; and of a lab nothing is left."""

import asyncio
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eastwest.lab import Lab, LabConfig, Record, machine, podman, state
from eastwest.lab.plan import Group, random_name
from eastwest.lab.state import LabState, load
from tests.conftest import require
from tests.vm import run as vm

EASTWEST = [sys.executable, "-m", "eastwest"]
ETH_P_ALL = 3
SOL_PACKET, PACKET_STATISTICS, PACKET_VNET_HDR = 263, 6, 15
VNET_HEADER = 10
ENOUGH = 1500
Key = tuple[str, str, int, int, int]


class Capture:
    """Counts packets and bytes by flow on one interface, in its own way: from an AF_PACKET socket.

    The virtio header that comes with each frame tells the size that the kernel will segment it into.
    """

    def __init__(self, interface: str) -> None:
        self.packets: Counter[Key] = Counter()
        self.bytes: Counter[Key] = Counter()
        self.super_packets = 0
        self._loopback = interface == "lo"
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._socket.settimeout(0.05)
        self._socket.bind((interface, ETH_P_ALL))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                data, (_, ether_type, kind, *_) = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                continue
            # Over lo each packet is seen twice: as it leaves and as it arrives.
            if not (self._loopback and kind == socket.PACKET_OUTGOING):
                self._count(data[:VNET_HEADER], data[VNET_HEADER + 14 :], ether_type)

    def _count(self, vnet: bytes, packet: bytes, ether_type: int) -> None:
        if ether_type != 0x0800:
            self.packets[("", "", 0, 0, ether_type)] += 1
            return
        protocol, header = packet[9], (packet[0] & 15) * 4
        src, dst = (socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16))
        src_port, dst_port = struct.unpack_from("!HH", packet, header) if protocol in (6, 17) else (0, 0)
        length = struct.unpack_from("!H", packet, 2)[0]
        gso_size = struct.unpack_from("=H", vnet, 4)[0]
        headers = header + (packet[header + 12] >> 4) * 4 if protocol == 6 else header + 8
        segments = -(-(length - headers) // gso_size) if gso_size else 1
        self.super_packets += segments > 1
        key = (src, dst, src_port, dst_port, protocol)
        self.packets[key] += segments
        self.bytes[key] += length + (segments - 1) * headers

    def stop(self) -> None:
        """All that passed before this call is counted: the socket is empty when it times out."""
        self._ended.set()
        self._thread.join()
        _, dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self._socket.close()
        assert dropped == 0


@pytest.fixture
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for labs; short, since the path of a Unix socket holds 107 bytes."""
    require(os.geteuid() == 0, "a lab makes namespaces and links: run as root")
    require(shutil.which("ovs-vswitchd"), "Open vSwitch is missing: apt-get install openvswitch-switch")
    require(shutil.which("ip"), "ip is missing: apt-get install iproute2")
    directory = tmp_path_factory.mktemp("labs")
    yield directory
    assert list(directory.iterdir()) == []


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s still not: {what}"
        time.sleep(0.02)


async def until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


def by_flow(record: Record, name: str) -> tuple[dict[Key, int], dict[Key, int]]:
    """Packets and bytes of a workload by flow, as a capture at its port would key them."""
    flows = next(workload for workload in record.workloads if workload.name == name).flows
    keys = {(flow.src, flow.dst, flow.src_port, flow.dst_port, flow.protocol): flow for flow in flows}
    return ({key: keys[key].packets for key in keys}, {key: keys[key].bytes for key in keys})


def traces(name: str, directory: Path) -> list[str]:
    """Whatever on this host has the lab's name: links, namespaces, cgroups, files, running processes."""
    found = [path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith(name)]
    found += [str(path) for path in Path("/run/netns").glob(f"{name}*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{name}*")]
    found += [str(path) for path in directory.glob("*")]
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = command.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if name in line and command.parent.name != str(os.getpid()):
            found.append(line)
    return found


def run(*arguments: str, state_dir: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`eastwest lab …`, which must end with `code`. No eastwest listens where EASTWEST_URL points."""
    environment = os.environ | {"EASTWEST_URL": "http://127.0.0.1:9"}
    command = [*EASTWEST, "lab", *arguments, "--state-dir", str(state_dir)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=90, check=False)
    assert done.returncode == code, done.stderr
    return done


def state_of(name: str, state_dir: Path) -> LabState:
    state = load(state_dir / name)
    assert state is not None
    return state


def test_the_record_equals_a_capture(state_dir: Path) -> None:
    """Every packet and byte of every flow, in both tenants and between the groups on the host."""

    async def scenario() -> tuple[Lab, Record, dict[str, Capture]]:
        async with Lab(LabConfig(state_dir=state_dir)) as lab:
            ports = {guest.name: guest.port for guest in lab.plan.guests}
            captures = {name: Capture(port) for name, port in (*ports.items(), ("lo", "lo"))}
            try:
                await lab.start()
                busy = [captures[name] for name in ports]
                await until(lambda: all(sum(one.packets.values()) > ENOUGH for one in busy), "enough packets")
                await lab.pause()
                await lab.resume()
                await until(lambda: all(sum(one.packets.values()) > 2 * ENOUGH for one in busy), "yet more")
                record = await lab.pause()
            finally:
                for capture in captures.values():
                    capture.stop()
            return lab, record, captures

    lab, record, captures = asyncio.run(scenario())
    for guest in lab.plan.guests:
        packets, octets = by_flow(record, guest.name)
        assert captures[guest.name].packets == packets
        assert captures[guest.name].bytes == octets
        assert captures[guest.name].super_packets == 0
    groups = [workload.name for workload in lab.plan.workloads if isinstance(workload, Group)]
    assert len(groups) == 2
    for name in groups:
        packets, octets = by_flow(record, name)
        assert len(packets) == 7
        assert {key: captures["lo"].packets[key] for key in packets} == packets
        assert {key: captures["lo"].bytes[key] for key in packets} == octets
    assert captures["lo"].super_packets > 0
    assert traces(lab.name, state_dir) == []


def test_exactly_what_was_ordered_is_sent(state_dir: Path) -> None:
    """Nothing before; then 13 datagrams and 5 questions, with the sizes of the plan."""

    async def scenario() -> tuple[Record, Record, Lab]:
        async with Lab(LabConfig(state_dir=state_dir)) as lab:
            before = await lab.record()
            await lab.send("udp", 13)
            await lab.send("dns", 5)
            return before, await lab.record(), lab

    before, after, lab = asyncio.run(scenario())
    assert [workload.flows for workload in before.workloads] == [[]] * 6
    for pair in lab.plan.pairs:
        size = next(flow.size for flow in pair.flows if flow.kind == "udp")
        client = next(workload for workload in after.workloads if workload.name == pair.client.name)
        flows = {(flow.protocol, flow.direction, flow.packets, flow.bytes) for flow in client.flows}
        # TCP connects, and that is all; the question is 61 bytes long, its answer 16 more.
        udp = {(17, "egress", 13, 13 * (size + 28)), (17, "egress", 5, 5 * 61), (17, "ingress", 5, 5 * 77)}
        assert flows == udp | {(6, "egress", 2, 60 + 52), (6, "ingress", 1, 60)}


def test_tenants_share_their_addresses_and_not_their_traffic(state_dir: Path) -> None:
    """Both tenants' flows have the same keys; their counters differ, as their volumes do."""

    async def scenario() -> tuple[str, Record]:
        async with Lab(LabConfig(state_dir=state_dir)) as lab:
            await lab.send("bulk", 3)
            return lab.name, await lab.record()

    name, record = asyncio.run(scenario())
    a, b = by_flow(record, f"{name}-a1"), by_flow(record, f"{name}-b1")
    assert a[0].keys() == b[0].keys()
    assert a[1] != b[1]


def test_a_lab_in_the_background(state_dir: Path) -> None:
    """up, pause with its record, resume, down; a second lab beside it; the errors say what to do."""
    name, other = random_name(), random_name()
    assert name in run("up", name, state_dir=state_dir).stdout
    exists = run("up", name, state_dir=state_dir, code=1).stderr
    assert exists == f"eastwest: the lab {name} exists; eastwest lab down {name}, or choose another name\n"
    run("up", other, state_dir=state_dir)
    several = run("down", state_dir=state_dir, code=1).stderr
    assert several == f"eastwest: there are several labs: {', '.join(sorted((name, other)))}; say which one\n"
    for lab in (name, other):
        first = json.loads(run("pause", lab, state_dir=state_dir).stdout)
        assert [workload["name"] for workload in first["workloads"]] == [
            f"{lab}-{role}" for role in ("a1", "a2", "b1", "b2", "load", "web")
        ]
        run("resume", lab, state_dir=state_dir)
        second = json.loads(run("pause", lab, state_dir=state_dir).stdout)
        assert second["workloads"][0]["egress_packets"] >= first["workloads"][0]["egress_packets"]
        run("down", lab, state_dir=state_dir)
        assert traces(lab, state_dir / lab) == []
    nothing = run("down", state_dir=state_dir, code=1).stderr
    assert nothing == "eastwest: there is no lab; make one with `eastwest lab up`\n"


def test_a_lab_that_is_not_there(state_dir: Path) -> None:
    """Whatever is wanted of it: what there is instead, or how to make one."""
    for verb in ("down", "pause", "resume"):
        refused = run(verb, "nosuch", state_dir=state_dir, code=1).stderr
        assert refused == "eastwest: there is no lab called 'nosuch'; make one with `eastwest lab up`\n"
    (state_dir / "other").mkdir()
    refused = run("down", "nosuch", state_dir=state_dir, code=1).stderr
    assert refused == "eastwest: there is no lab called 'nosuch'; choose one of: other\n"
    (state_dir / "other").rmdir()


def test_the_last_lab_takes_their_directory_along(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the one that eastwest chose itself; one of two labs leaves it."""
    home = state_dir / "run" / "lab"
    monkeypatch.setattr(state, "STATE_DIR", home)
    for name in ("one", "two"):
        state.claim(home / name)
    asyncio.run(state.remove(home / "one"))
    assert home.exists()
    asyncio.run(state.remove(home / "two"))
    assert not home.parent.exists()
    state.claim(state_dir / "one")
    asyncio.run(state.remove(state_dir / "one"))
    assert state_dir.exists()


def test_nothing_is_left_of_a_lab_whose_processes_were_killed(state_dir: Path) -> None:
    """SIGKILL for its keeper, or for its keeper and its switch: `lab down` removes all the same."""
    for victims in (("keeper",), ("keeper", "switch")):
        name = random_name()
        run("up", name, state_dir=state_dir)
        keeper = state_of(name, state_dir).owner.pid
        actors = [int(pid) for pid in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()]
        daemons = [pid for pid in actors if b"vswitchd" in Path(f"/proc/{pid}/comm").read_bytes()]
        os.kill(keeper, signal.SIGKILL)
        for daemon in daemons if "switch" in victims else ():
            os.kill(daemon, signal.SIGKILL)
        run("down", state_dir=state_dir)
        wait_until(lambda name=name: traces(name, state_dir) == [], f"{name} is gone")  # type: ignore[misc]


def test_a_lab_that_somebody_uses_is_not_taken_down(state_dir: Path) -> None:
    """`lab down` would end whatever made it, so it refuses and says which process that is."""

    async def scenario() -> tuple[str, str]:
        async with Lab(LabConfig(state_dir=state_dir)) as lab:
            down = await asyncio.to_thread(run, "down", state_dir=state_dir, code=1)
            return lab.name, down.stderr

    name, refused = asyncio.run(scenario())
    owner = f"the lab {name} belongs to process {os.getpid()}, which removes it at its end"
    assert refused == f"eastwest: {owner}; end that: kill {os.getpid()}\n"


def test_a_lab_half_made_is_undone(state_dir: Path) -> None:
    """A link of the last guest's name is in the way: the error says so, and nothing of the lab stays."""
    name = random_name()
    taken = f"{name}b2"
    subprocess.run(["ip", "link", "add", taken, "type", "bridge"], check=True)
    try:
        failed = run("up", name, state_dir=state_dir, code=1).stderr
        assert "File exists" in failed
    finally:
        # The lab's own clearing away may have taken it along: it had the lab's name.
        subprocess.run(["ip", "link", "delete", taken], check=False, capture_output=True)
    assert traces(name, state_dir) == []


def test_the_demo_agrees_with_the_senders_and_leaves_nothing(state_dir: Path) -> None:
    """Three seconds of traffic: exit 0, every row marked; an interrupted one ends in order, too."""
    command = [*EASTWEST, "demo", "--plain", "--seconds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # 6 labels, 12 flows, 6 accounts, the conclusion.
    assert done.stdout.count("✓") == 25
    assert "✗" not in done.stdout
    name = done.stdout.split("making lab ")[1].split(":")[0]
    directory = Path(done.stdout.split("--state-dir ")[1].split("/state ")[0])
    assert traces(name, directory) == []
    assert not directory.exists()


def test_an_interrupted_demo_leaves_nothing(state_dir: Path) -> None:
    """Ctrl-C while traffic flows: exit 130; lab, state and kernel are as before."""
    command = [*EASTWEST, "demo", "--plain", "--seconds", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        said = ""
        for line in demo.stdout:
            said += line
            if "traffic has been flowing" in line:
                demo.send_signal(signal.SIGINT)
                break
        demo.stdout.read()
        assert demo.wait(60) == 130
    name = said.split("making lab ")[1].split(":")[0]
    directory = Path(said.split("--state-dir ")[1].split("/state ")[0])
    assert traces(name, directory) == []
    assert not directory.exists()


# -- containers and a VM -------------------------------------------------------------------------------------


@pytest.fixture
def full(state_dir: Path) -> Iterator[Path]:
    """What a full lab needs: packages, a kernel for the VM, and a directory short enough for podman."""
    require(not podman.lacking(), podman.lacking())
    workdir = Path(sys.prefix) / "vm"
    workdir.mkdir(exist_ok=True)
    vm.kernel(workdir)
    require(not machine.lacking(), machine.lacking())
    with tempfile.TemporaryDirectory(prefix="ewlab") as directory:
        yield Path(directory)


def test_the_record_of_containers_and_a_vm_equals_a_capture(full: Path) -> None:
    """They share the host's address; the VM's datagrams are counted by the guest, and seen on the host."""

    async def scenario() -> tuple[Lab, Record, Capture]:
        async with Lab(LabConfig(state_dir=full, containers=True, machine=True)) as lab:
            capture = Capture("lo")
            try:
                await lab.start()
                await until(lambda: sum(capture.packets.values()) > 4 * ENOUGH, "enough packets")
                await lab.send("udp", 10)
                record = await lab.pause()
            finally:
                capture.stop()
            return lab, record, capture

    lab, record, capture = asyncio.run(scenario())
    names = [f"{lab.name}-{role}" for role in ("c1", "c2", "vm", "dns")]
    assert [workload.name for workload in record.workloads][-4:] == names
    for name, flows in zip(names, (7, 7, 3, 3), strict=True):
        packets, octets = by_flow(record, name)
        assert len(packets) == flows
        assert {key: capture.packets[key] for key in packets} == packets
        assert {key: capture.bytes[key] for key in packets} == octets
    guest = next(workload for workload in record.workloads if workload.name == names[2])
    # Questions of 61 bytes and their answers, and datagrams of 400.
    questions, answers, datagrams = sorted(guest.flows, key=lambda flow: flow.bytes / flow.packets)
    assert questions.bytes == 61 * questions.packets
    assert (answers.bytes, answers.packets) == (77 * questions.packets, questions.packets)
    assert datagrams.bytes == 428 * datagrams.packets
    assert datagrams.packets >= 10
    assert traces(lab.name, full) == []


def test_nothing_is_left_of_a_full_lab_whose_keeper_was_killed(full: Path) -> None:
    """Neither container nor VM, cgroup in any hierarchy, mount or file."""
    name = random_name()
    shown = run("up", name, "--full", state_dir=full).stdout
    assert f'podman = "{full / name}/podman/api.sock"' in shown
    os.kill(state_of(name, full).owner.pid, signal.SIGKILL)
    run("down", state_dir=full)
    wait_until(lambda: traces(name, full) == [], f"{name} is gone: {traces(name, full)}")
    assert name not in Path("/proc/self/mounts").read_text()


def test_the_demo_shows_containers_and_a_vm_beside_the_rest(full: Path) -> None:
    """Every figure agrees; tenant and service of the containers come from their labels."""
    command = [*EASTWEST, "demo", "--seconds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # 10 labels, 12 flows, 10 accounts, the conclusion.
    assert done.stdout.count("✓") == 33
    assert " without " not in done.stdout
    name = done.stdout.split("making lab ")[1].split(":")[0]
    (first,) = (
        line.split()[1:4] for line in done.stdout.splitlines() if f"{name}-c1 " in line and " c " in line
    )
    assert first == [f"{name}-c1", "c", "cart"]
    assert traces(name, full) == []


def test_what_is_missing_is_skipped_with_its_remedy(state_dir: Path, tmp_path: Path) -> None:
    """Where podman and QEMU are not to be found, the demo says so and shows the rest."""
    for directory in ("/usr/sbin", "/usr/bin"):
        for command in Path(directory).iterdir():
            if (
                command.name not in ("podman", "qemu-system-x86_64")
                and not (tmp_path / command.name).exists()
            ):
                (tmp_path / command.name).symlink_to(command)
    done = subprocess.run(
        [*EASTWEST, "demo", "--seconds", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without podman containers: podman is not installed: apt-get install podman runc\n" in done.stdout
    qemu = "qemu-system-x86_64 is not installed: apt-get install qemu-system-x86 busybox-static cpio"
    assert f"without a QEMU VM: {qemu}\n" in done.stdout
    assert done.stdout.count("✓") == 25


def test_a_directory_that_podman_refuses_is_named(full: Path) -> None:
    """Before anything is made there; the lab is undone."""
    directory = full / ("x" * 40)
    directory.mkdir()
    refused = run("up", "--full", state_dir=directory, code=1).stderr
    assert "too long; choose a shorter --state-dir" in refused
    assert list(directory.iterdir()) == []


def test_a_podman_that_does_not_work_keeps_nothing_else_from_being_shown(full: Path, tmp_path: Path) -> None:
    """A script stands for one that cannot run here: the reason is said, and the plain lab made."""
    (tmp_path / "podman").write_text("#!/bin/sh\necho no containers today >&2\nexit 1\n")
    (tmp_path / "podman").chmod(0o755)
    done = subprocess.run(
        [*EASTWEST, "demo", "--seconds", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    why = "podman's service does not start: no containers today"
    assert f"without podman containers and a QEMU VM, since this lab failed: {why}\n" in done.stdout
    assert done.stdout.count("✓") == 25
    name = done.stdout.split("making lab ")[1].split(":")[0]
    assert traces(name, Path("/run/eastwest/lab") / name) == []
