"""What taps on other ports of a host cost a port that has none: nothing, or there is a mistake."""

import sys
import time
from contextlib import closing

from bench import machine
from bench.capture import FLOWS, connected
from bench.figures import spread, table
from bench.place import SINK, Generator, Place, neighbours, place
from bench.site import site


def _rates(here: Place, generator: Generator, rounds: int, packets: int) -> list[float]:
    """Packets a second that reach the sink, at full speed."""
    found = []
    for _ in range(rounds):
        before, start = here.received(here.host, "sink1"), time.perf_counter()
        generator.send(packets)
        spent = time.perf_counter() - start
        found.append((here.received(here.host, "sink1") - before) / spent)
    return found


def compare(here: Place, taps: int, rounds: int, packets: int) -> None:
    """A metered port without a tap, before, while and after other ports of its host have one each."""
    settings = f"[tap]\nmost = {taps}\nmemory = {1 << 20}\n"
    with (
        neighbours(here, taps) as names,
        site(here.netns, here.host, settings) as where,
        where.up(),
        closing(Generator(here, SINK, FLOWS)) as generator,
    ):
        where.until(lambda: len(where.get("workloads")) >= taps + 2, "the workloads are known")
        found = {"no tap yet": _rates(here, generator, rounds, packets)}
        for name in names:
            where.run("tap", "add", name, f"name={name}")
        where.until(lambda: connected(where) == taps, "all taps are connected", 300)
        found[f"{taps} taps elsewhere"] = _rates(here, generator, rounds, packets)
        for name in names:
            where.run("tap", "rm", name)
        where.until(lambda: not where.get("taps"), "all taps are gone", 300)
        found["none any more"] = _rates(here, generator, rounds, packets)
    print(f"A metered port without a tap; {rounds} rounds of {packets:,} packets of 114 bytes each.\n")
    table(
        ("taps", "k packets/s delivered"),
        [(name, spread([rate / 1000 for rate in rates], 0)) for name, rates in found.items()],
    )


def main(quick: bool) -> None:
    with machine.section("An untapped port, with taps elsewhere"), place() as here:
        compare(here, 10 if quick else 100, 3 if quick else 15, 50_000 if quick else 300_000)


if __name__ == "__main__":
    main("--quick" in sys.argv)
