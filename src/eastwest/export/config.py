"""What leaves the server for other people's tools, and how much of it."""

import msgspec

from eastwest.errors import ConfigError

_MOST = 100_000


class PrometheusConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`services`: pairs of tenant and service with series of their own, the rest is "other"; `per_label`:
    also series for each label, up to `labels` of them."""

    services: int = 100
    per_label: bool = False
    labels: int = 1000

    def __post_init__(self) -> None:
        for name in ("services", "labels"):
            if not 0 <= getattr(self, name) <= _MOST:
                raise ConfigError(
                    f"export.prometheus.{name} = {getattr(self, name)} is out of range", f"set 0 to {_MOST}"
                )


class ExportConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that is exported."""

    prometheus: PrometheusConfig = msgspec.field(default_factory=PrometheusConfig)
