"""Stops what a port's workload sends before a switch can have it: XDP, only where that is wanted.

The link is pinned like the meter's own: it drops on without the probe, and the next one takes it over.
"""

from pathlib import Path

from eastwest.kernel import attach
from eastwest.kernel.libbpf import Object
from eastwest.kernel.netns import inside
from eastwest.kernel.records import ENFORCE_OBJECT
from eastwest.meter.config import MeterConfig
from eastwest.meter.meter import map_sizes


class Enforcer:
    """The XDP program, loaded when it is first needed; it counts in the maps pinned in `directory`."""

    def __init__(self, config: MeterConfig, directory: Path) -> None:
        self._config = config
        self._pins = directory
        self._object: Object | None = None

    def attach(self, ifindex: int) -> None:
        """Attach to a port, or take over the link that is there. KernelError: refused, and why.

        Drops nothing until the port's source says that it is enforced.
        """
        with inside(self._config.netns):
            attach.pinned_link(self._pin(ifindex), self.program(), ifindex, attach.XDP)

    @property
    def is_ready(self) -> bool:
        """Whether the program is loaded: before, what is attached is an earlier probe's."""
        return self._object is not None

    def attached(self) -> set[int]:
        """Ports whose link is pinned."""
        return {int(pin.name.split("-")[1]) for pin in self._pins.glob("port-*-xdp")}

    def detach(self, ifindex: int) -> None:
        """Take it off a port, there or gone."""
        attach.unpin(self._pin(ifindex))

    def _pin(self, ifindex: int) -> Path:
        return self._pins / f"port-{ifindex}-xdp"

    def program(self) -> int:
        """The descriptor of the program. KernelError: the kernel refuses it."""
        if self._object is None:
            fresh = Object(ENFORCE_OBJECT)
            try:
                fresh.resize(map_sizes(self._config))
                fresh.pin_maps(self._pins)
                fresh.load()
            except BaseException:
                fresh.close()
                raise
            self._object = fresh
        return self._object.program("port_enforce")

    def close(self) -> None:
        """Release the program; attached ones go on."""
        if self._object is not None:
            self._object.close()
            self._object = None
