"""What a filter costs a packet that it does not take: the slope from 1 to 64 filters in one program.

BPF_PROG_TEST_RUN on one frame, each filter with another port or address: none is like another. Programs in
alternation, round by round.
"""

import os
import sys
from collections.abc import Sequence

from tests.kernel.frames import ethernet, ipv4, tcp, udp

from bench import machine
from bench.figures import spread, table
from eastwest.errors import RefusedError
from eastwest.kernel import trial
from eastwest.kernel.libbpf import CGROUP_SKB, SCHED_CLS, load_instructions
from eastwest.tap.filter import ORDERS, Filter, Wanted, compiled, program
from eastwest.tap.payload import Payload
from eastwest.tap.reading import Hook

TYPES = {Hook.PORT: SCHED_CLS, Hook.CGROUP: CGROUP_SKB}
TCP = ethernet(ipv4(tcp(bytes(1000)), 6), 0x0800)
UDP = ethernet(ipv4(udp(bytes(1000)), 17), 0x0800)

# name, text with a number in it, pattern, frame; the last of them are searches, which read 256 bytes each
CASES: list[tuple[str, str, Payload | None, bytes]] = [
    ("another protocol: tcp port N, on UDP", "tcp port {}", None, UDP),
    ("another port: tcp port N, on TCP", "tcp port {}", None, TCP),
    ("another port, either protocol: port N", "port {}", None, TCP),
    ("another address: host 10.1.0.N", "host 10.1.0.{}", None, TCP),
    ("host 10.1.0.N and tcp port 80", "host 10.1.0.{} and tcp port 80", None, TCP),
    ("another tag: vlan N and tcp port 80", "vlan {} and tcp port 80", None, TCP),
    ("another tunnel: geneve N and tcp port 80", "geneve {} and tcp port 80", None, UDP),
    ("a pattern of 8 bytes at an offset", "tcp", Payload(b"password", 100), TCP),
    ("a pattern of 8 bytes within 256", "tcp", Payload(b"password"), TCP),
    ("a pattern of 32 bytes within 256", "tcp", Payload(b"password" * 4), TCP),
]
_SEARCHES = 32


def filters(text: str, payload: Payload | None, count: int, hook: Hook) -> list[Filter]:
    asked = [Wanted(text.format(number + 1), payload) for number in range(count)]
    made = compiled(asked, hook)
    for one in made:
        if isinstance(one, RefusedError):
            raise one
    return [one for one in made if isinstance(one, Filter)]


def slope(made: Sequence[Filter], frame: bytes, hook: Hook, rounds: int, runs: int) -> list[float]:
    """ns for each further filter, by rounds."""
    few = load_instructions(TYPES[hook], program(made[:1], hook), "bench")
    many = load_instructions(TYPES[hook], program(made, hook), "bench")
    figures = []
    for _ in range(rounds):
        one, all_of_them = (trial.run(which, frame, runs).nanoseconds for which in (few, many))
        figures.append((all_of_them - one) / (len(made) - 1))
    os.close(few)
    os.close(many)
    return figures


def main(quick: bool) -> None:
    rounds, runs = (3, 3_000) if quick else (15, 300_000)
    rows = []
    with machine.section("What a filter costs that takes nothing"):
        for name, text, payload, frame in CASES:
            for hook in Hook:
                if hook is Hook.CGROUP and "vlan" in text:
                    continue
                made = filters(text, payload, _SEARCHES if payload else ORDERS, hook)
                figures = slope(made, frame, hook, rounds, runs // 50 if payload else runs)
                rows.append((name, hook.value, spread(figures)))
        print(f"{rounds} rounds of {runs:,} packets (of searches a fiftieth).\n")
        table(("filter, and what it meets", "hook", "ns per packet"), rows)


if __name__ == "__main__":
    main("--quick" in sys.argv)
