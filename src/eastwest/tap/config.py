"""What the taps of a host can be told."""

from pathlib import Path
from typing import Literal

import msgspec

from eastwest.errors import ConfigError
from eastwest.kernel.libbpf import possible_cpus
from eastwest.kernel.rings import BEYOND, SMALLEST, ring_size


class TapConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The scope of the taps and the size of their buffers."""

    netns: Path | None = None
    """The host's network namespace, None for the probe's own."""

    memory: int = 40 << 20
    """Bytes of buffers for each destination, over all CPUs: an upper bound."""

    enterprise: int = 32473
    """IANA private enterprise number of the option with label and service; 32473: for examples (RFC 5612)."""

    attach: Literal["auto", "tcx", "clsact"] = "auto"

    def __post_init__(self) -> None:
        if not self.ring_size:
            least = possible_cpus() * (SMALLEST + BEYOND)
            raise ConfigError(f"memory = {self.memory}", f"{possible_cpus()} CPUs need at least {least}")
        if not 0 <= self.enterprise < 1 << 32:
            raise ConfigError(f"enterprise = {self.enterprise}", "choose 0 to 4294967295")

    @property
    def ring_size(self) -> int:
        """Bytes of each CPU's ring, a power of two."""
        return ring_size(self.memory, possible_cpus())
