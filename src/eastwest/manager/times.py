"""Times as people give them to the API: `5m` ago, or RFC 3339."""

import re
from datetime import datetime

from eastwest.errors import RefusedError

_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LATEST = 1 << 62


def duration(text: str) -> int:
    """Seconds of `text`, like 30s, 5m, 2h, 1d. Raises RefusedError."""
    if how_long := _AGO.fullmatch(text):
        return int(how_long[1]) * _SECONDS[how_long[2]]
    raise RefusedError(f"'{text}' is not a length of time", "write 30s, 5m, 2h or 1d")


def parse(text: str, now: int) -> int:
    """Unix ns of `text`, seen from `now` (unix ns). Raises RefusedError."""
    if ago := _AGO.fullmatch(text):
        return max(0, now - int(ago[1]) * _SECONDS[ago[2]] * 1_000_000_000)
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        return min(max(0, int(moment.timestamp() * 1_000_000) * 1000), _LATEST)
    except (ValueError, OverflowError):
        raise RefusedError(
            f"'{text}' is not a time", "write 30s, 5m, 2h, 1d (ago), or RFC 3339 like 2026-01-31T12:00:00Z"
        ) from None
