"""What the meter can be told."""

from pathlib import Path
from typing import Literal

import msgspec

from eastwest.errors import ConfigError


class MeterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The meter's scope and the sizes of its maps."""

    netns: Path | None = None
    """The host's network namespace, None for the probe's own."""

    cgroup_root: Path | None = None
    """Sockets of processes below it are metered; None for the cgroup v2 mount."""

    flow_entries: int = 131072
    """Flows told apart within one interval."""

    accounts: int = 4096
    """Ports and cgroups counted at the same time."""

    suspect_entries: int = 131072
    """Prefixes declared suspect at the same time."""

    attach: Literal["auto", "tcx", "clsact"] = "auto"
    host_interfaces: tuple[str, ...] = ()
    """Interfaces of the host's own on which `not_seen_by_cgroup` is measured."""

    def __post_init__(self) -> None:
        for name in ("flow_entries", "accounts", "suspect_entries"):
            if not 16 <= getattr(self, name) <= 1 << 24:
                raise ConfigError(f"{name} = {getattr(self, name)}", "choose 16 to 16777216")
