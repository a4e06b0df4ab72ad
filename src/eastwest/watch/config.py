"""Settings of the watcher."""

from pathlib import Path

import msgspec

from eastwest.errors import ConfigError


class AlertsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[alerts]`: how often is looked, and who is told."""

    interval_seconds: float = 5.0
    max_open: int = 1000
    """Alerts at the same time, three quarters of them of one tenant; if more are refused, health says so."""
    flows: int = 10
    """Flows shown behind an alert, the largest."""
    webhook_url: str = ""
    """Where alerts are sent by HTTP POST; empty: nowhere."""
    webhook_header_file: Path | None = None
    """A file with one header, like `Authorization: Bearer …`."""
    webhook_timeout_seconds: float = 10.0
    syslog: str = ""
    """udp://HOST:PORT or unix:///PATH; empty: nowhere."""
    syslog_facility: int = 16
    """16: local0."""
    queue: int = 1000
    """Notifications that may wait for an output."""
    attempts: int = 8
    per_minute: int = 60
    """Notifications that an output gets in a minute."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.interval_seconds <= 300:
            raise ConfigError("interval_seconds of [alerts] is out of range", "choose 0.05 to 300")
        for name in ("max_open", "flows", "queue", "attempts", "per_minute", "webhook_timeout_seconds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of [alerts] must be at least 1", "correct it")
        if not 0 <= self.syslog_facility <= 23:
            raise ConfigError("syslog_facility of [alerts] is out of range", "choose 0 to 23")


class DetectConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[detect]`: from where on something is a scan, a sweep or a flood; each can be switched off.

    What began within `window_seconds` is looked at, after it had `settle_seconds` to be answered.
    """

    window_seconds: int = 10
    settle_seconds: int = 3
    port_scan: bool = True
    port_scan_ports: int = 100
    """Ports of one address that one address tried without an answer."""
    address_sweep: bool = True
    address_sweep_addresses: int = 100
    """Addresses that one address tried without an answer."""
    syn_flood: bool = True
    syn_flood_packets_per_second: int = 500
    """SYN packets to one port of one address that no connection came of."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("window_seconds", 1, 600),
            ("settle_seconds", 0, 60),
            ("port_scan_ports", 1, 65535),
            ("address_sweep_addresses", 1, 1_000_000),
            ("syn_flood_packets_per_second", 1, 1_000_000),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} of [detect] is out of range", f"choose {least} to {most}")
