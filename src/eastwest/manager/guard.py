"""Who may ask, and how much at once; before anything else looks at a request."""

import hmac
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eastwest.manager.api import error

MAX_BODY_BYTES = 64 << 10


class _TooLarge(Exception):
    pass


class Guard:
    """ASGI middleware. With `token` it asks for it; without, only names of this host are answered to, and
    what changes something, or reads packets, needs `write_token`, where there is one.

    The names: a page of some other site must not reach the API through a browser on this host by having
    its own name resolve to the loopback address (DNS rebinding); nor post forms to it.
    """

    def __init__(
        self, app: ASGIApp, token: str | None, names: frozenset[str], write_token: str | None = None
    ) -> None:
        self._app = app
        self._token = token
        self._write_token = write_token
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope, Headers(scope=scope))
        if refusal is not None:
            await error(*refusal)(scope, receive, send)
            return
        try:
            await self._app(scope, _bounded(receive), send)
        except _TooLarge:
            await error(*_TOO_LARGE)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, str] | None:
        method = scope["method"]
        if self._token is not None:
            if not _bears(headers, self._token):
                return 401, "this API asks for a token", "send it as 'Authorization: Bearer …'"
        elif _name(headers.get("host", "")) not in self._names:
            return 403, "this API answers only to names of its own host", "use the address that it listens on"
        elif self._write_token and _privileged(scope) and not _bears(headers, self._write_token):
            return 401, "for this, the API asks for a token", "ask as root on the server's host"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return _TOO_LARGE
        if method == "POST" and headers.get("content-type", "").partition(";")[0] != "application/json":
            return 415, "the body is not JSON", "send it with Content-Type: application/json"
        return None


_READING = ("GET", "HEAD", "OPTIONS")
_PACKETS = re.compile("/api/v1/taps/[^/]*/stream")
_TOO_LARGE = (413, "the body is too large", f"send at most {MAX_BODY_BYTES} bytes")


def _privileged(scope: Scope) -> bool:
    """Whether it changes something, or reads what packets hold, which is more than figures."""
    return scope["method"] not in _READING or bool(_PACKETS.fullmatch(scope["path"]))


def _bears(headers: Headers, token: str) -> bool:
    return hmac.compare_digest(headers.get("authorization", "").encode(), f"Bearer {token}".encode())


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _bounded(receive: Receive) -> Receive:
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise _TooLarge
        return message

    return bounded
