"""What metering takes from the traffic itself: packets delivered a second, and the latency of TCP.

Metering off and on, in pairs of rounds in random order. Off: no program is attached. On: the product's
programs at the workloads' ports, as the probe attaches them.
"""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench import machine
from bench.figures import interval, paired, ratios, spread, sure, table
from bench.place import ADDRESS_B, SINK, B, Generator, Place, place
from eastwest.kernel.attach import unmount_bpffs
from eastwest.kernel.netns import inside
from eastwest.meter.check import cgroup_mount
from eastwest.meter.config import MeterConfig
from eastwest.meter.meter import Meter, Source

FLOWS = 10_000
NO_OVERHEAD = 0.98
_QUESTION = 64
_SERVICE = 7000


class Switch:
    """Metering of ports, on and off."""

    def __init__(self, here: Place, meter: Meter, ports: tuple[str, ...]) -> None:
        self._meter = meter
        self._ports = [here.ifindex(here.host, port) for port in ports]
        for account, ifindex in enumerate(self._ports, 1):
            meter.set_port(ifindex, Source(account, account))

    def on(self) -> None:
        for account, ifindex in enumerate(self._ports, 1):
            self._meter.set_port(ifindex, Source(account, account))
            self._meter.attach_port(ifindex)

    def off(self) -> None:
        for ifindex in self._ports:
            self._meter.detach_port(ifindex)


@contextmanager
def metering(here: Place) -> Iterator[Meter]:
    """A meter whose scope is the place; no process is in its cgroup."""
    cgroup = cgroup_mount() / here.host
    cgroup.mkdir()
    with tempfile.TemporaryDirectory() as directory:
        pins = Path(directory) / "bpf"
        try:
            with Meter(MeterConfig(netns=here.netns, cgroup_root=cgroup), pins) as meter:
                yield meter
        finally:
            unmount_bpffs(pins)
            cgroup.rmdir()


def _with(switch: Switch, on: bool, measure: Callable[[], float]) -> Callable[[], float]:
    def run() -> float:
        (switch.on if on else switch.off)()
        return measure()

    return run


def verdict(low: float) -> str:
    return "no overhead" if low >= NO_OVERHEAD else "no claim"


def delivered(here: Place, meter: Meter, rounds: int, packets: int) -> None:
    """Packets a second at the receiver."""
    rows = []
    for told, to, name, device, ports in (
        ("one hook: workload to host", SINK, here.host, "sink1", ("pa",)),
        ("two hooks: workload to workload", B, here.b, "eth0", ("pa", "pb")),
    ):
        generator = Generator(here, to, FLOWS)

        def rate(generator: Generator = generator, name: str = name, device: str = device) -> float:
            before, start = here.received(name, device), time.perf_counter()
            generator.send(packets)
            spent = time.perf_counter() - start
            return (here.received(name, device) - before) / spent

        switch = Switch(here, meter, ports)
        rate()
        found = paired(rounds, {"off": _with(switch, False, rate), "on": _with(switch, True, rate)})
        switch.off()
        generator.close()
        ratio = ratios(found["on"], found["off"])
        rows.append(
            (
                told,
                *(spread(figures, 0) for figures in found.values()),
                sure(ratio),
                verdict(interval(ratio)[0]),
            )
        )
    print(
        f"Packets delivered a second, {FLOWS:,} flows, {packets:,} frames of 114 bytes a round,\n"
        f"{rounds} pairs. Sender, switch and receiver share one CPU.\n"
    )
    table(("path", "off", "on", "on/off", f"claim (lower bound ≥ {NO_OVERHEAD})"), rows)


class Service:
    """Answers each question over one TCP connection from workload a to workload b; both on CPU 0."""

    def __init__(self, here: Place) -> None:
        with inside(here.path(here.b)):
            listener = socket.create_server((ADDRESS_B, _SERVICE))
        self._child = os.fork()
        if not self._child:
            _answer(listener)
        listener.close()
        with inside(here.path(here.a)):
            self._socket = socket.create_connection((ADDRESS_B, _SERVICE))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        os.sched_setaffinity(0, {0})

    def ask(self, count: int) -> np.ndarray:
        """ns of each answer."""
        times, question = np.empty(count), bytes(_QUESTION)
        for i in range(count):
            start = time.perf_counter_ns()
            self._socket.sendall(question)
            self._socket.recv(_QUESTION)
            times[i] = time.perf_counter_ns() - start
        return times

    def close(self) -> None:
        self._socket.close()
        os.waitpid(self._child, 0)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _answer(listener: socket.socket) -> None:
    os.sched_setaffinity(0, {0})
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while question := connection.recv(_QUESTION):
        connection.sendall(question)
    os._exit(0)


def latency(here: Place, meter: Meter, rounds: int, questions: int) -> None:
    """Answers over TCP: eight hooks see a question and its answer at most, four of them data."""
    switch = Switch(here, meter, ("pa", "pb"))
    service = Service(here)
    p99: dict[str, list[float]] = {"off": [], "on": []}

    def median(which: str) -> float:
        times = service.ask(questions)
        p99[which].append(float(np.percentile(times, 99)) / 1000)
        return float(np.median(times)) / 1000

    median("off")
    p99["off"].clear()
    found = paired(
        rounds,
        {"off": _with(switch, False, lambda: median("off")), "on": _with(switch, True, lambda: median("on"))},
    )
    switch.off()
    service.close()
    print(
        f"TCP, {_QUESTION} bytes there and back over two metered ports, {questions:,} questions a round,\n"
        f"{rounds} pairs; client and server on one CPU. µs.\n"
    )
    rows = [
        (
            name,
            *(spread(figures[which]) for which in ("off", "on")),
            sure(ratios(figures["on"], figures["off"])),
        )
        for name, figures in (("p50", found), ("p99", p99))
    ]
    table(("latency", "off", "on", "on/off"), rows)


def main(quick: bool) -> None:
    with machine.section("What metering takes from the traffic"), place() as here, metering(here) as meter:
        delivered(here, meter, 3 if quick else 40, 20_000 if quick else 300_000)
        latency(here, meter, 3 if quick else 40, 500 if quick else 20_000)


if __name__ == "__main__":
    main("--quick" in sys.argv)
