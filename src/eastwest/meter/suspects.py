"""What is declared suspect, as the kernel has it: keys in two maps, each with what it met.

An entry that stays is never written: the programs count in it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eastwest.kernel.libbpf import Map
from eastwest.kernel.records import record
from eastwest.labels.suspect import flow_text, prefix_text
from eastwest.meter.meter import Meter

_KINDS = (("suspect_prefixes", "suspect_prefix", prefix_text), ("suspect_flows", "suspect_flow", flow_text))


@dataclass(frozen=True)
class Hits:
    """What an entry met since it was declared; `last`: unix ns, 0 for never."""

    packets: int
    bytes: int
    last: int

    def __add__(self, other: "Hits") -> "Hits":
        return Hits(self.packets + other.packets, self.bytes + other.bytes, max(self.last, other.last))


class SuspectMaps:
    """The entries in the kernel, by key. Not to be changed and read at the same time."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._maps = [meter.map(name) for name, _, _ in _KINDS]
        self.loaded: tuple[set[bytes], set[bytes]] = (set(), set())
        """Keys of prefixes, and of flows."""

    @property
    def most(self) -> tuple[int, int]:
        """How many keys of each kind there is room for."""
        return self._maps[0].max_entries, self._maps[1].max_entries

    def adopt(self) -> None:
        """See what is there: an earlier probe's, or what is left after an error."""
        prefixes, flows = ({bytes(key) for key in self._read(kind)[0]} for kind in (0, 1))
        self.loaded = prefixes, flows

    def replace(self, prefixes: set[bytes], flows: set[bytes]) -> bool:
        """Make the entries these; False where they were. Raises KernelError: then some are, see `adopt`."""
        changed, count = False, len(prefixes) + len(flows)
        if count:  # before they are there, and until they are gone: none is there unseen
            self._meter.write_state(suspects=count)
        for kind, wanted in enumerate((prefixes, flows)):
            changed |= self._replace(kind, wanted)
        if not count:
            self._meter.write_state(suspects=0)
        return changed

    def _replace(self, kind: int, wanted: set[bytes]) -> bool:
        table, loaded = self._maps[kind], self.loaded[kind]
        fresh, gone = wanted - loaded, loaded - wanted
        # Where there is room the new come first: what is under both an old and a new one stays suspect.
        if len(loaded) + len(fresh) <= table.max_entries:
            self._add(kind, fresh)
            table.delete_many(_array(gone, table))
        else:
            table.delete_many(_array(gone, table))
            self._add(kind, fresh)
        loaded |= fresh
        loaded -= gone
        return bool(fresh or gone)

    def _add(self, kind: int, keys: Collection[bytes]) -> None:
        table = self._maps[kind]
        fresh = _array(keys, table)
        values = np.zeros(len(fresh), record("suspect_entry"))
        layout = record(_KINDS[kind][1])
        if "length" in (layout.names or ()):
            values["length"] = fresh.view(layout)["length"]
        table.update_many(fresh, values)

    def _read(self, kind: int) -> tuple[NDArray[Any], NDArray[Any]]:
        table = self._maps[kind]
        return table.read(np.dtype(f"V{table.key_size}"), record("suspect_entry"))

    def hits(self, clock_offset: int) -> dict[str, Hits]:
        """Entries that met anything, as they are written; `clock_offset`: unix less monotonic, ns."""
        found: dict[str, Hits] = {}
        for kind, (_, _, text) in enumerate(_KINDS):
            keys, entries = self._read(kind)
            for at in np.flatnonzero(entries["packets"]):
                entry, name = entries[at], text(bytes(keys[at]))
                hit = Hits(int(entry["packets"]), int(entry["bytes"]), int(entry["last"]) + clock_offset)
                found[name] = found[name] + hit if name in found else hit
        return found


def _array(keys: Collection[bytes], table: Map) -> NDArray[Any]:
    return np.frombuffer(b"".join(keys), f"V{table.key_size}")
