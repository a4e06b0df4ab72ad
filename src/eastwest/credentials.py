"""Passwords and certificates come from files: a URL with a password would be in messages and in logs."""

import ssl
from pathlib import Path

from eastwest.errors import ConfigError


def refuse_secrets(url: str, section: str) -> None:
    """Raises ConfigError, without the text, for a URL that may hold a user, a password or a token."""
    # Any @: what follows a slash or a comma too early would not be parsed as a user, and be shown.
    options = url.partition("?")[2]
    if "@" in url or "password" in options or "token" in options:
        raise ConfigError(
            f"[{section}] url holds more than an address",
            f"leave its user and password out; set [{section}] user and password_file",
        )


def read_password(path: Path | None, whose: str) -> str | None:
    """What the file holds, without white space around it; None without a file. Raises ConfigError."""
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"cannot read the {whose} password file {path}: {reason}",
            "give password_file a file that this user can read",
        ) from error


def trust(ca_file: Path | None, setting: str) -> ssl.SSLContext:
    """For TLS with whom these certificates (PEM) vouch for; None: those that this host trusts.

    Raises ConfigError that names the setting.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"no certificates in {ca_file}: {error}", f"correct {setting}") from None
