"""A tap at the API, as who reads it sees it: one that others ordered, or one of our own.

Our own is a short order that is given again and again; so it is gone seconds after this process was killed.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from eastwest.cli.client import decoded, headers, transport, unreachable
from eastwest.cli.render import Row
from eastwest.errors import RefusedError

LEASE_SECONDS = 10
RENEW_SECONDS = 3.0
SETTLE_SECONDS = 5.0
_RETRY_SECONDS = 0.1


class Standing:
    """A tap that others ordered; it goes on when nobody reads it here. `selector`: once it is entered."""

    ours = False
    """Whether it is here for this reader alone, and ends with it."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._path = f"taps/{quote(name, safe='')}"
        self.selector = ""
        self._http = httpx.AsyncClient(
            base_url=f"{url}/api/v1/", headers=headers(url), timeout=20.0, **transport(url)
        )
        self.workloads = 0
        self._before: Row | None = None

    async def __aenter__(self) -> Self:
        """Raises RefusedError where there is no such tap, or the order is not taken."""
        try:
            answer = await self._begin()
        except BaseException:
            await self._http.aclose()
            raise
        self.workloads, self.selector = answer["workloads"], answer["selector"]
        return self

    async def _begin(self) -> Row:
        answer: Row = await self._ask("GET", self._path)
        self._before = await self._account()
        return answer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.remove()
        finally:
            await self._http.aclose()

    async def remove(self) -> None:
        """Have nothing copied for us any more."""

    async def status(self) -> Row | None:
        """What became of it; None where that cannot be said now."""
        with suppress(RefusedError):
            answer: Row = await self._ask("GET", self._path)
            return answer
        return None

    async def ledger(self) -> Row | None:
        """Where its packets are, with those that readers missed since it was entered."""
        with suppress(RefusedError):
            if found := await self._account():
                missed = self._before["missed_packets"] if self._before else 0
                return found | {"missed_packets": found["missed_packets"] - missed}
        return None

    async def _account(self) -> Row | None:
        rows = await self._ask("GET", "ledger/taps", parameters={"tap": self._name})
        return rows[0] if rows else None

    async def packets(self) -> AsyncGenerator[bytes, None]:
        """The stream. Raises RefusedError where it breaks."""
        patience = httpx.Timeout(20.0, read=None)
        try:
            async with self._http.stream("GET", f"{self._path}/stream", timeout=patience) as response:
                if not response.is_success:
                    await response.aread()
                    decoded(response, self._url)
                async for chunk in response.aiter_raw():
                    yield chunk
        except httpx.TransportError as error:
            raise unreachable(self._url, error) from None

    async def _ask(
        self, method: str, path: str, document: object = None, parameters: dict[str, str] | None = None
    ) -> Any:
        try:
            response = await self._http.request(method, path, json=document, params=parameters)
        except httpx.TransportError as error:
            raise unreachable(self._url, error) from None
        return decoded(response, self._url)


class Brief(Standing):
    """A tap of our own, renewed while it is entered."""

    ours = True

    def __init__(self, url: str, order: Row) -> None:
        super().__init__(url, order["name"])
        self._order = order | {"store": False, "for": f"{LEASE_SECONDS}s"}
        self._renewing: asyncio.Task[None] | None = None
        self._removed = False
        self._begun = False
        """Whether any host has copied for it."""

    async def _begin(self) -> Row:
        answer: Row = await self._ask("POST", "taps", self._order)
        self._renewing = asyncio.create_task(self._renew())
        return answer

    async def remove(self) -> None:
        """Where that cannot be said, it ends by itself soon."""
        if self._renewing is not None:
            self._renewing.cancel()
        if not self._removed:
            self._removed = True
            with suppress(RefusedError):
                await self._ask("DELETE", self._path)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with suppress(RefusedError):  # what became of it, the stream tells
                await self._ask("POST", "taps", self._order)

    async def status(self) -> Row | None:
        answer = await super().status()
        self._begun |= answer is not None and any(h["points"] or h["matched"] for h in answer["hosts"])
        return answer

    async def ledger(self) -> Row | None:
        """Once nothing is pending, or when it should be long ago; None where no host copied for it."""
        found: Row | None = None
        end = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < end:
            with suppress(RefusedError):
                found = await self._account() or found
                if not found and not self._begun:
                    break
                if found and found["balanced"] and not found["pending_packets"]:
                    break
            await asyncio.sleep(_RETRY_SECONDS)
        return found
