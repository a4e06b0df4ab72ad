"""Whether eastwest levels off under lasting churn: memory, descriptors, maps, files; and stays exact.

Namespaces with ports and cgroups with processes come, send a known number of packets, and go, under names
that come again, while another workload makes new flows all the time. One tap copies all of them to files,
others come and go. Fails where something grows on in the
second half of the run (`BOUNDS`), or where a total is not the senders'.

    SOAK_MINUTES=30 make soak
"""

import json
import os
import random
import socket
import sqlite3
import sys
import time
import urllib.error
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.figures import table
from bench.place import ADDRESS_B, SINK, Generator, Place, ip, place
from bench.site import Site, site
from eastwest.kernel.netns import inside
from eastwest.meter import pins
from eastwest.meter.check import cgroup_mount

NAMES = 60
"""Workloads of each kind that come again and again."""
ALIVE = 8
FLOWS_PER_SECOND = 500
_ROUND = 1.0
_TAP_ROUNDS = 10
"""A tap that comes stays for so many rounds."""
_SAMPLES = 60
_SHORTEST = 10
"""Minutes; of a shorter run nothing can be said."""

BOUNDS = {
    "files MB": (0.10, 8.0),
    "MB": (0.10, 2.0),
    "descriptors": (0.02, 2.0),
    "threads": (0.02, 6.0),
    "BPF": (0.0, 2.0),
    "pins": (0.10, 6.0),
}
"""By kind of figure: by how much of its mean it may grow in an hour, and a margin beside that."""


