"""The secret that changes through the API ask for, where no token is set that everything asks for.

Whoever reaches the loopback may read what the API shows. A process without privileges, or a guest behind its
emulator's sockets, must not say whose it is or what is suspect: so whoever starts the server makes a secret
that only its own user can read, another at each start, where that user's command line finds it.
"""

import ipaddress
import os
import secrets
from pathlib import Path

import httpx

from eastwest.errors import ConfigError

DIRECTORY = Path("/run/eastwest/api")


def make(port: int, state_dir: Path) -> Path:
    """Write a fresh secret for the API at a port, and say where it is. Raises ConfigError."""
    directory = DIRECTORY if os.geteuid() == 0 else state_dir
    path = directory / f"{port}.key"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "set token_file in [server]") from None
    return path


def find(url: str) -> str | None:
    """The secret of an API on this host, where there is one and this user may read it."""
    address = httpx.URL(url)
    try:
        local = address.host == "localhost" or ipaddress.ip_address(address.host).is_loopback
        return (DIRECTORY / f"{address.port}.key").read_text() if local else None
    except (OSError, ValueError):
        return None
