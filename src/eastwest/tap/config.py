"""What the taps of a host can be told: section [tap] of the TOML file."""

from pathlib import Path
from typing import Literal

import msgspec

from eastwest.errors import ConfigError
from eastwest.kernel.libbpf import possible_cpus
from eastwest.kernel.rings import BEYOND, SMALLEST, ring_size

Attach = Literal["auto", "tcx", "clsact"]

_MEMORY = 40 << 20
_MOST_TAPS = 256


class TapConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much a host copies at most, and whom it believes."""

    memory: int = 0
    """Bytes of buffers for each tap, over all CPUs: an upper bound. 0: 40 MiB, or the least there can be."""

    most: int = 16
    """Taps at the same time; what is ordered beyond them waits."""

    enterprise: int = 32473
    """IANA private enterprise number of the option with label and service; 32473: for examples (RFC 5612)."""

    ca_file: Path | None = None
    """Certificates (PEM) of who may receive copies over TLS; None: those that the host trusts."""

    def __post_init__(self) -> None:
        if not self.ring_size:
            least = possible_cpus() * (SMALLEST + BEYOND)
            raise ConfigError(f"memory = {self.memory}", f"{possible_cpus()} CPUs need at least {least}")
        if not 1 <= self.most <= _MOST_TAPS:
            raise ConfigError(f"most = {self.most}", f"choose 1 to {_MOST_TAPS} taps")
        if not 0 <= self.enterprise < 1 << 32:
            raise ConfigError(f"enterprise = {self.enterprise}", "choose 0 to 4294967295")

    @property
    def ring_size(self) -> int:
        """Bytes of each CPU's ring, a power of two."""
        cpus = possible_cpus()
        return ring_size(self.memory or max(_MEMORY, cpus * (SMALLEST + BEYOND)), cpus)
