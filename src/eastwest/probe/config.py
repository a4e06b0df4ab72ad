"""The probe's settings: section [probe] of the TOML file."""

import socket
from pathlib import Path

import msgspec

from eastwest.errors import ConfigError
from eastwest.meter.config import MeterConfig


class ProbeConfig(MeterConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one probe watches, how often it drains, what it may keep."""

    host: str = msgspec.field(default_factory=lambda: socket.gethostname().partition(".")[0])
    """Name of this host in the fleet; by default its host name without the domain."""

    state_dir: Path = Path("/var/lib/eastwest")
    cgroup_patterns: tuple[str, ...] = ("*.slice", "*.scope", "*.service")
    """Directory names of cgroups that are workloads; `*` matches within the name."""

    interval_seconds: float = 2.0
    hold_seconds: float = 10.0
    """How long traffic of an unknown port or cgroup waits for its workload."""

    linger_seconds: float = 60.0
    """How long a removed cgroup keeps its label: its sockets may outlive it."""

    outbox_max_bytes: int = 1 << 30
    """Flow rows kept on disk while the bus cannot take them; past that they are lost, by name."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.interval_seconds <= 60:
            raise ConfigError(f"interval_seconds = {self.interval_seconds}", "choose 0.05 to 60 seconds")
        if any(c in self.host for c in " .*>/") or not self.host.isprintable() or not self.host:
            # A host name is a token of NATS subjects; the domain says nothing that the name does not.
            raise ConfigError(f"host = '{self.host}'", "choose a name without spaces, dots, '*', '>' or '/'")
        super().__post_init__()


class SuspectConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Section [suspect]: what this host takes to be suspect besides what users declare in the fleet."""

    files: tuple[Path, ...] = ()
    """One prefix or flow in a line, `#` begins a comment; read again when they change."""
