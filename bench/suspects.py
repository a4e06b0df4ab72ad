"""What 100,000 suspect prefixes add to a packet: of a flow that goes on, of a new one, of a suspect one.

The metering program with and without entries, in alternation, on the bench's own maps. Run it alone:

    sudo .venv/bin/python -m bench.suspects
"""

import statistics

import numpy as np

from bench.packets import Trials
from eastwest.kernel.libbpf import Map
from eastwest.kernel.records import record
from eastwest.labels.suspect import prefix_key

ENTRIES = 100_000
FLOWS = 1000
ROUNDS = 15


def declare(trials: Trials, suspect: bool) -> None:
    """Load the prefixes, and with `suspect` the one that every frame's source is in."""
    texts = [f"11.{n >> 11 & 255}.{n >> 3 & 255}.{(n & 7) << 5}/28" for n in range(ENTRIES)]
    table: Map = trials.map("suspect_prefixes")
    for text in [*texts, *(["10.0.0.0/8"] if suspect else [])]:
        key = prefix_key(text)
        value = np.zeros(1, record("suspect_entry"))
        value["length"] = int.from_bytes(key[:4], "little")
        table.update(key, value.tobytes())
    state = np.zeros(1, record("meter_state"))
    state["suspects"] = ENTRIES
    trials.map("state").update(bytes(4), state.tobytes())


def known(trials: Trials) -> float:
    trials.warm(FLOWS, 1)
    return trials.run("whole")


def main() -> None:
    places = {"nothing declared": Trials(200_000), f"{ENTRIES:,} prefixes": Trials(200_000)}
    declare(places[f"{ENTRIES:,} prefixes"], suspect=False)
    places["… and the packet suspect"] = Trials(200_000)
    declare(places["… and the packet suspect"], suspect=True)
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for name, trials in places.items():
            found.setdefault((name, "goes on"), []).append(known(trials))
            found.setdefault((name, "is new"), []).append(trials.first_packets(FLOWS))
    for (name, flow), figures in found.items():
        low, high = min(figures), max(figures)
        print(
            f"{name:28} a flow that {flow:8} {statistics.median(figures):6.0f} ns  ({low:.0f} to {high:.0f})"
        )


if __name__ == "__main__":
    main()
