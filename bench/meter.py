"""What metering a packet costs: by kind of hook, by depth of the cgroup, beside the clock that measures it.

Ports: BPF_PROG_TEST_RUN of the program on one frame, the mean of many runs. Cgroups: real UDP over lo from a
process in a cgroup at depth 1 and at depth 5, in alternation, by the kernel's run-time statistics; these
include the two clock readings of the statistics themselves. Medians and ranges over rounds; run it alone:

    sudo .venv/bin/python -m bench.meter
"""

import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.kernel.frames import ethernet, ipv4, tcp

from eastwest.kernel import stats, trial
from eastwest.kernel.attach import unmount_bpffs
from eastwest.meter.check import cgroup_mount
from eastwest.meter.config import MeterConfig
from eastwest.meter.meter import Meter, Source

ROUNDS = 15
PACKETS = 40_000

_SENDER = """
import socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 0))
for _ in range(int(sys.argv[2])):
    s.sendto(bytes(72), s.getsockname())
    s.recv(100)
"""


def report(name: str, measure: Callable[[], float]) -> None:
    figures = [measure() for _ in range(ROUNDS)]
    print(f"{name:40} {statistics.median(figures):7.1f} ns  ({min(figures):.1f} to {max(figures):.1f})")


def port(meter: Meter) -> None:
    account = meter.open_account()
    meter.set_port(1, Source(1, account))
    frame = ethernet(ipv4(tcp(bytes(1000)), 6), 0x0800)
    for name in ("port_ingress", "port_egress"):
        program = meter.program(name)
        report(name, lambda program=program: trial.run(program, frame, 500_000, ifindex=1).nanoseconds)  # type: ignore[misc]


def cgroup(meter: Meter, path: Path) -> float:
    program = meter.program("cgroup_egress")
    before = stats.run_time(program)
    subprocess.run([sys.executable, "-c", _SENDER, str(path), str(PACKETS)], check=True)
    after = stats.run_time(program)
    return (after.nanoseconds - before.nanoseconds) / (after.runs - before.runs)


def main() -> None:
    root = cgroup_mount() / f"bench-{secrets.token_hex(4)}"
    shallow, deep = root, root / "a/b/c/d"
    deep.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as directory:
        pins = Path(directory) / "bpf"
        try:
            with Meter(MeterConfig(cgroup_root=root), pins) as meter:
                port(meter)
                switch = stats.enable()
                depths: dict[str, list[float]] = {
                    "cgroup_egress at depth 1": [],
                    "cgroup_egress at depth 5": [],
                }
                for _ in range(ROUNDS):
                    for name, path in zip(depths, (shallow, deep), strict=True):
                        depths[name].append(cgroup(meter, path))
                stats.disable(switch)
                for name, figures in depths.items():
                    turn = iter(figures)
                    report(name, lambda turn=turn: next(turn))  # type: ignore[misc]
        finally:
            unmount_bpffs(pins)
            for path in (deep, *deep.parents):
                if path.is_relative_to(root):
                    path.rmdir()


if __name__ == "__main__":
    main()
