"""Copying a port's packets to a file elsewhere: what it costs, what it loses, what the workload feels.

The same traffic for each tool: small and full frames at a rate that all can follow, then as fast as they go,
then bulk TCP in super-packets. eastwest copies over TCP to its collector, which writes the file; tcpdump
writes to TCP as well (`tcpdump -w - | nc`), dumpcap and netsniff-ng write a file at once. All have 32 MiB of
buffer. CPU time is the whole machine's, less what it spends idle, so what is done in the kernel counts.
"""

import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine
from bench.figures import paired, ratios, spread, sure, table
from bench.place import ADDRESS_B, SINK, Generator, Place, place
from bench.site import Site, site
from eastwest.kernel.netns import inside

FLOWS = 1_000
RATE = 100_000
RATES = (200_000, 250_000, 300_000, 350_000, 400_000, 500_000)
BUFFER = 32 << 20
FRAMES = {64: 22, 1514: 1472}
"""Length of a frame without its checksum → bytes of UDP payload."""

PROGRAMS = ("tcpdump", "dumpcap", "netsniff-ng", "nc", "capinfos")
_SETTLE_SECONDS = 2.0
_CHUNK = 1 << 18
_HIGHEST_SECONDS = 1.5
"""A virtual machine begins to take warm memory back after two."""
_AROUND = 128
"""Bytes in a file around a packet, at most."""


@dataclass
class Copier:
    """A tool at work. `files`: what it has written, to be read once it has ended."""

    pids: list[int]
    files: Callable[[], Sequence[Path]]


@dataclass
class Run:
    """One tool's round with one kind of frame, shares of what the workload sent."""

    copied: float = 0.0
    busy: float = 0.0
    """CPU seconds of the machine less idle, per million packets, at `rate`."""
    user: float = 0.0
    """Of that the tool's processes in user space."""
    rate: float = 0.0
    """Packets a second, about RATE."""
    fastest: float = 0.0
    """Packets a second that left the workload at full speed."""
    copied_fastest: float = 0.0


@dataclass
class Bulk:
    """One tool's round of bulk TCP. `busy`: CPU seconds of the machine less idle, per GB."""

    rate: float = 0.0
    busy: float = 0.0
    runs: list[float] = field(default_factory=list)


