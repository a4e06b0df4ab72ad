"""The watcher's part of the HTTP API."""

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query
from pydantic import Field

from eastwest.bus import messages
from eastwest.errors import ConfigError, NotFoundError, RefusedError
from eastwest.manager import times
from eastwest.manager.api import NoQuery
from eastwest.manager.models import Error
from eastwest.manager.views import rfc3339
from eastwest.store.watching import NS
from eastwest.watch import models
from eastwest.watch.definition import Definition
from eastwest.watch.document import document
from eastwest.watch.watcher import Watcher

_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Error}}
_LONGEST_SILENCE = 365 * 86400


class AlertQuery(NoQuery):
    """`all`: also those that are over; `since`: of these, how far back."""

    all: bool = Field(False, description="true or false")
    since: str = Field("1d", max_length=64, description="a time")


def router(watcher: Watcher) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api/v1")
    _add_alerts(routes, watcher)
    _add_watches(routes, watcher)
    _add_silences(routes, watcher)
    return routes


def _add_alerts(routes: APIRouter, watcher: Watcher) -> None:
    @routes.get("/alerts")
    async def alerts(query: Annotated[AlertQuery, Query()]) -> list[models.Alert]:
        """Open alerts, the latest first; then, with `all`, those that are over."""
        since = times.parse(query.since, time.time_ns())
        found = await watcher.alerts(since) if query.all else watcher.open_alerts
        return [models.Alert.model_validate(document(alert)) for alert in found]


def _add_watches(routes: APIRouter, watcher: Watcher) -> None:
    @routes.get("/watches")
    async def watches(query: Annotated[NoQuery, Query()]) -> list[models.Watch]:
        """Watches and how they stand."""
        return [_watch(watcher, watch) for watch in watcher.watches.all]

    @routes.post("/watches")
    async def add(body: models.WatchBody, query: Annotated[NoQuery, Query()]) -> models.Watch:
        """Add a watch, or replace the one of its name."""
        try:
            watch = msgspec.convert(body.model_dump(), Definition)
        except ConfigError as error:
            raise RefusedError(error.what, error.remedy) from None
        await watcher.watches.add(watch)
        return _watch(watcher, watch)

    @routes.delete("/watches/{name}", responses=_MISSING)
    async def remove(
        name: Annotated[str, Path(max_length=64)], query: Annotated[NoQuery, Query()]
    ) -> models.Removed:
        """Remove a watch; its alerts end."""
        await watcher.watches.remove(name)
        return models.Removed(removed=name)


def _add_silences(routes: APIRouter, watcher: Watcher) -> None:
    @routes.get("/silences")
    async def silences(query: Annotated[NoQuery, Query()]) -> list[models.Silence]:
        """Silences that hold, the first to end first."""
        return [_silence(silence) for silence in watcher.silences.all]

    @routes.post("/silences", responses=_MISSING)
    async def add(body: models.SilenceBody, query: Annotated[NoQuery, Query()]) -> models.Silence:
        """Tell nobody of an alert, or of the alerts of some workloads, for a while."""
        now = time.time_ns()
        seconds = times.duration(body.duration)
        if not 0 < seconds <= _LONGEST_SILENCE:
            raise RefusedError(f"'{body.duration}' is out of range", "choose up to 365d")
        if body.alert and body.alert not in {alert.id for alert in watcher.open_alerts}:
            raise NotFoundError(f"there is no open alert '{body.alert}'", "see: eastwest alerts")
        return _silence(await watcher.silences.add(now + seconds * NS, body.alert, body.match, body.comment))

    @routes.delete("/silences/{name}", responses=_MISSING)
    async def remove(
        name: Annotated[str, Path(max_length=64)], query: Annotated[NoQuery, Query()]
    ) -> models.Removed:
        """End a silence."""
        await watcher.silences.remove(name)
        return models.Removed(removed=name)


def _watch(watcher: Watcher, watch: Definition) -> models.Watch:
    unknown = watcher.unknown(watch.name)
    alerts = sum(alert.watch == watch.name for alert in watcher.open_alerts)
    return models.Watch.model_validate(
        msgspec.to_builtins(watch)
        | {
            "source": watcher.watches.source(watch.name),
            "state": "firing" if alerts else "unknown" if unknown else "ok",
            "workloads": watcher.matched(watch),
            "alerts": alerts,
            "unknown": {str(label): why for label, why in unknown.items()},
        }
    )


def _silence(silence: messages.Silence) -> models.Silence:
    shown = msgspec.to_builtins(silence) | {"until": rfc3339(silence.until)}
    return models.Silence.model_validate(shown)
