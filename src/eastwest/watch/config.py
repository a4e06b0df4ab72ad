"""Settings of the watcher."""

import msgspec

from eastwest.errors import ConfigError


class AlertsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[alerts]`: how often is looked, and who is told."""

    interval_seconds: float = 5.0
    max_open: int = 1000
    """Alerts at the same time; beyond, no new ones are raised, and health says so."""
    flows: int = 10
    """Flows shown behind an alert, the largest."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.interval_seconds <= 300:
            raise ConfigError("interval_seconds of [alerts] is out of range", "choose 0.05 to 300")
        if min(self.max_open, self.flows) < 1:
            raise ConfigError("max_open and flows of [alerts] must be at least 1", "correct them")
