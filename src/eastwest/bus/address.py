"""What may be the name or address of a host on the network: one rule for all that the settings name."""

import re

from eastwest.errors import RefusedError

_HOST = re.compile(rb"[A-Za-z0-9_.:%-]{1,253}")


def is_host(text: str | None) -> bool:
    """Whether it can be looked up at all. What is no name fails here, not with a UnicodeError later."""
    try:
        return bool(_HOST.fullmatch((text or "").encode("idna")))
    except UnicodeError:
        return False


def host_port(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, an IPv6 address in brackets. Raises RefusedError."""
    host, colon, port = text.rpartition(":")
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bare = plain is host and ":" in host
    if not colon or bare or not is_host(plain) or not re.fullmatch("[0-9]{1,5}", port):
        raise RefusedError(f"'{text}' is not HOST:PORT", "write it like 10.0.0.9:8471 or [fd00::9]:8471")
    if not 0 < int(port) < 1 << 16:
        raise RefusedError(f"'{text}': there is no port {port}", "choose 1 to 65535")
    return plain, int(port)
