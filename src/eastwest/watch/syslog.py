"""Alerts to syslog, as RFC 5424 says: one datagram for each, over UDP or to a local socket."""

import asyncio
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eastwest.bus.address import is_host
from eastwest.errors import ConfigError
from eastwest.watch.outputs import Document, Undelivered

_SEVERITIES = {"critical": 2, "warning": 4, "info": 6}
_RESOLVED = 5
_ENTERPRISE = 32473
"""The number for examples (RFC 5612), as eastwest has none of its own."""

_FIELDS = (
    "id", "kind", "state", "severity", "watch", "subject", "label", "name", "tenant", "network", "service",
    "host", "figure", "threshold", "unit",
)  # fmt: skip
_MAX_VALUE, _MAX_BYTES = 96, 2048
"""All values, escaped, and the header fit into a message: only its text is ever cut."""
_ESCAPED = re.compile(r'(["\\\]])')
_HOST = re.compile(r"[!-~]{1,255}")


class Syslog:
    """Sends to `udp://HOST:PORT` or `unix:///PATH`. Raises ConfigError for another address."""

    name = "syslog"

    def __init__(self, address: str, facility: int) -> None:
        self._path, self._host_port = parse(address)
        self._facility = facility
        host = socket.gethostname()
        self._host = host if _HOST.fullmatch(host) else "-"

    async def send(self, alert: Document) -> None:
        """What UDP loses on its way nobody learns; a socket that is not there is tried again."""
        message = format_message(alert, self._facility, self._host)
        try:
            family, target = await self._target()
            with socket.socket(family, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message, target)
        except OSError as error:
            raise Undelivered(f"cannot send ({error.strerror})") from None

    async def _target(self) -> tuple[int, Any]:
        if self._path:
            return socket.AF_UNIX, self._path
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(*self._host_port, type=socket.SOCK_DGRAM)
        return found[0][0], found[0][4]


def parse(address: str) -> tuple[str, tuple[str, int]]:
    """The path of a local socket, or else (empty) host and port. Raises ConfigError."""
    try:
        parts = urlsplit(address)
        if parts.scheme == "udp" and is_host(parts.hostname) and parts.path in ("", "/"):
            return "", (str(parts.hostname), parts.port or 514)
        local = parts.scheme == "unix" and not parts.netloc and "\0" not in parts.path
        if local and Path(parts.path).is_absolute():
            return parts.path, ("", 0)
    except ValueError:
        pass
    raise ConfigError(
        f"syslog = '{address}' is no address", "write udp://HOST:514 or unix:///dev/log in [alerts]"
    )


def format_message(alert: Document, facility: int, host: str) -> bytes:
    """RFC 5424, 6: header, structured data, text. Names come from workloads: what could end a value, a line
    or a terminal's patience is escaped."""
    over = alert["state"] == "resolved"
    severity = _RESOLVED if over else _SEVERITIES[alert["severity"]]
    when = _microseconds(alert["resolved_at"] if over else alert["last_seen"])
    values = " ".join(f'{name}="{_value(alert[name])}"' for name in _FIELDS)
    head = f"<{facility * 8 + severity}>1 {when} {host} eastwest - {alert['kind']}"
    text = f"{alert['state']}: {_printable(str(alert['text']))}"
    message = f"{head} [alert@{_ENTERPRISE} {values}] \ufeff{text}".encode()
    return message[:_MAX_BYTES].decode(errors="ignore").encode()


def _microseconds(time: str | None) -> str:
    """RFC 5424 takes six digits of a second, not nine."""
    return re.sub(r"(\.\d{6})\d+Z$", r"\1Z", time) if time else "-"


def _value(value: object) -> str:
    """At most _MAX_VALUE bytes; no escape is cut in two."""
    shown = ""
    for character in str(value)[:_MAX_VALUE]:
        longer = shown + _ESCAPED.sub(r"\\\1", _printable(character))
        if len(longer.encode()) > _MAX_VALUE:
            break
        shown = longer
    return shown


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else f"#{ord(c):03o}" for c in text)
