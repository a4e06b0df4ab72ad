"""The way to the API for every verb that asks it something."""

import os
from types import TracebackType
from typing import Any, Self, TypedDict

import httpx

from eastwest.cli import apikey
from eastwest.errors import ConfigError, NotFoundError, RefusedError

DEFAULT_URL = "http://127.0.0.1:8470"

Parameters = dict[str, str | int | bool]


def api_url() -> str:
    """Where the API is: EASTWEST_URL, else this host's default. Raises ConfigError."""
    url = os.environ.get("EASTWEST_URL") or DEFAULT_URL
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"EASTWEST_URL is '{url}': {error}", f"write it like {DEFAULT_URL}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"EASTWEST_URL is '{url}'", f"write it like {DEFAULT_URL}")
    return url.rstrip("/")


def headers(url: str) -> dict[str, str]:
    """What goes with every request: EASTWEST_TOKEN, else the secret of this host's own API."""
    token = os.environ.get("EASTWEST_TOKEN") or apikey.find(url)
    return {"Authorization": f"Bearer {token}"} if token else {}


class Transport(TypedDict):
    """How requests travel, as httpx wants it said."""

    trust_env: bool
    verify: bool


def transport(url: str) -> Transport:
    """No proxy: one meant for the Internet must not carry requests to this host. Certificates where they
    are needed: loading them takes longer than the request."""
    return {"trust_env": False, "verify": url.startswith("https:")}


class Api:
    """The API, one request at a time."""

    def __init__(self, url: str | None = None, timeout: float = 30.0) -> None:
        self.url = url or api_url()
        self._http = httpx.Client(headers=headers(self.url), timeout=timeout, **transport(self.url))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, parameters: Parameters | None = None) -> Any:
        """The document at /api/v1/`path`. Raises RefusedError."""
        return self._ask("GET", path, parameters=parameters)

    def text(self, path: str, parameters: Parameters | None = None) -> str:
        """The text at /api/v1/`path`. Raises RefusedError."""
        response = self._send("GET", path, parameters)
        return response.text if response.is_success else str(decoded(response, self.url))

    def post(self, path: str, document: object) -> Any:
        """Send a document to /api/v1/`path`. Raises RefusedError."""
        return self._ask("POST", path, document=document)

    def delete(self, path: str, parameters: Parameters | None = None) -> Any:
        """Remove what /api/v1/`path` has of these parameters. Raises RefusedError."""
        return self._ask("DELETE", path, parameters=parameters)

    def _ask(
        self, method: str, path: str, parameters: Parameters | None = None, document: object = None
    ) -> Any:
        return decoded(self._send(method, path, parameters, document), self.url)

    def _send(
        self, method: str, path: str, parameters: Parameters | None, document: object = None
    ) -> httpx.Response:
        address = f"{self.url}/api/v1/{path}"
        try:
            return self._http.request(method, address, params=parameters, json=document)
        except httpx.TimeoutException:
            raise RefusedError(f"no answer from {self.url} in time", "see its log, or try again") from None
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from None


def unreachable(url: str, error: Exception) -> RefusedError:
    """Nobody answers there: say where it was looked for."""
    return RefusedError(
        f"no eastwest server at {url} ({error})", "run `eastwest up`, or set EASTWEST_URL to where it is"
    )


def decoded(response: httpx.Response, url: str) -> Any:
    """The document of an answer. Raises RefusedError with what the API says, or that this is no API."""
    try:
        document = response.json() if response.content else None
    except ValueError:
        document = response
    if response.is_success and document is not response:
        return document
    if isinstance(document, dict) and isinstance(document.get("error"), str):
        kind = NotFoundError if response.status_code == httpx.codes.NOT_FOUND else RefusedError
        raise kind(document["error"], str(document.get("remedy") or ""))
    raise RefusedError(
        f"{url} answers with {response.status_code}, not as an eastwest server", "correct EASTWEST_URL"
    )
