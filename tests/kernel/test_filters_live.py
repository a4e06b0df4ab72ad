"""Filters in the kernel on live packets: tags in metadata, data outside the linear part, super-packets."""

import ctypes
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from eastwest.kernel import attach
from eastwest.kernel.netns import inside
from eastwest.tap.filter import Filter
from eastwest.tap.reading import Hook
from tests.conftest import Workload, run
from tests.kernel import verdicts
from tests.kernel.filter_texts import RAW_TEXTS, TEXTS
from tests.kernel.random_frames import Draw
from tests.kernel.test_payload import PATTERNS, holds, network_of, payload_of
from tests.kernel.watching import Seen, Watcher, attached, watching

FRAMES, LARGE = 400, 100
FAR_SHIFTS = ("ip[0] << ip[9] > 1000", "ip[0:4] >> ip[9] = 0", "1 << ip[9] != 0")
"""Where 32 bits are shifted by more, bpf_filter() has 0, and the kernel's classic BPF whatever comes."""
LAST = bytes(12) + b"\x88\xb5" + b"the last frame" * 4
_ATTACH_FILTER, _RECEIVE_BUFFER_FORCE = 26, 33  # asm-generic/socket.h
_EVERYTHING = 0x0003  # ETH_P_ALL
_SECONDS = 60


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < end, f"not within {_SECONDS} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def watcher(root: None) -> Iterator[Watcher]:
    with watching() as watcher:
        yield watcher


@pytest.fixture
def workload(netns: Path) -> Iterator[Workload]:
    with Workload(netns) as workload:
        yield workload


def packet_socket(netns: Path, device: str, protocol: int = 0) -> socket.socket:
    with inside(netns):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        made.bind((device, protocol))
        return made


@contextmanager
def one_cpu() -> Iterator[None]:
    """Packets that are sent on one CPU arrive in their order."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def sent(watcher: Watcher, netns: Path, device: str, frames: Sequence[bytes]) -> list[Seen]:
    """What the hook saw of these frames."""
    with one_cpu(), packet_socket(netns, device) as sender:
        for frame in [*frames, LAST]:
            sender.send(frame)
        until(
            lambda: watcher.count() > 0 and watcher.seen(watcher.count() - 1)[0].data == LAST,
            "all frames arrive",
        )
    return watcher.seen()[:-1]


def judged(
    made: Sequence[Filter], seen: Sequence[Seen], ifindex: int
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """What bpf_filter() says of each packet, of what the hook saw of it."""
    rows = [verdicts.judged(made, [one.data], one.tag, ifindex)[0] for one in seen]
    return np.array(rows)


@contextmanager
def kernels_own(made: Sequence[Filter], netns: Path, device: str) -> Iterator[list[socket.socket]]:
    """Packet sockets with the same filters in classic BPF, run by the kernel itself: a second judge."""
    with ExitStack() as stack:
        sockets = []
        for one in made:
            listener = stack.enter_context(packet_socket(netns, device))
            code = [struct.pack("HBBI", *instruction) for instruction in verdicts.with_memory(one.code)]
            program = ctypes.create_string_buffer(b"".join(code))
            option = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
            listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, option)
            listener.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, 8 << 20)
            listener.bind((device, _EVERYTHING))
            listener.setblocking(False)
            sockets.append(listener)
        yield sockets


def received(listener: socket.socket) -> Counter[bytes]:
    frames: Counter[bytes] = Counter()
    while True:
        try:
            frames[listener.recv(70000)] += 1
        except BlockingIOError:
            del frames[LAST]
            return frames


@pytest.mark.parametrize("egress", [False, True], ids=["ingress", "egress"])
def test_live_frames_get_bpf_filters_verdict(
    watcher: Watcher, workload: Workload, netns: Path, egress: bool
) -> None:
    """By libpcap's interpreter and by the kernel's own; at ingress the outer tag is in the metadata."""
    ifindex, frames = workload.ifindex, Draw(21).some(FRAMES)
    place = (netns, workload.port) if egress else (workload.netns, "eth0")
    with attached(watcher.program("port_seen"), netns, ifindex, egress):
        for first, made in verdicts.groups(verdicts.filters(tuple(TEXTS), Hook.PORT)):
            watcher.put(Hook.PORT, made)
            with kernels_own(made, netns, workload.port) as sockets:
                seen = sent(watcher, *place, frames)
                taken = [received(listener) for listener in sockets]
            assert len(seen) > FRAMES * 0.95
            assert sum(one.tag is not None for one in seen) > (-1 if egress else FRAMES // 10)
            got = verdicts.bits([one.orders for one in seen], len(made))
            data = [one.data for one in seen]
            assert verdicts.disagreements(got, judged(made, seen, ifindex), TEXTS[first:], data) == []
            for text, column, theirs in zip(TEXTS[first:], got.T, taken, strict=False):
                mine = Counter(one for one, takes in zip(data, column, strict=True) if takes)
                assert mine == theirs or text in FAR_SHIFTS, text


def test_what_lies_outside_the_linear_part_is_read(watcher: Watcher, workload: Workload, netns: Path) -> None:
    """Of frames that arrive with little more than their Ethernet header in it, by filters and by patterns."""
    for name, device in ((workload.name, "eth0"), (netns.name, workload.port)):
        run("ip", "-n", name, "link", "set", device, "mtu", "9000")
    draw = Draw(22)
    frames = [frame + bytes(5000) for frame in draw.some(LARGE)]
    (everything,) = verdicts.filters(("",), Hook.PORT)
    searches = [everything._replace(payload=one) for one in PATTERNS]
    with attached(watcher.program("port_seen"), netns, workload.ifindex):
        for first, made in verdicts.groups(verdicts.filters(tuple(TEXTS), Hook.PORT)):
            watcher.put(Hook.PORT, made)
            seen = sent(watcher, workload.netns, "eth0", frames)
            assert max(one.linear for one in seen) < 64
            assert min(one.length for one in seen) > 5000
            got = verdicts.bits([one.orders for one in seen], len(made))
            wanted = judged(made, seen, workload.ifindex)
            assert verdicts.disagreements(got, wanted, TEXTS[first:], [one.data for one in seen]) == []
        watcher.put(Hook.PORT, searches)
        for one in sent(watcher, workload.netns, "eth0", frames):
            packet = network_of(one.data)
            payload = payload_of(packet) if packet else None
            answer = verdicts.bits([one.orders], len(searches))[0].tolist()
            assert answer == [holds(payload, pattern) for pattern in PATTERNS]


_SUPER = """
import os, socket, sys
host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.stdin.readline()
if host == "own":
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    connection, _ = server.accept()
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.bind(("::1", 0))
    for number in range(20):
        datagrams.sendto(b"needle in a haystack" * number, datagrams.getsockname())
