"""What eastwest itself takes on a host: CPU and memory of each role, idle and at 10,000 new flows a second.

Settings are the defaults: counters are taken every two seconds, every source of workloads is asked.
"""

import sys
import time

from bench import machine
from bench.figures import table
from bench.place import SINK, Generator, place
from bench.site import Site, site

RATE = 10_000
_FLOWS = 1_000_000
"""So many take longer to come round than a flow stays in the map: each is new."""


def taken(where: Site, work: str, usage: machine.Usage) -> list[tuple[str, ...]]:
    return [
        (
            work,
            name,
            f"{100 * usage.processes[name] / usage.seconds:.2f} %",
            f"{machine.resident(pid) / 1e6:.1f}",
        )
        for name, pid in sorted(where.roles().items())
        if name in usage.processes and name != "up"
    ]


def main(quick: bool) -> None:
    seconds = 6 if quick else 60
    with (
        machine.section("What eastwest takes"),
        place() as here,
        site(here.netns, here.host) as where,
        where.up(),
    ):
        generator = Generator(here, SINK, _FLOWS, sequential=True)
        time.sleep(2 if quick else 40)  # it looks at its programs' cost more often at first
        rows = []
        with machine.measured(where.roles()) as usage:
            time.sleep(seconds)
        rows += taken(where, "no traffic", usage)
        with machine.measured(where.roles()) as usage:
            rate = generator.pace(RATE * seconds, RATE)
        rows += taken(where, f"{rate:,.0f} new flows/s", usage)
        generator.close()
        print(f"{seconds} s each. CPU of one core; memory resident at the end, 10^6 bytes.\n")
        table(("work", "role", "CPU", "MB"), rows)


if __name__ == "__main__":
    main("--quick" in sys.argv)
