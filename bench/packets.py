"""What metering a packet costs: by flows, by labels, by part, by kind of hook, by depth of the cgroup.

Ports: BPF_PROG_TEST_RUN of the product's counting over one frame that is of another flow in each run, beside
an equal program that meters nothing. Cgroups: real UDP over lo from a process in a cgroup at depth 1 and at
depth 5, by the kernel's run-time statistics, which include two clock readings a packet.
"""

import secrets
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import machine
from bench.build import compiled
from bench.figures import differences, paired, spread, table
from eastwest.kernel import stats, trial
from eastwest.kernel.attach import unmount_bpffs
from eastwest.kernel.libbpf import Map, Object
from eastwest.kernel.records import record
from eastwest.meter.check import cgroup_mount
from eastwest.meter.config import MeterConfig
from eastwest.meter.meter import Meter, Source

PARTS = (
    ("parse", "reading the frame"),
    ("source", "whose port it is"),
    ("hook", "segments, half, hook's counters"),
    ("account", "account's counters"),
    ("clock", "coarse clock"),
    ("flow", "finding the flow"),
    ("whole", "flow's counters"),
)
FLOWS = (1, 10_000, 100_000)
LABELS = (1, 10, 100, 1_000, 10_000)
_MOST_SOURCES = 16_384
_VARIETY = struct.Struct("<6I")

_SENDER = """
import socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 0))
for _ in range(int(sys.argv[2])):
    s.sendto(bytes(72), s.getsockname())
    s.recv(100)
"""


def datagram(size: int = 72, mac: bytes = bytes.fromhex("020000000002")) -> bytes:
    """A UDP frame from 10.1.0.1 to 10.1.0.2 without UDP checksum, `size` bytes of payload."""
    header = bytearray(
        struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + size, 1, 0, 64, 17, 0, b"\n\1\0\1", b"\n\1\0\2")
    )
    total = sum(struct.unpack("!10H", header))
    header[10:12] = struct.pack("!H", 0xFFFF ^ ((total & 0xFFFF) + (total >> 16)))
    udp = struct.pack("!HHHH", 1024, 1024, 8 + size, 0)
    return mac + bytes.fromhex("020000000001") + b"\x08\x00" + bytes(header) + udp + bytes(size)


class Trials:
    """The bench's copy of the metering program, loaded with its own maps."""

    def __init__(self, repeat: int) -> None:
        self._repeat = repeat
        self._object = Object(compiled("parts"))
        self._object.resize({"port_sources": _MOST_SOURCES, "accounts": 2 * _MOST_SOURCES})
        self._object.load()
        for number in range(1, _MOST_SOURCES):
            key = number.to_bytes(4, "little")
            self._object.maps["port_sources"].update(key, Source(number, number).pack("ENFORCE_PORT"))

    def map(self, name: str) -> Map:
        return self._object.maps[name]

    def vary(self, flows: int, sources: int = 1, *, sequential: bool = False) -> None:
        value = _VARIETY.pack(flows, sources, sequential, 0, 0, 0)
        self._object.maps["variety"].update(bytes(4), value)

    def warm(self, flows: int, sources: int) -> None:
        """Every flow is there."""
        self.forget()
        self.vary(flows, sources, sequential=True)
        self.run("whole", flows)
        self.vary(flows, sources)

    def forget(self) -> None:
        table = self._object.maps["flows_even"]
        keys, _ = table.read(record("flow_key"), record("flow_counters"))
        table.delete_many(keys)

    def count(self) -> int:
        return len(self._object.maps["flows_even"].read(record("flow_key"), record("flow_counters"))[0])

    def run(self, part: str, repeat: int = 0) -> float:
        """ns for a run."""
        program = self._object.program(f"part_{part}")
        return trial.run(program, datagram(), repeat or self._repeat, ifindex=1).nanoseconds

    def first_packets(self, flows: int) -> float:
        """ns of a flow's first packet."""
        self.forget()
        self.vary(flows, sequential=True)
        return self.run("whole", flows)