@contextmanager
def _running(
    here: Place, directory: Path, *command: str, **streams: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the host's namespace, ended as a person does."""
    with (directory / f"{command[0]}.err").open("w") as errors:
        process = subprocess.Popen(
            ["nsenter", f"--net={here.netns}", *command],
            stderr=errors,
            **{"stdout": subprocess.DEVNULL, **streams},  # type: ignore[call-overload]
        )
        try:
            yield process
        finally:
            process.send_signal(2)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def nothing(here: Place, directory: Path) -> Iterator[Copier]:
    yield Copier([], list)


@contextmanager
def tcpdump(here: Place, directory: Path) -> Iterator[Copier]:
    with ExitStack() as stack, inside(here.netns), socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
        free.close()
        file = directory / "tcpdump.pcap"
        out = stack.enter_context(file.open("wb"))
        end = stack.enter_context(_running(here, directory, "nc", "-l", "127.0.0.1", port, stdout=out))
        time.sleep(0.5)
        pipe = subprocess.PIPE
        nc = stack.enter_context(_running(here, directory, "nc", "-N", "127.0.0.1", port, stdin=pipe))
        dump = stack.enter_context(
            _running(
                here,
                directory,
                *("tcpdump", "-i", "pa", "-n", "-B", str(BUFFER >> 10), "-s", "0", "-w", "-"),
                stdout=nc.stdin,
            )
        )
        assert nc.stdin
        nc.stdin.close()  # it ends with tcpdump
        time.sleep(2)
        yield Copier([end.pid, nc.pid, dump.pid], lambda: [file])
        dump.send_signal(2)
        for process in (dump, nc, end):
            process.wait(30)


def _to_file(*command: str, name: str) -> Callable[[Place, Path], AbstractContextManager[Copier]]:
    @contextmanager
    def tool(here: Place, directory: Path) -> Iterator[Copier]:
        file = directory / name
        with _running(here, directory, *command, str(file)) as process:
            time.sleep(2)
            yield Copier([process.pid], lambda: [file])

    return tool


dumpcap = _to_file("dumpcap", "-q", "-i", "pa", "-B", str(BUFFER >> 20), "-w", name="dumpcap.pcapng")
netsniff = _to_file(
    *("netsniff-ng", "--silent", "--in", "pa", "--ring-size", f"{BUFFER >> 20}MiB", "--out"),
    name="netsniff.pcap",
)


@contextmanager
def metering(here: Place, directory: Path) -> Iterator[Copier]:
    """eastwest without a tap: what all its roles cost before any packet is copied."""
    with site(here.netns, here.host) as where, where.up():
        yield Copier(list(where.roles().values()), list)


@contextmanager
def eastwest(here: Place, directory: Path, *more: str) -> Iterator[Copier]:
    with site(here.netns, here.host) as where, where.up():
        where.run("tap", "add", "bench", f"name={here.a}", *more)
        where.until(lambda: connected(where) == 1, "the tap is connected")
        yield Copier(list(where.roles().values()), lambda: sorted(directory.glob("*.pcapng")))
        where.run("tap", "rm", "bench")
        for file in (where.state / "captures").rglob("*.pcapng"):
            shutil.move(file, directory)


def segmented(here: Place, directory: Path) -> AbstractContextManager[Copier]:
    """Super-packets cut as on the wire, for the copies."""
    return eastwest(here, directory, "--segment")


def connected(where: Site) -> int:
    """Taps that are."""
    return sum(any(host["connected"] for host in tap["hosts"]) for tap in where.get("taps"))


TOOLS: dict[str, Callable[[Place, Path], AbstractContextManager[Copier]]] = {
    "no tool": nothing,
    "eastwest up, no tap": metering,
    "eastwest tap → TCP → collector → file": eastwest,
    "tcpdump -w - → TCP → file": tcpdump,
    "dumpcap → file": dumpcap,
    "netsniff-ng → file": netsniff,
}
COPIERS = [name for name in TOOLS if "→" in name]
BULK = TOOLS | {"eastwest tap --segment → TCP → collector → file": segmented}


def _packets(files: Sequence[Path]) -> int:
    """By an independent reader."""
    found = 0
    for file in files:
        told = subprocess.run(
            ["capinfos", "-M", "-c", str(file)], capture_output=True, text=True, check=False
        )
        found += sum(map(int, re.findall(r"Number of packets:\s+(\d+)", told.stdout)))
    return found


def measure(here: Place, generator: Generator, name: str, packets: int) -> Run:
    run, idle = Run(), machine.idle(5)
    with tempfile.TemporaryDirectory() as text:
        counted = []
        for fast in (False, True):
            directory = Path(text) / str(fast)
            directory.mkdir()
            with TOOLS[name](here, directory) as copier:
                machine.warm(packets * (generator.length + _AROUND))
                users = sum(map(machine.user, copier.pids))
                before, start = here.received(here.host, "sink1"), time.perf_counter()
                with machine.measured() as usage:
                    generator.send(packets) if fast else generator.pace(packets, RATE)
                    spent = time.perf_counter() - start
                    time.sleep(_SETTLE_SECONDS)  # what a tool does a little later is its work as well
                sent = here.received(here.host, "sink1") - before
                if fast:
                    run.fastest = sent / spent
                else:
                    run.rate = sent / spent
                    run.busy = (usage.cpu - idle * usage.seconds) / sent * 1e6
                    run.user = (sum(map(machine.user, copier.pids)) - users) / sent * 1e6
            counted.append(_packets(copier.files()) / sent)
        run.copied, run.copied_fastest = counted
    return run


def frames(here: Place, rounds: int, packets: int) -> None:
    for length, payload in FRAMES.items():
        generator = Generator(here, SINK, FLOWS, payload=payload)
        runs: dict[str, list[Run]] = {name: [] for name in TOOLS}

        def one(name: str, generator: Generator = generator, runs: dict[str, list[Run]] = runs) -> float:
            runs[name].append(measure(here, generator, name, packets))
            return runs[name][-1].busy

        paired(rounds, {name: lambda name=name, one=one: one(name) for name in TOOLS})  # type: ignore[misc]
        generator.close()
        slowest = min(run.rate for found in runs.values() for run in found)
        print(
            f"Frames of {length:,} bytes, {rounds} rounds of {packets:,} packets at {slowest:,.0f} or more\n"
            "a second, then as many as fast as it goes. CPU: the whole machine's, less idle,\n"
            "per million packets.\n"
        )
        _show(runs)


def _show(runs: dict[str, list[Run]]) -> None:
    bare = [run.busy for run in runs["no tool"]]
    metered = [run.busy for run in runs["eastwest up, no tap"]]
    rows = []
    for name, found in runs.items():
        busy = [run.busy for run in found]
        base = metered if "tap →" in name else bare
        above = [a - b for a, b in zip(busy, base, strict=True)]
        copied = name in COPIERS
        rows.append(
            (
                name,
                f"{100 * statistics.median(run.copied for run in found):.2f} %" if copied else "-",
                spread(busy, 2),
                spread(above, 2) if copied else "",
                spread([run.user for run in found], 2) if name != "no tool" else "",
                spread([run.fastest / 1000 for run in found], 0),
                f"{100 * statistics.median(run.copied_fastest for run in found):.2f} %" if copied else "-",
            )
        )
    head = (
        "tool",
        "copied",
        "CPU s / M packets",
        "of that for the copies",
        "user space of its processes",
        "full speed, k packets/s sent",
        "of them copied",
    )
    table(head, rows)


class Drain:
    """Workload b takes what comes over TCP, and reads it to its end."""

    def __init__(self, here: Place) -> None:
        with inside(here.path(here.b)):
            self._listener = socket.create_server((ADDRESS_B, 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        buffer = bytearray(_CHUNK)
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                while connection.recv_into(buffer):
                    pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _bulk(here: Place, drain: Drain, name: str, size: int) -> Bulk:
    idle, chunk = machine.idle(5), bytes(_CHUNK)
    with tempfile.TemporaryDirectory() as text, BULK[name](here, Path(text)):
        with inside(here.path(here.a)):
            connection = socket.create_connection((ADDRESS_B, drain.port))
        machine.warm(size)
        start = time.perf_counter()
        with machine.measured() as usage, connection:
            for _ in range(size // _CHUNK):
                connection.sendall(chunk)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
            spent = time.perf_counter() - start
            time.sleep(_SETTLE_SECONDS)
    return Bulk(size / spent, (usage.cpu - idle * usage.seconds) / size * 1e9)


def bulk(here: Place, rounds: int, size: int) -> None:
    """TCP from workload to workload as fast as it goes, in super-packets."""
    drain = Drain(here)
    runs: dict[str, list[Bulk]] = {name: [] for name in BULK}

    def one(name: str) -> float:
        runs[name].append(_bulk(here, drain, name, size))
        return runs[name][-1].rate

    paired(rounds, {name: lambda name=name: one(name) for name in BULK})  # type: ignore[misc]
    drain.close()
    bare = [run.rate for run in runs["no tool"]]
    print(f"Bulk TCP from workload to workload, super-packets; {rounds} rounds of {size / 1e9:.1f} GB.\n")
    rows = [
        (
            name,
            spread([run.rate / 1e9 for run in found], 2),
            sure(ratios([run.rate for run in found], bare)) if name != "no tool" else "",
            spread([run.busy for run in found], 2),
        )
        for name, found in runs.items()
    ]
    table(("tool", "GB/s", "of the bare rate", "CPU s / GB"), rows)


def highest(here: Place, rounds: int, seconds: float) -> None:
    """Up to what rate of full frames a tool copies all, tried in steps."""
    with closing(Generator(here, SINK, FLOWS, payload=FRAMES[1514])) as generator:
        variants = {name: lambda name=name: _highest(here, generator, name, seconds) for name in COPIERS}
        found = paired(rounds, variants)
    steps = ", ".join(f"{rate // 1000}" for rate in RATES)
    print(f"Full frames for {seconds:g} s at {steps} k a second, {rounds} rounds; 0: not even the first.\n")
    table(
        ("tool", "the highest of which all were copied, k packets/s"),
        [(name, spread([rate / 1000 for rate in rates], 0)) for name, rates in found.items()],
    )


def _highest(here: Place, generator: Generator, name: str, seconds: float) -> float:
    highest = 0.0
    for rate in RATES:
        packets = round(rate * seconds)
        with tempfile.TemporaryDirectory() as text:
            with TOOLS[name](here, Path(text)) as copier:
                machine.warm(packets * (generator.length + _AROUND))
                before = here.received(here.host, "sink1")
                reached = generator.pace(packets, rate)
                time.sleep(_SETTLE_SECONDS)
                sent = here.received(here.host, "sink1") - before
            if _packets(copier.files()) < sent:
                return highest
        highest = reached
    return highest


def main(quick: bool) -> None:
    if lacking := [program for program in PROGRAMS if not shutil.which(program)]:
        raise SystemExit(f"missing: {', '.join(lacking)}; run make bench, which installs them")
    with machine.section("Copying to a file"), place() as here:
        frames(here, 1 if quick else 3, 50_000 if quick else 1_000_000)
        bulk(here, 1 if quick else 5, 200_000_000 if quick else 4_000_000_000)
        highest(here, 1 if quick else 3, 0.2 if quick else _HIGHEST_SECONDS)


if __name__ == "__main__":
    main("--quick" in sys.argv)
