"""eastwest beside what else meters or captures a port: packets delivered, and what the machine spends on it.

The same traffic for each, at a rate that all can follow, then as fast as it goes. Work that a tool has the
kernel do counts like its own: CPU time is that of the whole machine, less what it spends idle. Each tool
meters flows (tcpdump: copies every packet to nowhere); eastwest does so as a probe alone and with all roles.
"""

import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.figures import paired, spread, table
from bench.place import SINK, Generator, Place, place
from bench.site import Site, site
from eastwest.kernel.netns import inside

FLOWS = 10_000
RATE = 100_000
_EXPORT_PORT = 9995
_NFSTREAM = Path(sys.prefix) / "bench/bin/python"

_NFSTREAM_METER = """
import signal, sys
from nfstream import NFStreamer
if __name__ == '__main__':
    seen = 0
    for flow in NFStreamer(source=sys.argv[1], n_dissections=0, statistical_analysis=False, idle_timeout=2):
        seen += flow.bidirectional_packets
    print('seen', seen, flush=True)
"""

_PMACCTD = """
daemonize: false
pcap_interface: pa
aggregate: src_host, dst_host, src_port, dst_port, proto, tos
plugins: nfprobe
nfprobe_receiver: 127.0.0.1:{port}
plugin_buffer_size: 1024000
plugin_pipe_size: 102400000
pidfile: {directory}/pid
"""


@dataclass
class Run:
    """One tool's round. `busy`: CPU seconds of the whole machine less idle, per million packets delivered."""

    delivered: float = 0.0
    seen: int | None = None
    busy: float = 0.0
    rate: float = 0.0
    """Packets a second that were sent while `busy` was taken."""
    fastest: float = 0.0


Seen = Callable[[], int | None]


@contextmanager
def _process(
    here: Place, directory: Path, *command: str, end: int = signal.SIGINT
) -> Iterator[subprocess.Popen[str]]:
    inside_host = ["nsenter", f"--net={here.netns}", *command]
    with (directory / "out").open("w") as out:
        # A group of its own: nfstream has several processes, and a Ctrl-C asks each to end.
        process = subprocess.Popen(
            inside_host,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            start_new_session=True,
        )
        try:
            time.sleep(3)
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended: {(directory / 'out').read_text()[-500:]}")
            yield process
        finally:
            os.killpg(process.pid, end)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):  # of a group that has ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _said(directory: Path, pattern: str) -> int | None:
    """The number in what a tool said last of this pattern."""
    found = re.findall(pattern, (directory / "out").read_text())
    return int(found[-1]) if found else None


@contextmanager
def nothing(here: Place, directory: Path) -> Iterator[Seen]:
    yield lambda: None


@contextmanager
def tcpdump(here: Place, directory: Path) -> Iterator[Seen]:
    with _process(here, directory, "tcpdump", "-i", "pa", "-n", "-w", "/dev/null"):
        yield lambda: _said(directory, r"(\d+) packets? captured")


@contextmanager
def softflowd(here: Place, directory: Path) -> Iterator[Seen]:
    control = directory / "control"
    where = ("-p", str(directory / "pid"), "-c", str(control))
    seen: list[int] = []
    export = ("-n", f"127.0.0.1:{_EXPORT_PORT}", "-v", "9", "-m", "131072")
    with _process(here, directory, "softflowd", "-d", "-i", "pa", *export, *where):
        try:
            yield lambda: seen[0] if seen else None
        finally:
            asked = subprocess.run(
                ["softflowctl", "-c", str(control), "statistics"], capture_output=True, text=True, check=False
            )
            seen += map(int, re.findall(r"Packets processed: (\d+)", asked.stdout))


@contextmanager
def pmacctd(here: Place, directory: Path) -> Iterator[Seen]:
    config = directory / "pmacctd.conf"
    config.write_text(_PMACCTD.format(port=_EXPORT_PORT, directory=directory))
    with _process(here, directory, "pmacctd", "-f", str(config)) as process:
        try:
            yield lambda: _said(directory, r"received_packets=(\d+)")
        finally:
            process.send_signal(signal.SIGUSR1)
            time.sleep(1)


@contextmanager
def argus(here: Place, directory: Path) -> Iterator[Seen]:
    records = directory / "argus.out"

    def seen() -> int | None:
        asked = subprocess.run(
            ["racount", "-r", str(records)], capture_output=True, text=True, check=False
        ).stdout
        sums = re.search(r"sum\s+\d+\s+(\d+)", asked)
        return int(sums.group(1)) if sums else None

    with _process(here, directory, "argus", "-i", "pa", "-w", str(records), end=signal.SIGTERM):
        yield seen


