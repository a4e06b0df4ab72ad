"""Where streams of packets are taken, kept and handed on."""

import ipaddress
from pathlib import Path

import msgspec

from eastwest.bus.address import host_port
from eastwest.errors import ConfigError, RefusedError


class RelayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Taps whose packets an application gets. `match`: a tap's name, which may hold `*`; `to`: HOST:PORT."""

    match: str
    to: str
    service_id: int | None = None
    """Of these taps only the packets of this service; None: all."""
    tls: bool = False
    ca_file: Path | None = None
    """Certificates (PEM) of who may receive over TLS; None: those that this host trusts."""

    def __post_init__(self) -> None:
        try:
            host_port(self.to)
        except RefusedError as error:
            raise ConfigError(f"streams.relay.to: {error.what}", error.remedy) from None
        if self.service_id is not None and not 0 <= self.service_id < 1 << 32:
            raise ConfigError(f"streams.relay.service_id = {self.service_id}", "choose 0 to 4294967295")
        if self.ca_file and not self.tls:
            raise ConfigError("streams.relay.ca_file says whom to believe over TLS", "set tls = true too")


class StreamsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`path`: the directory of the files. `advertise`: HOST:PORT that probes are told instead of `listen`."""

    listen: str = "127.0.0.1:8471"
    advertise: str = ""
    tls_certificate: Path | None = None
    """PEM, with the chain; the key beside it. Without: plain TCP."""
    tls_key: Path | None = None
    connections: int = 512
    """Streams at the same time; of those that have not shown a tap's key there are 64 at most besides."""
    path: Path = Path("/var/lib/eastwest/captures")
    rotate_bytes: int = 256 << 20
    rotate_seconds: float = 3600.0
    retention_bytes: int = 10 << 30
    """Of all files together; the oldest go first, never one that is being written."""
    retention_days: float = 7.0
    min_free_bytes: int = 1 << 30
    """What is always left free on the disk: below that, nothing is stored."""
    reader_bytes: int = 32 << 20
    """What waits for one reader; what comes while it is full is lost to that reader."""
    pcap_over_ip: str = ""
    """ADDRESS:PORT: who connects there is sent a tap's packets, unasked. The first tap has this port, the
    next one the next; with port 0 they have any. Empty: off."""
    relay: list[RelayConfig] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        host, _ = address("streams.listen", self.listen)
        if ipaddress.ip_address(host).is_unspecified and not self.advertise:
            raise ConfigError(
                f"streams.listen = '{self.listen}' is no address that probes could connect to",
                "say in streams.advertise by which HOST:PORT they reach it",
            )
        if self.pcap_over_ip:
            address("streams.pcap_over_ip", self.pcap_over_ip)
        if self.advertise:
            try:
                host_port(self.advertise)
            except RefusedError as error:
                raise ConfigError(f"streams.advertise: {error.what}", error.remedy) from None
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("streams.tls_certificate and tls_key belong together", "set both, or neither")
        for name, least, most in (
            ("connections", 1, 1 << 16),
            ("rotate_bytes", 1 << 20, 1 << 50),
            ("rotate_seconds", 1, 1 << 31),
            ("retention_bytes", 1 << 20, 1 << 60),
            ("retention_days", 1 / 86400, 36500),
            ("min_free_bytes", 0, 1 << 60),
            ("reader_bytes", 4 << 20, 1 << 40),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"streams.{name} = {getattr(self, name)} is out of range", f"set {least} to {most}"
                )


def address(name: str, listen: str) -> tuple[str, int]:
    """Where to listen: a numeric address and a port, 0 for any. Raises ConfigError."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not (port.isascii() and port.isdigit() and 0 <= int(port) < 65536):
            raise ValueError
        return ("127.0.0.1" if host == "localhost" else str(ipaddress.ip_address(host))), int(port)
    except ValueError:
        raise ConfigError(f"{name} = '{listen}'", "write ADDRESS:PORT, like 127.0.0.1:8471") from None


def shown(host: str, port: int) -> str:
    """ADDRESS:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
