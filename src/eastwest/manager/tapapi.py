"""Routes of the API about taps."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.types import Receive, Scope, Send

from eastwest.manager import models
from eastwest.manager.api import REFUSAL, NoQuery
from eastwest.manager.tapdesk import TapDesk
from eastwest.manager.tapmodels import NAME, Tap, TapLedgerEntry, TapWanted

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": models.Error}}
_NO_PACKETS: dict[int | str, dict[str, Any]] = {404: {"description": "No such tap", "content": REFUSAL}}

Name = Annotated[str, Path(max_length=63, pattern=NAME, description="a tap's name")]


class TapQuery(NoQuery):
    """`tap`: only this one."""

    tap: str | None = Field(None, max_length=63, description="a tap's name")


class Packets(StreamingResponse):
    """pcapng (draft-ietf-opsawg-pcapng), read from a tap for as long as somebody takes it."""

    media_type = "application/x-pcapng"

    def __init__(
        self, packets: AbstractAsyncContextManager[AsyncIterator[bytes]], status_code: int = 200
    ) -> None:
        super().__init__((), status_code)
        self._packets = packets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._packets as self.body_iterator:
            await super().__call__(scope, receive, send)


def tap_routes(desk: TapDesk) -> APIRouter:
    """Order copies, see what became of the orders, read the packets."""
    router = APIRouter(prefix="/api/v1")
    _add_orders(router, desk)
    _add_packets(router, desk)
    return router


def _add_orders(router: APIRouter, desk: TapDesk) -> None:
    @router.get("/taps")
    async def taps(query: Annotated[NoQuery, Query()]) -> list[Tap]:
        """Every tap, and what became of it."""
        return await desk.taps()

    @router.post("/taps")
    async def add(order: TapWanted, query: Annotated[NoQuery, Query()]) -> Tap:
        """Have packets copied; the same again: for another time."""
        return await desk.add(order)

    @router.get("/taps/{name}", responses=_NOT_FOUND)
    async def tap(name: Name, query: Annotated[NoQuery, Query()]) -> Tap:
        """A tap, and what became of it."""
        return await desk.tap(name)

    @router.delete("/taps/{name}", responses=_NOT_FOUND)
    async def remove(name: Name, query: Annotated[NoQuery, Query()]) -> Tap:
        """Copy nothing any more by this order."""
        return await desk.remove(name)


def _add_packets(router: APIRouter, desk: TapDesk) -> None:
    @router.get("/taps/{name}/stream", response_class=Packets, responses=_NO_PACKETS)
    async def stream(name: Name, query: Annotated[NoQuery, Query()]) -> Packets:
        """The packets of a tap from now on, as pcapng, until it is over. Asks for the token of changes."""
        desk.check_readable(name)
        return Packets(desk.stream(name))

    @router.get("/ledger/taps")
    async def ledger(query: Annotated[TapQuery, Query()]) -> list[TapLedgerEntry]:
        """Where every packet is that a tap matched."""
        return await desk.ledger(query.tap)