class Churn:
    """Workloads that come and go; `sent`: name → packets."""

    def __init__(self, here: Place, where: Site, cgroup: Path) -> None:
        self._here = here
        self._where = where
        self._cgroup = cgroup
        self._alive: list[str] = []
        self._chance = random.Random(1)
        self.sent: Counter[str] = Counter()
        self.rounds = 0
        self._tap = ""
        where.run("tap", "add", "all", f"name=*-{here.host.partition('-')[2]}*", "--for", "forever")

    def step(self) -> None:
        if self.rounds % _TAP_ROUNDS == 0:
            self._change_tap()
        name = f"{self._here.host}-n{self._chance.randrange(NAMES)}"
        if name not in self._alive:
            self._come(name)
        if len(self._alive) > ALIVE:
            self._go(self._alive[0])
        self._process(f"{self._here.host}-c{self._chance.randrange(NAMES)}", self._chance.randrange(1, 50))
        self.rounds += 1

    def _change_tap(self) -> None:
        if self._tap:
            self._where.run("tap", "rm", self._tap)
        self._tap = f"churn-{self.rounds}"
        few = f"name={self._here.host}-n{self._chance.randrange(1, 6)}*"
        filter_ = f"udp dst portrange 1024-{self._chance.randrange(1024, 60000)}"
        self._where.run("tap", "add", self._tap, few, "-f", filter_, "--no-store")

    def _come(self, name: str) -> None:
        self._alive.append(name)
        port = "p" + name.rpartition("-")[2]
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        for which in ("default", "all"):
            with inside(self._here.path(name)):
                Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
        ip("-n", self._here.host, "link", "add", port, "type", "veth", "peer", "eth0", "netns", name)
        ip("-n", self._here.host, "link", "set", port, "master", "br0", "up")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "address", "add", "10.1.1.1/16", "dev", "eth0")
        ip(
            "-n",
            name,
            "neighbour",
            "add",
            ADDRESS_B,
            "lladdr",
            SINK.hex(":"),
            "dev",
            "eth0",
            "nud",
            "permanent",
        )
        number = self._here.ifindex(self._here.host, port)
        hooks = [pins.directory(self._where.state) / f"port-{number}-{way}" for way in ("ingress", "egress")]
        self._where.until(lambda: all(hook.exists() for hook in hooks), f"{port} is metered", pause=0.01)
        count = self._chance.randrange(1, 100)
        with inside(self._here.path(name)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for _ in range(count):
                s.sendto(bytes(72), (ADDRESS_B, self._chance.randrange(1024, 60000)))
        self.sent[name] += count

    def _go(self, name: str) -> None:
        self._alive.remove(name)
        ip("netns", "del", name)

    def _process(self, name: str, count: int) -> None:
        """A process in a cgroup of its own on the host's network; both end."""
        cgroup = self._cgroup / f"{name}.scope"
        cgroup.mkdir()
        child = os.fork()
        if not child:
            self._child(cgroup, count)
        _, status = os.waitpid(child, 0)
        assert status == 0
        self.sent[name] += count
        self._where.until(lambda: self._removed(cgroup), f"{cgroup} is empty", pause=0.01)

    def _child(self, cgroup: Path, count: int) -> None:
        code = 1
        try:
            (cgroup / "cgroup.procs").write_text("0")
            with inside(self._here.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.bind(("127.0.0.1", 0))
                for _ in range(count):
                    s.sendto(bytes(72), s.getsockname())
                    s.recv(100)
            code = 0
        finally:
            os._exit(code)

    def _removed(self, cgroup: Path) -> bool:
        with suppress(OSError):
            cgroup.rmdir()
        return not cgroup.exists()

    def end(self) -> None:
        for name in list(self._alive):
            self._go(name)


def _anonymous(pid: int) -> int:
    """BPF maps, programs and links that a process holds."""
    found = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found += "bpf" in str(descriptor.readlink())
    return found


def _megabytes(directory: Path) -> float:
    """On disk; files come and go meanwhile."""
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += (Path(where) / name).stat().st_blocks * 512
    return total / 1e6


def sample(where: Site) -> dict[str, float]:
    """Figures by name; the name ends with their kind, a key of BOUNDS, where they have to level off."""
    found: dict[str, float] = {}
    for name, pid in where.roles().items():
        if name != "up":
            found[f"{name} MB"] = machine.resident(pid) / 1e6
            found[f"{name} descriptors"] = machine.descriptors(pid)
            found[f"{name} threads"] = machine.threads(pid)
        if name == "probe":
            found["probe BPF"] = _anonymous(pid)
    found["pins"] = len(list(pins.directory(where.state).iterdir()))
    found["bus files MB"] = _megabytes(where.state / "nats")
    found["journal files MB"] = sum(file.stat().st_size for file in where.state.glob("probe.db*")) / 1e6
    found["store MB of rows"] = _megabytes(where.state / "store")
    journal = sqlite3.connect(f"file:{where.state / 'probe.db'}?mode=ro", uri=True)
    found["captures MB of packets"] = _megabytes(where.state / "captures")
    found["outbox messages"] = journal.execute("SELECT count(*) FROM outbox").fetchone()[0]
    journal.close()
    return found


def growth(times: list[float], values: list[float]) -> float:
    """How much higher the level is in the last quarter than in the one before, for an hour.

    The level is the ninth tenth: what a tap that comes and goes takes is in both quarters, and a step before
    the last quarter is none within it. A trend through all of it would be by chance of when taps came.
    """
    half, last = len(values) // 2, 3 * len(values) // 4
    before, now = np.percentile(values[half:last], 90), np.percentile(values[last:], 90)
    return float((now - before) / (times[last] - times[half])) * 3600


def judge(times: list[float], samples: list[dict[str, float]], minutes: float) -> list[str]:
    """Print what became of each figure; those that do not level off."""
    rows, bad = [], []
    for name in samples[0]:
        values = [one.get(name, float("nan")) for one in samples]
        grows = growth(times, values)
        kind = next((kind for kind in BOUNDS if name.endswith(kind)), None)
        allowed = ""
        if kind:
            share, margin = BOUNDS[kind]
            limit = share * float(np.mean(values)) + margin
            allowed = f"{limit:.1f}"
            if not grows <= limit:
                bad.append(f"{name}: {grows:+.1f} an hour")
        at = [values[round(i * (len(values) - 1) / 4)] for i in range(5)]
        rows.append((name, *(f"{value:,.1f}" for value in at), f"{grows:+.1f}", allowed))
    head = (
        "figure",
        "start",
        "¼",
        "½",
        "¾",
        "end",
        "last quarter above the third, an hour",
        "may be",
    )
    table(head, rows)
    return bad if minutes >= _SHORTEST else []


def differences(where: Site, sent: Counter[str]) -> list[str]:
    """Between the senders' record and the labels, and in the ledger."""
    try:
        labels: list[dict[str, Any]] = where.get("labels?all=true")
        ledger: list[dict[str, Any]] = where.get("ledger")
        taps: list[dict[str, Any]] = where.get("ledger/taps")
    except (urllib.error.URLError, json.JSONDecodeError) as error:
        return [str(error)]
    counted: Counter[str] = Counter()
    for label in labels:
        counted[label["name"]] += label["egress_packets"]
    wrong = [f"{name}: {counted[name]} of {count}" for name, count in sent.items() if counted[name] != count]
    wrong += [f"label {entry['label']} is not balanced" for entry in ledger if not entry["balanced"]]
    wrong += [f"tap {tap['tap']}: {tap}" for tap in taps if not tap["balanced"] or tap["lost"]]
    return wrong + [f"label {entry['label']} pending" for entry in ledger if entry["pending_packets"]]


def run(here: Place, where: Site, minutes: float) -> list[str]:
    churn = Churn(here, where, cgroup_mount() / f"{here.host}-site")
    generator = Generator(here, SINK, 1_000_000, sequential=True)
    times: list[float] = []
    samples: list[dict[str, float]] = []
    start = time.monotonic()
    pause = minutes * 60 / _SAMPLES
    try:
        while (now := time.monotonic() - start) < minutes * 60:
            if now >= len(samples) * pause:
                times.append(now)
                samples.append(sample(where))
            generator.send(FLOWS_PER_SECOND)
            churn.step()
            time.sleep(max(0.0, start + now + _ROUND - time.monotonic()))
    finally:
        # The generator may lose frames on their way into the port; what the port received is what was sent.
        churn.sent[here.a] = here.received(here.host, "pa")
        generator.close()
        churn.end()
    print(
        f"{minutes:g} minutes, {churn.rounds:,} rounds: each a namespace and a process that come and go "
        f"({NAMES} names of each), {FLOWS_PER_SECOND} new flows; {sum(churn.sent.values()):,} packets.\n"
    )
    bad = judge(times, samples, minutes)
    try:
        where.until(lambda: not differences(where, churn.sent), "all totals are the senders'", 60, pause=1)
        (copied,) = (tap["delivered_packets"] for tap in where.get("ledger/taps") if tap["tap"] == "all")
        print(
            f"All totals are the senders': {len(churn.sent)} workloads. The tap on all of them delivered "
            f"{copied:,} packets\nand, as the {churn.rounds // _TAP_ROUNDS} that came and went, lost none.\n"
        )
    except TimeoutError:
        bad += differences(where, churn.sent)[:10]
    return bad


def main(quick: bool) -> None:
    minutes = 0.5 if quick else float(os.environ.get("SOAK_MINUTES", "30"))
    with (
        machine.section("A long run"),
        place() as here,
        site(here.netns, here.host) as where,
        where.up(),
    ):
        bad = run(here, where, minutes)
    for one in bad:
        print(f"FAILED: {one}")
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main("--quick" in sys.argv)
