"""Copies as on the wire: has packets go through the relay, and takes what comes out for its orders.

What is on its way (kernel/include/relay.h) names its order by a number that is not given again, so that
nobody gets packets which were taken for another.
"""

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from eastwest.kernel.libbpf import possible_cpus
from eastwest.kernel.records import TAP_OBJECT, record
from eastwest.tap import relay
from eastwest.tap.relay import Relay
from eastwest.tap.taps import Taps

_WAY = record("relay_way", TAP_OBJECT)
_MOST_NUMBERS = (1 << 32) - 1
_WAY_SECONDS = 0.1
"""What is longer on its way is lost."""


class Segments:
    """The relay of a host's taps, and whose segments are taken. `note`: the file that names the relay."""

    def __init__(self, taps: Taps, note: Path | None = None) -> None:
        self._taps = taps
        self._note = note
        self._relay: Relay | None = None
        self._number = 0

    def open(self) -> None:
        """Have a relay; it may be there already. Raises KernelError."""
        if self._relay and relay.there(self._relay, self._taps.netns):
            return
        self.close()
        self._relay = relay.make(self._taps.netns, self._note)
        try:
            self._taps.attach_relay(self._relay.out)
            self._tell(self._relay.into, relay.most_waiting())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take the relay away: what an order with `segment` takes from now on is lost as `relay`."""
        if self._relay is None:
            return
        self._tell(0, 0)
        self._taps.settle(anyway=True)  # its index may be another interface's afterwards
        self._taps.detach_relay(self._relay.out)
        relay.remove(self._relay, self._taps.netns, self._note)
        self._relay = None

    def _tell(self, ifindex: int, most: int) -> None:
        self._taps.map("relay_device").update(bytes(4), struct.pack("=II", ifindex, most))

    def begin(self, stream: int) -> int:
        """A number for an order of this stream: of its segments what comes out is written."""
        self._number = self._number % _MOST_NUMBERS + 1
        self._take(stream, self._number)
        return self._number

    def end(self, stream: int) -> None:
        """Write nothing more that comes out for this stream."""
        self._take(stream, 0)

    def _take(self, stream: int, number: int) -> None:
        self._taps.map("relay_serials").update(stream.to_bytes(4, "little"), number.to_bytes(4, "little"))

    def wait(self) -> None:
        """Until all has come out of the relay that is in it now, or is lost."""
        deadline = time.monotonic() + _WAY_SECONDS
        sent = self._clones("clones")
        while any(out < one for out, one in zip(self._clones("clones_out"), sent, strict=True)):
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)

    def _clones(self, which: str) -> list[int]:
        """On each CPU."""
        ways = self._taps.map("relay_ways")
        found: list[Any] = [
            np.frombuffer(ways.lookup(cpu.to_bytes(4, "little")) or b"", _WAY)[0]
            for cpu in range(possible_cpus())
        ]
        return [int(way[which]) for way in found]