@contextmanager
def nfstream(here: Place, directory: Path) -> Iterator[Seen]:
    script = directory / "meter.py"
    script.write_text(_NFSTREAM_METER)
    with _process(here, directory, str(_NFSTREAM), str(script), "pa"):
        try:
            yield lambda: _said(directory, r"seen (\d+)")
        finally:
            time.sleep(5)  # it reports flows that are idle


def _counted(where: Site) -> int:
    """Packets that the workloads sent, by their labels."""
    return sum(label["egress_packets"] for label in where.get("labels?all=true"))


@contextmanager
def probe(here: Place, directory: Path) -> Iterator[Seen]:
    with site(here.netns, here.host) as where, where.probe():
        yield lambda: None


@contextmanager
def everything(here: Place, directory: Path) -> Iterator[Seen]:
    seen: list[int] = []
    with site(here.netns, here.host) as where, where.up():
        try:
            yield lambda: seen[0] if seen else None
        finally:
            time.sleep(5)  # two cuts
            seen.append(_counted(where))


TOOLS: dict[str, Callable[[Place, Path], AbstractContextManager[Seen]]] = {
    "no tool": nothing,
    "eastwest probe": probe,
    "eastwest up (probe, bus, database)": everything,
    "tcpdump -w /dev/null": tcpdump,
    "softflowd": softflowd,
    "pmacctd (nfprobe)": pmacctd,
    "argus": argus,
    "nfstream (no dissection)": nfstream,
}
PROGRAMS = ("tcpdump", "softflowd", "softflowctl", "pmacctd", "argus", "racount")


def measure(here: Place, generator: Generator, name: str, packets: int) -> Run:
    run, idle = Run(), machine.idle(5)
    with tempfile.TemporaryDirectory() as text:
        with TOOLS[name](here, Path(text)) as seen:
            before = here.received(here.host, "sink1")
            with machine.measured() as usage:
                run.rate = generator.pace(packets, RATE)
                time.sleep(2)  # what a tool does a little later is its work as well
            delivered = here.received(here.host, "sink1") - before
            before, start = here.received(here.host, "sink1"), time.perf_counter()
            generator.send(packets)
            spent = time.perf_counter() - start
            run.fastest = (here.received(here.host, "sink1") - before) / spent
        run.seen = seen()
    run.delivered = delivered / packets
    run.busy = (usage.cpu - idle * usage.seconds) / delivered * 1e6
    return run


def compare(here: Place, rounds: int, packets: int) -> None:
    generator = Generator(here, SINK, FLOWS)
    runs: dict[str, list[Run]] = {name: [] for name in TOOLS}

    def one(name: str) -> float:
        runs[name].append(measure(here, generator, name, packets))
        return runs[name][-1].busy

    with inside(here.netns):
        collector = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # Never read: what is exported arrives, and what there is no room for is dropped.
    collector.bind(("127.0.0.1", _EXPORT_PORT))
    paired(rounds, {name: lambda name=name: one(name) for name in TOOLS})  # type: ignore[misc]
    generator.close()
    collector.close()
    bare = statistics.median(run.busy for run in runs["no tool"])
    slowest = min(run.rate for found in runs.values() for run in found)
    rows = []
    for name, found in runs.items():
        seen = [100 * run.seen / (2 * packets) for run in found if run.seen is not None]
        busy = [run.busy for run in found]
        rows.append(
            (
                name,
                f"{100 * statistics.median(run.delivered for run in found):.1f} %",
                f"{statistics.median(seen):.1f} %" if seen else "-",
                spread(busy, 2),
                f"{statistics.median(busy) - bare:.2f}" if name != "no tool" else "",
                spread([run.fastest / 1000 for run in found], 0),
            )
        )
    print(
        f"One port, {FLOWS:,} flows of UDP, frames of 114 bytes; {rounds} rounds of {packets:,}\n"
        f"packets at {slowest:,.0f} or more a second, then as many as fast as it goes.\n"
        "CPU: the whole machine's, less idle, per million packets delivered.\n"
    )
    head = (
        "tool",
        "delivered",
        "seen by the tool, both parts",
        "CPU s / M packets",
        "of that the tool's",
        "fastest, k packets/s delivered",
    )
    table(head, rows)


def main(quick: bool) -> None:
    lacking = [program for program in PROGRAMS if not shutil.which(program)]
    if lacking or not _NFSTREAM.exists():
        raise SystemExit(f"missing: {', '.join(lacking) or 'nfstream'}; run make bench, which installs them")
    with machine.section("Beside other tools"), place() as here:
        compare(here, 1 if quick else 3, 100_000 if quick else 1_000_000)


if __name__ == "__main__":
    main("--quick" in sys.argv)