else:
    client = connection = socket.create_connection((host, port))
with open(path, "rb") as file:
    sent = 0
    while sent < 300_000:
        sent += os.sendfile(client.fileno(), file.fileno(), sent, 50_000)
        if host == "own":
            connection.recv(100_000)
client.close()
"""


def sender(netns: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process in a namespace that sends a file by TCP, in super-packets, once it is told to."""
    command = ["nsenter", f"--net={netns}", sys.executable, "-c", _SUPER, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True)


def large(seen: Sequence[Seen]) -> list[Seen]:
    """Those that lie for the most part outside the linear part."""
    return [one for one in seen if one.length > 10_000 and one.linear < one.length // 2]


def test_super_packets_are_filtered_as_they_are_seen(
    watcher: Watcher, workload: Workload, netns: Path, tmp_path: Path
) -> None:
    """TCP with segmentation offload: the length is the super-packet's, headers and payload are found."""
    file = tmp_path / "file"
    file.write_bytes(b"GET / HTTP/1.1\r\n" * 20_000)
    run("ip", "-n", netns.name, "link", "set", workload.port, "address", "02:00:00:00:00:02")
    run("ip", "-n", netns.name, "address", "add", "10.1.0.2/24", "dev", workload.port)
    made = verdicts.filters(
        ("tcp", "len > 10000", "tcp[tcpflags] & tcp-syn != 0", "src host 10.1.0.1", "udp"), Hook.PORT
    )
    made = [*made, made[0]._replace(payload=PATTERNS[0]), made[0]._replace(payload=PATTERNS[2])]
    watcher.put(Hook.PORT, made)
    with attached(watcher.program("port_seen"), netns, workload.ifindex), inside(netns):
        server = socket.create_server(("10.1.0.2", 0))
        with server, sender(workload.netns, "10.1.0.2", str(server.getsockname()[1]), str(file)) as process:
            process.communicate("go\n", timeout=_SECONDS)
            connection, _ = server.accept()
            with connection:
                while connection.recv(1 << 20):
                    pass
    seen = watcher.seen()
    got = verdicts.bits([one.orders for one in seen], len(made))
    assert (got[:, :5] == judged(made[:5], seen, workload.ifindex)).all()
    payloads = [payload_of(network_of(one.data) or b"") for one in seen]
    assert got[:, 5].tolist() == [holds(payload, PATTERNS[0]) for payload in payloads]
    assert any(one.segment for one in large(seen))
    assert got[:, 5].any() and not got[:, 6].any()


@pytest.mark.parametrize("egress", [False, True], ids=["ingress", "egress"])
def test_a_cgroup_filters_its_live_packets(
    watcher: Watcher, cgroup: Path, netns: Path, tmp_path: Path, egress: bool
) -> None:
    """Raw IP of both versions, UDP and TCP, of 50,000 bytes too: the verdict is bpf_filter()'s."""
    file = tmp_path / "file"
    file.write_bytes(b"GET / HTTP/1.1\r\n" * 20_000)
    program = watcher.program("cgroup_seen")
    (everything,) = verdicts.filters(("",), Hook.CGROUP)
    searches = [everything._replace(payload=one) for one in PATTERNS]
    texts = [*RAW_TEXTS, "ip6[44:2] > 100", "len > 10000", "tcp and src net 127.0.0.0/8"]
    for first, made in [*verdicts.groups(verdicts.filters(tuple(texts), Hook.CGROUP)), (-1, searches)]:
        watcher.put(Hook.CGROUP, made)
        with sender(netns, "own", "0", str(file)) as process:
            (cgroup / "cgroup.procs").write_text(str(process.pid))
            descriptor = attach.open_cgroup(cgroup)
            link = attach.link(program, descriptor, attach.CGROUP_EGRESS if egress else attach.CGROUP_INGRESS)
            try:
                process.communicate("go\n", timeout=_SECONDS)
            finally:
                os.close(link)
                os.close(descriptor)
        assert process.returncode == 0
        seen = watcher.seen()
        got = verdicts.bits([one.orders for one in seen], len(made))
        assert len(seen) >= 26
        assert large(seen)
        if first >= 0:
            wanted = judged(made, seen, 1)
            assert verdicts.disagreements(got, wanted, texts[first:], [one.data for one in seen]) == []
        else:
            payloads = [payload_of(one.data) for one in seen]
            assert got.tolist() == [[holds(payload, one) for one in PATTERNS] for payload in payloads]
