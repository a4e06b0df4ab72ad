"""Takes counters and flows out of the kernel without losing one update.

The programs write one of two halves. A cut flips the half, waits until no program can still be writing the
other (a grace period), and then reads that other half at leisure. Because an account's counters and its
flows flip together, what a cut says of both is of the same packets exactly.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eastwest.kernel.libbpf import Map
from eastwest.kernel.records import enumeration, record
from eastwest.meter.meter import Meter

Counters = NDArray[np.uint64]


@dataclass(frozen=True)
class Flows:
    """The flows of one generation: keys (n,) of `flow_key`, counters (n,) of `flow_counters`."""

    generation: int
    keys: NDArray[Any]
    counters: NDArray[Any]

    def part(self, start: int, stop: int | None = None) -> "Flows":
        """Those from `start` on, up to `stop`."""
        return Flows(self.generation, self.keys[start:stop], self.counters[start:stop])


@dataclass(frozen=True)
class Cut:
    """One drain. Everything in it counts the same packets."""

    flows: Flows
    accounts: Counters
    """(accounts, fields of `account`): totals since each account was opened."""

    hooks: Counters
    """(hooks, fields of `hook_count`): totals since the boot."""


class Drain:
    """Cuts, one at a time. `cut` blocks for a grace period: call it off the event loop."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        idle = 1 - self._half()
        self._accounts = [np.zeros((0, len(_names("account"))), np.uint64)] * 2
        self._hooks = [np.zeros((enumeration("hook")["HOOKS"], len(_names("hook_count"))), np.uint64)] * 2
        # Nobody writes the idle half until the next flip: what it holds now is what it will hold then.
        self._wait()
        self._freeze(idle)

    @property
    def generation(self) -> int:
        """The generation that is being written now."""
        return int(self._meter.state()["generation"])

    def _half(self) -> int:
        return self.generation & 1

    def _wait(self) -> None:
        """Return once every program that ran when this was called has ended."""
        self._meter.map("grace").update(bytes(4), self._meter.map("state").fd.to_bytes(4, "little"))

    def _freeze(self, half: int) -> None:
        rows = _per_cpu(self._meter.map("accounts"), "account")
        self._accounts[half] = rows[half::2]
        self._hooks[half] = _per_cpu(self._meter.map("hooks"), "hook_count")[half::2]

    def idle_flows(self) -> Flows:
        """What the half that is not being written holds."""
        generation = self.generation - 1
        keys, counters = self._flow_map(generation).read(record("flow_key"), record("flow_counters"))
        return Flows(generation, keys, counters)

    def cut(self) -> Cut:
        """Flip and read. The other half must have been cleared."""
        generation = self.generation
        self._meter.write_state(generation=generation + 1)
        self._wait()
        self._freeze(generation & 1)
        even, odd = self._accounts
        return Cut(self.idle_flows(), even + odd, self._hooks[0] + self._hooks[1])

    def clear(self, flows: Flows) -> None:
        """Forget a generation whose flows are safe elsewhere. Blocks, for as long as a read."""
        self._flow_map(flows.generation).clear()

    def forget_account(self, account: int) -> None:
        """An account went back to zero."""
        for half in self._accounts:
            half[account] = 0

    def malformed(self) -> dict[str, int]:
        """Packets that were counted but not read to their end, by reason."""
        counts = _per_cpu(self._meter.map("malformed"), None)[:, 0]
        reasons = enumeration("malformed")
        return {
            name.removeprefix("MALFORMED_").lower(): int(counts[number])
            for name, number in reasons.items()
            if name not in ("MALFORMED_NOT", "MALFORMED_REASONS")
        }

    def _flow_map(self, generation: int) -> Map:
        return self._meter.map("flows_odd" if generation & 1 else "flows_even")


def _names(name: str) -> tuple[str, ...]:
    names = record(name).names
    assert names is not None
    return names


def _per_cpu(table: Map, name: str | None) -> Counters:
    """A per-CPU array of 64-bit counters, summed over the CPUs: (entries, fields)."""
    layout = record(name) if name else np.dtype([("count", "<u8")])
    keys, values = table.read(np.dtype("<u4"), layout)
    fields = len(layout.names or ())
    return np.asarray(values.view("<u8").reshape(len(keys), -1, fields).sum(axis=1, dtype=np.uint64))
