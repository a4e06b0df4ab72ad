"""What may be the name or address of a host on the network: one rule for all that the settings name."""

import re

_HOST = re.compile(rb"[A-Za-z0-9_.:%-]{1,253}")


def is_host(text: str | None) -> bool:
    """Whether it can be looked up at all. What is no name fails here, not with a UnicodeError later."""
    try:
        return bool(_HOST.fullmatch((text or "").encode("idna")))
    except UnicodeError:
        return False
