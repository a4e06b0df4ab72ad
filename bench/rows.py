"""From the kernel's flow map to the database's table: rows a second, and who spends how much CPU on them.

A probe that was held still finds its map full of new flows when it goes on: it reads them, makes rows, writes
them down, hands them to the bus, and the collector stores them. Timed from the moment it goes on until the
collector says that all are stored. All roles are the product's, as `eastwest up` runs them.
"""

import os
import signal
import sys
import time

from bench import machine
from bench.figures import spread, table
from bench.place import SINK, Generator, place
from bench.site import Site, site

_SETTINGS = "flow_entries = {entries}\ninterval_seconds = 1.0"


def _stored(where: Site) -> int:
    return int(where.get("health")["collector"]["stored_rows"])


def _settled(where: Site) -> int:
    """Rows stored once nothing new has been for a while."""
    last = -1
    while (now := _stored(where)) != last:
        last = now
        time.sleep(4)
    return last


def once(where: Site, generator: Generator, flows: int) -> tuple[float, dict[str, float]]:
    """Rows a second, and CPU seconds of each role per million rows."""
    roles = where.roles()
    before = _settled(where)
    os.kill(roles["probe"], signal.SIGSTOP)
    try:
        generator.send(flows)
    finally:
        os.kill(roles["probe"], signal.SIGCONT)
    start = time.monotonic()
    with machine.measured(roles) as usage:
        where.until(lambda: _stored(where) >= before + flows, "all rows are stored", 120, pause=0.05)
    rows = _stored(where) - before
    return rows / (time.monotonic() - start), {
        name: spent * 1e6 / rows for name, spent in usage.processes.items()
    }


def main(quick: bool) -> None:
    rounds, flows = (1, 20_000) if quick else (7, 500_000)
    with (
        machine.section("From flow map to table"),
        place() as here,
        site(here.netns, here.host, _SETTINGS.format(entries=flows + flows // 4)) as where,
        where.up(),
    ):
        generator = Generator(here, SINK, flows, sequential=True)
        found = [once(where, generator, flows) for _ in range(rounds)]
        generator.close()
        print(f"{flows:,} new flows in one cut, {rounds} rounds; median (range).\n")
        rows = [("rows a second, hook to table", spread([rate for rate, _ in found], 0))]
        rows += [
            (f"CPU s per million rows: {name}", spread([spent[name] for _, spent in found], 2))
            for name in found[0][1]
        ]
        table(("what", "figure"), rows)


if __name__ == "__main__":
    main("--quick" in sys.argv)
