"""What `top` shows, asked from the API without stopping the screen."""

from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

from eastwest.cli.client import Parameters, decoded, headers, transport, unreachable
from eastwest.cli.render import Row


@dataclass(frozen=True)
class Snapshot:
    """The answers of one moment."""

    labels: list[Row] = field(default_factory=list)
    hosts: list[Row] = field(default_factory=list)
    ledger: list[Row] = field(default_factory=list)
    health: Row = field(default_factory=dict)
    alerts: list[Row] = field(default_factory=list)


class Feed:
    """The API, asked by one screen. Enter it before use."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = httpx.AsyncClient(
            base_url=f"{url}/api/v1/", headers=headers(url), timeout=5.0, **transport(url)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def snapshot(self) -> Snapshot:
        """Everything of now. Raises RefusedError."""
        return Snapshot(
            labels=await self._get("labels"),
            hosts=await self._get("hosts"),
            ledger=await self._get("ledger"),
            health=await self._get("health"),
            alerts=await self._get("alerts"),
        )

    async def flows(self, label: int, since: str = "1m") -> list[Row]:
        """Recent flow records of one label. Raises RefusedError."""
        rows: list[Row] = await self._get("flows", {"label": f"label={label}", "since": since, "limit": 2000})
        return rows

    async def _get(self, path: str, parameters: Parameters | None = None) -> Any:
        try:
            response = await self._http.get(path, params=parameters)
        except httpx.TransportError as error:
            raise unreachable(self._url, error) from None
        return decoded(response, self._url)
