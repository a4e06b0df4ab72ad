"""What leaves the server for other people's tools, and how much of it."""

import msgspec

from eastwest.errors import ConfigError
from eastwest.export.session import parse

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


class IpfixConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`collector`: udp://HOST:PORT or tcp://HOST:PORT; without it nothing is sent. The default `enterprise`
    is the number that RFC 5612 keeps for documentation: whoever has one of their own sets it."""

    collector: str | None = None
    enterprise: int = 32473
    queue_bytes: int = 64 << 20
    """Rows that may wait while the collector is away or slow; what comes then is counted and not sent."""
    template_seconds: float = 30.0
    """How often templates are sent anew over UDP."""
    datagram_bytes: int = 1400

    def __post_init__(self) -> None:
        if self.collector is not None:
            parse(self.collector)
        for name, least, most in (
            ("enterprise", 1, (1 << 32) - 1),
            ("queue_bytes", 1 << 20, 1 << 40),
            ("template_seconds", 1, 3600),
            ("datagram_bytes", 1200, 65_000),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"export.ipfix.{name} = {getattr(self, name)} is out of range", f"set {least} to {most}"
                )


class ExportConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that is exported."""

    prometheus: PrometheusConfig = msgspec.field(default_factory=PrometheusConfig)
    ipfix: IpfixConfig = msgspec.field(default_factory=IpfixConfig)
