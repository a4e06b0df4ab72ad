"""Routes of the API about suspect traffic and its enforcement."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from eastwest.manager import models
from eastwest.manager.api import NoQuery
from eastwest.manager.suspects import SuspectDesk

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": models.Error}}


class WhatQuery(BaseModel):
    """`what`: a prefix or flow."""

    model_config = ConfigDict(extra="forbid")

    what: str = Field(max_length=200, description="a prefix or a flow of at most 200 characters")


class SelectorQuery(BaseModel):
    """`selector`: as it was enforced."""

    model_config = ConfigDict(extra="forbid")

    selector: str = Field(max_length=1000, description="a selector of at most 1000 characters")


def suspect_routes(desk: SuspectDesk) -> APIRouter:
    """Declare, list and take back what is suspect; have it dropped, and see where it is."""
    router = APIRouter()
    _add_suspects(router, desk)
    _add_enforcement(router, desk)
    return router


def _add_suspects(router: APIRouter, desk: SuspectDesk) -> None:
    @router.get("/api/v1/suspect")
    async def suspects(query: Annotated[NoQuery, Query()]) -> models.Suspects:
        """What is suspect, with its hits."""
        return await desk.suspects()

    @router.post("/api/v1/suspect")
    async def declare(order: models.SuspectOrder, query: Annotated[NoQuery, Query()]) -> models.Suspect:
        """Declare a prefix or a flow suspect; again: with another reason or time."""
        return await desk.declare(order)

    @router.delete("/api/v1/suspect", responses=_NOT_FOUND)
    async def take_back(query: Annotated[WhatQuery, Query()]) -> models.Suspect:
        """It is not suspect any more, unless a file says so."""
        return await desk.take_back(query.what)


def _add_enforcement(router: APIRouter, desk: SuspectDesk) -> None:
    @router.get("/api/v1/enforcement")
    async def enforcement(query: Annotated[NoQuery, Query()]) -> models.Enforcement:
        """Whose suspect packets are dropped, and where that is refused."""
        return await desk.enforcement()

    @router.post("/api/v1/enforcement")
    async def enforce(
        order: models.EnforceOrder, query: Annotated[NoQuery, Query()]
    ) -> models.EnforceOrdered:
        """Drop the suspect packets of the selected workloads, those there are and those to come."""
        return await desk.enforce(order)

    @router.delete("/api/v1/enforcement", responses=_NOT_FOUND)
    async def release(query: Annotated[SelectorQuery, Query()]) -> models.EnforceOrdered:
        """Drop nothing any more by this order."""
        return await desk.release(query.selector)
