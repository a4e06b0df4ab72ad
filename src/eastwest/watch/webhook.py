"""Alerts by HTTP POST: the JSON document that the API shows, to whoever listens at an address."""

from pathlib import Path

import httpx

from eastwest.bus.address import is_host
from eastwest.errors import ConfigError
from eastwest.watch.outputs import Document, Undelivered

_TRY_AGAIN = frozenset({408, 425, 429})


class Webhook:
    """POSTs to `url`. `header_file`: one line like `Authorization: Bearer …`, read at each request and never
    logged; nor is the address, which may hold a secret itself. Raises ConfigError for what is no address."""

    name = "webhook"

    def __init__(self, url: str, header_file: Path | None, seconds: float) -> None:
        self._url = parse(url)
        self._header_file = header_file
        self._seconds = seconds

    async def send(self, alert: Document) -> None:
        try:
            async with (
                httpx.AsyncClient(timeout=self._seconds, trust_env=False) as client,
                # Only the status is of interest: the body may be of any length.
                client.stream("POST", self._url, json=alert, headers=self._header()) as response,
            ):
                status = response.status_code
        except httpx.HTTPError as error:
            raise Undelivered(f"no answer ({type(error).__name__})") from None
        if not 200 <= status < 300:
            raise Undelivered(f"answered with {status}", again=status >= 500 or status in _TRY_AGAIN)

    def _header(self) -> dict[str, str]:
        if self._header_file is None:
            return {}
        try:
            return header(self._header_file)
        except ConfigError as error:
            raise Undelivered(str(error)) from None


def parse(text: str) -> httpx.URL:
    """An address of HTTP. Raises ConfigError, which does not show it."""
    try:
        url = httpx.URL(text)
        named = is_host(url.host) and "%" not in url.host
        if url.scheme in ("http", "https") and named and (url.port or 1) < 65536:
            return url
    except httpx.InvalidURL:
        pass
    raise ConfigError("webhook_url of [alerts] is no address", "write http://… or https://…") from None


def header(path: Path) -> dict[str, str]:
    """The header that a file holds. Raises ConfigError, which does not show it."""
    try:
        name, colon, value = path.read_text().strip().partition(":")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the webhook's header file {path}: {getattr(error, 'strerror', 'no text')}",
            "give webhook_header_file of [alerts] a readable file",
        ) from None
    name, value = name.strip(), value.strip()
    if not colon or not name.replace("-", "").isalnum() or not (name + value).isascii() or "\n" in value:
        raise ConfigError(
            f"{path} holds no header", "write one line like 'Authorization: Bearer …'"
        ) from None
    return {name: value}