def by_flows(trials: Trials, rounds: int) -> None:
    rows = []
    for flows in FLOWS:
        trials.warm(flows, 1)
        assert trials.count() == flows
        found = paired(rounds, {part: lambda part=part: trials.run(part) for part in ("nothing", "whole")})  # type: ignore[misc]
        rows.append(
            (
                f"{flows:,}",
                *map(spread, found.values()),
                spread(differences(found["whole"], found["nothing"])),
            )
        )
    print("One port; a packet of a flow that is there, picked at random. ns per packet: median (range).\n")
    table(("flows", "empty program", "metered", "above empty"), rows)
    fresh = [trials.first_packets(10_000) for _ in range(rounds)]
    print(f"First packet of a flow (10,000 flows into an empty map): {spread(fresh)} ns.\n")


def by_part(trials: Trials, rounds: int, flows: int = 10_000) -> None:
    trials.warm(flows, 1)
    names = ["nothing", *(name for name, _ in PARTS)]
    found = paired(rounds, {name: lambda name=name: trials.run(name) for name in names})  # type: ignore[misc]
    rows = [
        (told, spread(differences(found[name], found[before])))
        for (name, told), before in zip(PARTS, names, strict=False)
    ]
    print(f"{flows:,} flows, one port: what each part adds to those before it. ns per packet.\n")
    table(("part", "ns"), rows)


def by_labels(trials: Trials, rounds: int) -> None:
    rows = []
    for labels in LABELS:
        trials.warm(10_000, labels)
        found = paired(rounds, {part: lambda part=part: trials.run(part) for part in ("nothing", "whole")})  # type: ignore[misc]
        rows.append((f"{labels:,}", spread(differences(found["whole"], found["nothing"]))))
    print("10,000 flows, spread over so many ports with a label each. ns per packet above empty.\n")
    table(("labels", "above empty"), rows)


def _cgroup(meter: Meter, path: Path, packets: int) -> float:
    program = meter.program("cgroup_egress")
    before = stats.run_time(program)
    subprocess.run([sys.executable, "-c", _SENDER, str(path), str(packets)], check=True)
    after = stats.run_time(program)
    return (after.nanoseconds - before.nanoseconds) / (after.runs - before.runs)


def by_depth(rounds: int, packets: int) -> None:
    root = cgroup_mount() / f"bench-{secrets.token_hex(4)}"
    paths = {"depth 1": root, "depth 5": root / "a/b/c/d"}
    paths["depth 5"].mkdir(parents=True)
    with tempfile.TemporaryDirectory() as directory:
        pins = Path(directory) / "bpf"
        try:
            with Meter(MeterConfig(cgroup_root=root), pins) as meter:
                switch = stats.enable()
                found = paired(
                    rounds,
                    {name: lambda path=path: _cgroup(meter, path, packets) for name, path in paths.items()},  # type: ignore[misc]
                )
                stats.disable(switch)
        finally:
            unmount_bpffs(pins)
            for path in (paths["depth 5"], *paths["depth 5"].parents):
                if path.is_relative_to(root):
                    path.rmdir()
    print("`cgroup_egress`, real datagrams over lo, two clock readings a packet included. ns per packet.\n")
    table(("cgroup", "ns"), [(name, spread(figures)) for name, figures in found.items()])


def main(quick: bool) -> None:
    rounds, repeat = (3, 20_000) if quick else (21, 500_000)
    with machine.section("What metering a packet costs"):
        trials = Trials(repeat)
        empty = [trials.run("empty") for _ in range(rounds)]
        print(
            f"BPF_PROG_TEST_RUN, {repeat:,} runs a round, {rounds} rounds. "
            f"The kernel's own loop: {spread(empty)} ns.\n"
        )
        by_flows(trials, rounds)
        by_part(trials, rounds)
        by_labels(trials, rounds)
        by_depth(rounds, 2_000 if quick else 40_000)


if __name__ == "__main__":
    main("--quick" in sys.argv)
