"""Rings and their reader: nothing is lost between them without a name, whoever stops, stalls or sleeps."""

import asyncio
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from eastwest.kernel import features, trial
from eastwest.kernel.netns import inside
from eastwest.tap import pcapng, reader
from eastwest.tap.pcapng import RAW_IP
from eastwest.tap.reader import Left
from eastwest.tap.taps import Point, Taps
from tests.conftest import require, run
from tests.kernel.blocks import parse
from tests.kernel.frames import ethernet, ipv4, udp
from tests.kernel.tapping import LABEL, LO, LOSSES, SERVICE, Tool, balanced, by_pieces, tapping, until

BURST = 50
MILLION = 1_000_000


def frame(number: int, size: int = 100) -> bytes:
    return ethernet(ipv4(udp(struct.pack("=I", number).ljust(size - 42, b"x")), 17), 0x0800)


def number(data: bytes) -> int:
    (found,) = struct.unpack_from("=I", data, 42)
    return int(found)


def put(taps: Taps, frames: list[bytes]) -> None:
    for one in frames:
        trial.run(taps.program("tap_port_ingress"), one, ifindex=LO)


class Rows:
    """Takes, by fits and starts, blocks that are alike but for their time and their count of drops."""

    TIME, DROPPED = slice(12, 20), slice(-40, -32)

    def __init__(self, seed: int, likes: list[bytes]) -> None:
        self.random = random.Random(seed)
        self.likes = [self._masked(np.frombuffer(like, np.uint8).reshape(1, -1))[0] for like in likes]
        self.size = len(likes[0])
        self.rest = b""
        self.skip = 0
        self.rows = [0] * len(likes)
        self.dropped = 0

    def _masked(self, rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[:, self.TIME] = 0
        rows[:, self.DROPPED] = 0
        return rows

    def take(self, data: memoryview) -> int:
        if self.random.random() < 0.2:
            raise BlockingIOError
        size = len(data) if self.random.random() < 0.5 else self.random.randrange(1, len(data) + 1)
        taken = self.rest + bytes(data[:size])
        head = min(self.skip, len(taken))
        self.skip -= head
        taken = taken[head:]
        whole = len(taken) // self.size * self.size
        self.rest = taken[whole:]
        rows = np.frombuffer(taken[:whole], np.uint8).reshape(-1, self.size)
        self.dropped += int(rows[:, self.DROPPED].copy().view("<u8").sum())
        masked = self._masked(rows)
        found = [(masked == like).all(axis=1) for like in self.likes]
        assert np.any(found, axis=0).all(), "a block that nobody wrote"
        self.rows = [had + int(one.sum()) for had, one in zip(self.rows, found, strict=True)]
        return size


def test_millions_from_every_cpu_at_once_are_all_accounted_for(taps: Taps, tool: Tool) -> None:
    """A million a CPU, read meanwhile in pieces of any size: each is whole, or a named and told loss."""
    cpus = sorted(os.sched_getaffinity(0))
    frames = [frame(cpu, 64) for cpu in cpus]
    put(taps, frames)
    (section,) = tool.sections()
    blocks = bytes(tool.stream[-144 * len(frames) :])
    assert len(section.packets) == len(frames)
    order = {packet.data: index for index, packet in enumerate(section.packets)}
    likes = [blocks[order[one] * 144 :][:144] for one in frames]
    rows = Rows(1, likes)
    tool.reader.start(rows.take)
    header = len(tool.stream) - len(blocks)
    rows.skip = header

    def work(index: int) -> None:
        os.sched_setaffinity(0, {cpus[index]})
        for _ in range(MILLION // BURST):
            trial.run(taps.program("tap_port_ingress"), frames[index], repeat=BURST, ifindex=LO)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(cpus))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tool.reader.pump()
    for thread in threads:
        thread.join()
    tool.drain()
    count = taps.count(5)
    assert count["matched"] == MILLION * len(cpus) + len(cpus)
    assert balanced(count)
    assert count["busy"] == count["load_failed"] == count["no_buffer"] == 0
    assert sum(rows.rows) + len(cpus) == count["written"] == tool.reader.sent_packets
    assert min(rows.rows) > 0
    assert rows.dropped + count["unreported"] == count["buffer_full"]
    assert (rows.rest, rows.skip, tool.rings.pending()) == (b"", 0, 0)


_CHATTER = """
import os, socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
os.sched_setaffinity(0, {int(sys.argv[2])})
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
receiver.bind(('127.0.0.1', 0))
receiver.setblocking(False)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(receiver.getsockname())
for i in range(int(sys.argv[3])):
    sender.send((i.to_bytes(4, 'little') + sys.argv[2].encode()) * 500)
    try:
        while True:
            receiver.recv(3000)
    except BlockingIOError:
        pass
"""

# A paced connection sends from a timer, which interrupts whatever this CPU does.
_PACED = """
import os, socket, sys, threading
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
os.sched_setaffinity(0, {int(sys.argv[2])})
server = socket.create_server(('127.0.0.1', 0))
sender = socket.socket()
sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 200)
sender.setsockopt(socket.SOL_SOCKET, 47, 3_000_000)  # SO_MAX_PACING_RATE
sender.connect(server.getsockname())
peer, _ = server.accept()
def read():
    while peer.recv(65536):
        pass
threading.Thread(target=read, daemon=True).start()
print('.', flush=True)
while True:
    sender.send(bytes(10000))
"""


@pytest.mark.parametrize("held", [True, False])
def test_egress_and_the_softirq_that_interrupts_it_do_not_mix_their_blocks(
    netns: Path, cgroup: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """Both directions on every CPU: whole blocks, and none busy where interrupts can be held off."""
    can = features.programs_hold_irqs()
    monkeypatch.setattr(features, "programs_hold_irqs", lambda: held and can)
    cpus, each = sorted(os.sched_getaffinity(0)), 20_000
    groups = [cgroup / "chatter", cgroup / "paced"]
    with tapping(netns, 64 << 20) as taps:
        tool = Tool(taps)
        for stream, group in enumerate(groups, 5):
            group.mkdir()
            taps.set_cgroup(group.stat().st_ino, Point(LABEL, [tool.order(stream, link_type=RAW_IP)]))
        taps.attach_cgroup(cgroup)
        with inside(netns):
            paced = [start(_PACED, groups[1], cpu) for cpu in cpus]
            for one in paced:
                assert one.stdout
                one.stdout.read(1)
            senders = [start(_CHATTER, groups[0], cpu, str(each)) for cpu in cpus]
        while any(sender.poll() is None for sender in senders):
            tool.reader.pump()
        for one in (*paced, *senders):
            one.kill()
            one.communicate()
        for group in groups:
            taps.remove_cgroup(group.stat().st_ino)
        taps.settle()  # from here on nothing is written
        (section,) = tool.sections()
        counts = [taps.count(5), taps.count(6)]
    assert [sender.returncode for sender in senders] == [0] * len(cpus)
    assert counts[0]["matched"] == 2 * each * len(cpus)
    assert not (held and can and any(count["busy"] for count in counts))
    for interface, count in enumerate(counts):
        packets = [packet for packet in section.packets if packet.interface == interface]
        assert balanced(count)
        assert count["written"] == len(packets)
        assert sum(packet.dropped for packet in packets) + count["unreported"] == sum(
            count[one] for one in LOSSES
        )
    told = {(packet.flags & 3, packet.data[28:]) for packet in section.packets if packet.interface == 0}
    marks = [(i.to_bytes(4, "little") + b"%d" % cpu) * 500 for cpu in cpus for i in range(each)]
    assert len(told) == counts[0]["written"]
    assert told <= {(way, mark) for way in (1, 2) for mark in marks}


def start(program: str, group: Path, cpu: int, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", program, str(group), str(cpu), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_a_new_stream_starts_at_a_block_and_tells_all_again(taps: Taps, tool: Tool) -> None:
    """The taker is killed in the middle of a block: the next gets that block whole, and no other twice."""
    put(taps, [frame(i) for i in range(600)])
    near, far = socket.socketpair()
    near.setblocking(False)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    reads = "import os, sys, time; os.write(1, b'.'); os.read(0, 5000); os.write(1, b'.'); time.sleep(600)"
    killed = subprocess.Popen([sys.executable, "-c", reads], stdin=far, stdout=subprocess.PIPE)
    far.close()
    assert killed.stdout
    killed.stdout.read(1)
    tool.reader.start(near.send)
    assert tool.reader.pump() is Left.BLOCKED
    killed.stdout.read(1)
    tool.reader.pump()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with pytest.raises(OSError), near:
        while True:
            tool.reader.pump()
    sent = tool.reader.sent_packets
    assert 0 < sent < 600
    assert tool.rings.pending() == 600 - sent
    tool.stream.clear()
    tool.reader.start(tool.take)
    packets = tool.packets()
    assert [number(packet.data) for packet in packets] == list(range(sent, 600))
    assert tool.reader.sent_packets == taps.count(5)["written"] == 600


def test_a_taker_of_small_pieces_gets_one_whole_stream(taps: Taps, tool: Tool) -> None:
    """Any number of bytes at a time, blocked in between, while packets come: each once and in order."""
    got = bytearray()
    tool.reader.start(by_pieces(3, got))
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        for i in range(3000):
            put(taps, [frame(i, 64 + i % 700)])
            tool.reader.pump()
    finally:
        os.sched_setaffinity(0, cpus)
    tool.drain()
    (section,) = parse(bytes(got))
    assert taps.count(5)["buffer_full"] == 0
    assert [number(packet.data) for packet in section.packets] == list(range(3000))
    assert [len(packet.data) for packet in section.packets] == [64 + i % 700 for i in range(3000)]


def test_a_second_reader_goes_on_where_the_first_stopped(taps: Taps, tool: Tool) -> None:
    """A reader that is thrown away in the middle of a segment leaves whole blocks to the next."""
    put(taps, [frame(i) for i in range(50)])
    taken = bytearray()

    def little(data: memoryview) -> int:
        if len(taken) > 3000:
            raise BlockingIOError
        taken.extend(data[:999])
        return min(len(data), 999)

    tool.reader.start(little)
    until(lambda: tool.reader.pump() is Left.BLOCKED)  # once they are old enough
    first = tool.reader.sent_packets
    second = Tool.__new__(Tool)
    second.__dict__.update(tool.__dict__)
    second.stream = bytearray()
    second.reader = type(tool.reader)(tool.rings, pcapng.section("host-1"))
    second.order(5)
    second.reader.start(second.take)
    assert [number(packet.data) for packet in second.packets()] == list(range(first, 50))
    (cut,) = parse(bytes(taken), whole=False)
    assert [number(packet.data) for packet in cut.packets] == list(range(first))


async def _sleeps_and_wakes(taps: Taps, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, passes = asyncio.get_running_loop(), 0

    def each_time() -> None:
        nonlocal passes
        passes += 1
        taps.set_clock()

    async def writable() -> None:
        await asyncio.sleep(0)

    async def sent(packets: int) -> None:
        while tool.reader.sent_packets < packets:
            await asyncio.sleep(0.0005)

    loop.add_reader(taps.wake_fd, taps.consume)
    task = asyncio.create_task(tool.reader.run(writable, each_time))
    try:
        # One at a time, at any moment of its going to sleep: none is left lying.
        monkeypatch.setattr(reader, "LINGER_SECONDS", 0)
        for i in range(1500):
            await loop.run_in_executor(None, put, taps, [frame(i)])
            async with asyncio.timeout(60):
                await sent(i + 1)
        assert 0 < tool.wakes <= 1500
        monkeypatch.undo()
        # Nothing to do: many times the lingering goes by without a single pass.
        while True:
            before = passes
            await asyncio.wait({task}, timeout=0.3)
            if passes == before:
                break
        wakes = tool.wakes
        await asyncio.wait({task}, timeout=0.3)
        assert (passes, tool.wakes) == (before, wakes)
        # A burst costs a wake-up or two, not one a packet.
        await loop.run_in_executor(None, put, taps, [frame(i) for i in range(300)])
        async with asyncio.timeout(60):
            await sent(1800)
        assert 1 <= tool.wakes - wakes < 150
    finally:
        loop.remove_reader(taps.wake_fd)
        task.cancel()
        await asyncio.wait({task})


def test_a_reader_sleeps_until_there_is_something(
    taps: Taps, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Woken by the kernel, once for many packets, and not at all while there are none."""
    asyncio.run(_sleeps_and_wakes(taps, tool, monkeypatch))
    assert taps.count(5)["written"] == tool.reader.sent_packets == 1800


def test_tshark_reads_every_standard_option(taps: Taps, tool: Tool, tmp_path: Path) -> None:
    """Interface, flags, drops, time, lengths and the frames' content, as another program understands them."""
    require(shutil.which("tshark"), "needs tshark: make test installs it")
    lost = 0
    while not taps.count(5)["buffer_full"]:
        put(taps, [frame(lost, 1400)])
        lost += 1
    kept = taps.count(5)["written"]
    tool.sections()
    tool.stream.clear()
    tool.reader.start(tool.take)
    cpus = os.sched_getaffinity(0)
    for cpu in sorted(cpus):
        os.sched_setaffinity(0, {cpu})
        put(taps, [frame(cpu, 100)])
    os.sched_setaffinity(0, cpus)
    (section,) = tool.sections()
    file = tmp_path / "copy.pcapng"
    file.write_bytes(tool.stream)
    fields = (
        "interface_name",
        "interface_description",
        "packet_flags",
        "drop_count",
        "time_epoch",
        "len",
        "cap_len",
    )
    wanted = [word for name in fields for word in ("-e", f"frame.{name}")]
    table = run("tshark", "-r", str(file), "-T", "fields", *wanted, "-e", "udp.dstport").splitlines()
    assert table == [
        "\t".join(
            (
                "port-1",
                "web (tenant blue, network lan-7, host host-1)",
                "0x00000006",
                str(packet.dropped),
                f"{packet.time // 10**9}.{packet.time % 10**9:09}",
                "100",
                "100",
                "2000",
            )
        )
        for packet in section.packets
    ]
    assert sum(packet.dropped for packet in section.packets) == taps.count(5)["buffer_full"] == lost - kept
    assert {packet.custom[:2] for packet in section.packets} == {(LABEL, SERVICE)}
