"""The one form in which an alert leaves this process."""

from typing import Any

import msgspec

from eastwest.manager.views import rfc3339
from eastwest.watch.alert import Alert

_HIDDEN = ("watermark", "told")
_TIMES = ("first_seen", "last_seen", "resolved_at")


def document(alert: Alert) -> dict[str, Any]:
    """An alert as everybody is shown it: by the API, the command line and the webhook."""
    shown: dict[str, Any] = msgspec.to_builtins(alert)
    for name in _HIDDEN:
        del shown[name]
    return shown | {name: rfc3339(shown[name]) for name in _TIMES}
