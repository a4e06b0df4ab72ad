"""The HTTP API. Each route is one question to the backend; every refusal is {"error", "remedy"}."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from eastwest.errors import BusError, EastwestError, NotFoundError, RefusedError, StoreError
from eastwest.manager import models
from eastwest.manager.backend import Backend

_STATUS: tuple[tuple[type[EastwestError], int], ...] = (
    (NotFoundError, 404),
    (RefusedError, 400),
    (BusError, 503),
    (StoreError, 503),
)
_LIMIT = 10_000
_FEW = 20
_MAX_LIMIT = 1_000_000
_MAX_NAME = 255

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""https://prometheus.io/docs/instrumenting/exposition_formats"""


class NoQuery(BaseModel):
    """No parameters: one that is not known is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid")


class AllQuery(NoQuery):
    """`all`: also what is gone."""

    all: bool = Field(False, description="true or false")


class TimeQuery(NoQuery):
    """`label`: a selector; `since`, `until`: 30s, 5m, 2h, 1d (ago) or RFC 3339."""

    label: str | None = Field(None, max_length=1000, description="at most 1000 characters long")
    since: str = Field("5m", max_length=64, description="a time")
    until: str | None = Field(None, max_length=64, description="a time")


class FlowQuery(TimeQuery):
    """`limit`: at most so many, the latest."""

    limit: int = Field(_LIMIT, ge=1, le=_MAX_LIMIT, description=f"1 to {_MAX_LIMIT}")


class TalkerQuery(FlowQuery):
    """`since`: at first all that is kept."""

    since: str = Field("1970-01-01T00:00:00Z", max_length=64, description="a time")
    limit: int = Field(_FEW, ge=1, le=_MAX_LIMIT, description=f"1 to {_MAX_LIMIT}")


# With their content type, or a route that answers with lines or text would say that its refusals do too.
REFUSAL = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused: what was asked, or who asked", "content": REFUSAL},
    503: {"description": "The store or the bus does not answer", "content": REFUSAL},
}


class Lines(Response):
    """JSON lines (https://jsonlines.org)."""

    media_type = "application/x-ndjson"


def create_app(backend: Backend, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The application, with other rooms' routes; its OpenAPI document is at /openapi.json."""
    app = FastAPI(
        title="eastwest",
        description="Labels, counters, flows and the ledger of the traffic between workloads.",
        version="1",
        docs_url=None,  # its page would come from other people's servers
        redoc_url=None,
        responses=_REFUSALS,
    )
    _add_lists(app, backend)
    _add_flows(app, backend)
    _add_facts(app, backend)
    _add_metrics(app, backend)
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(EastwestError, _refuse)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _add_lists(app: FastAPI, backend: Backend) -> None:
    @app.get("/api/v1/labels")
    async def labels(query: Annotated[AllQuery, Query()]) -> list[models.Label]:
        """Labels with their counters; label 0 is what no workload claims."""
        return await backend.labels(query.all)

    @app.get("/api/v1/workloads")
    async def workloads(query: Annotated[AllQuery, Query()]) -> list[models.Workload]:
        """Workloads with all that is known of them."""
        return await backend.workloads(query.all)

    @app.get("/api/v1/ports")
    async def ports(query: Annotated[NoQuery, Query()]) -> list[models.Port]:
        """Ports of workloads, and the hosts' own interfaces."""
        return await backend.ports()

    @app.get("/api/v1/hosts")
    async def hosts(query: Annotated[NoQuery, Query()]) -> list[models.Host]:
        """The last report of every probe."""
        return await backend.hosts()

    @app.get("/api/v1/ledger")
    async def ledger(query: Annotated[NoQuery, Query()]) -> list[models.LedgerEntry]:
        """Where every packet of every label is."""
        return await backend.ledger()

    @app.get("/api/v1/health")
    async def health(query: Annotated[NoQuery, Query()]) -> models.Health:
        """Whether the server can do its work, what it has done, and what it costs."""
        return await backend.health()


def _add_flows(app: FastAPI, backend: Backend) -> None:
    @app.get("/api/v1/flows", response_model=list[models.Flow])
    async def flows(query: Annotated[FlowQuery, Query()]) -> Response:
        """Flows that were active between two times, the latest first."""
        document = await backend.flows(query.label, query.since, query.until, query.limit)
        return Response(document, media_type="application/json")

    @app.get("/api/v1/flows/lines", response_class=Lines)
    async def flow_lines(query: Annotated[FlowQuery, Query()]) -> Response:
        """The same as JSON lines: one flow a line."""
        return Lines(await backend.flows(query.label, query.since, query.until, query.limit, lines=True))

    @app.get("/api/v1/talkers", response_model=list[models.Talker])
    async def talkers(query: Annotated[TalkerQuery, Query()]) -> Response:
        """Pairs of addresses by what flows between them that ended in a time sum to, the most bytes first."""
        document = await backend.talkers(query.label, query.since, query.until, query.limit)
        return Response(document, media_type="application/json")

    @app.get("/api/v1/minutes")
    async def minutes(query: Annotated[TimeQuery, Query()]) -> list[models.Minute]:
        """Traffic by label and minute; kept longer than flows."""
        return await backend.minutes(query.label, query.since, query.until)


def _add_facts(app: FastAPI, backend: Backend) -> None:
    @app.post("/api/v1/labels/{name}", responses={404: {"model": models.Error}})
    async def set_facts(
        name: Annotated[str, Path(max_length=_MAX_NAME)],
        facts: models.Facts,
        query: Annotated[NoQuery, Query()],
    ) -> models.LabelFacts:
        """Say something of a workload, given by its name or label number; answers all that is said of it."""
        return await backend.set_facts(name, facts)


def _add_metrics(app: FastAPI, backend: Backend) -> None:
    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(query: Annotated[NoQuery, Query()]) -> Response:
        """Figures for Prometheus; every name is explained on the page itself."""
        return Response(await backend.metrics(), media_type=METRICS_TYPE)


def error(status: int, what: str, remedy: str) -> JSONResponse:
    """A refusal."""
    return JSONResponse({"error": what, "remedy": remedy}, status)


async def _refuse(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, EastwestError)
    status = next((code for kind, code in _STATUS if isinstance(exception, kind)), 400)
    return error(status, exception.what, exception.remedy)


async def _invalid(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, RequestValidationError)
    first: dict[str, Any] = exception.errors()[0]
    where, *path = (str(part) for part in first["loc"])
    name, kind = (path or [""])[0], first["type"]
    if kind == "extra_forbidden":
        body = "fact" if models.Facts in _asked(request) else "field"
        thing = body if where == "body" else "parameter"
        return error(400, f"there is no {thing} '{name}'", "see /openapi.json for those there are")
    must_be = _must_be(request, name)
    if kind == "json_invalid" or must_be is None:
        return error(400, "the request's body is no JSON object", 'send one like {"tenant": "red"}')
    return error(400, f"{name} must be {must_be}", "correct it and ask again")


def _must_be(request: Request, name: str) -> str | None:
    """What a field of this request must be, as its description says."""
    for model in _asked(request):
        for field_name, field in model.model_fields.items():
            if name == (field.alias or field_name):
                return field.description
    return f"at most {_MAX_NAME} characters long" if name == "name" else None


def _asked(request: Request) -> list[type[BaseModel]]:
    """The models that the request's route reads: its body's first."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return []
    parts = (*route.dependant.body_params, *route.dependant.query_params)
    kinds = (part.field_info.annotation for part in parts)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


async def _http(request: Request, exception: Exception) -> Response:
    assert isinstance(exception, HTTPException)
    remedy = "see /openapi.json for what there is"
    return error(exception.status_code, f"{request.url.path}: {exception.detail}", remedy)


async def _unexpected(request: Request, exception: Exception) -> Response:
    return error(500, "the server failed at this request", "see its log, and report it")
