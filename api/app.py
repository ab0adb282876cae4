"""The application: ``uvicorn --factory api.app:create_app``."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import cache
from typing import Any, TypedDict

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi_offline import FastAPIOffline

from api import errors
from api.audit import AuditLog
from api.board import Board
from api.browsers import SameSite
from api.event_stream import OpenStreams
from api.feed import Feed
from api.limits import BodyLimit
from api.log_feed import LogFeed
from api.metrics.metrics import Metrics
from api.metrics.timing import Note, Timed
from api.pages import assets as page_assets
from api.pages import compare as compare_page
from api.pages import jobs as jobs_page
from api.pages import new as new_page
from api.pages import rows as job_rows
from api.pages import sign_in
from api.pages.job import actions as job_actions
from api.pages.job import live as job_live
from api.pages.job import log_stream as job_log_stream
from api.pages.job import page as job_page
from api.request_ids import Named
from api.routes import (
    artifacts,
    audit,
    credentials,
    datasets,
    estimates,
    events,
    health,
    jobs,
    keys,
    logs,
    metrics,
    tenants,
    webhooks,
)
from api.services import Services, open_services
from api.traced import Traced
from api.versions import Versioned
from service.client.versions import VERSION
from service.errors import DatabaseUnavailable
from service.settings import Settings
from service.signals import calling_on_signals
from service.tracing import is_tracing, start_tracing

DESCRIPTION = """
Post a job, watch its steps, download the compressed models.

Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problems with a stable `code`
and, where a field of the request is at fault, its name in `param`.

Every answer has the server's version in the header `Eigenpress-Version`, and in `X-Request-ID` the
name under which the server's log has the request: the one that the request brought, or a new one.
"""

TAGS = [
    {"name": "jobs", "description": "Submit, follow, change and cancel compression jobs."},
    {"name": "estimates", "description": "What a job would make and take, without running it."},
    {"name": "results", "description": "The artifacts and the report of a job that succeeded."},
    {"name": "datasets", "description": "Texts that are uploaded once, for any number of jobs."},
    {"name": "webhooks", "description": "Messages to your servers about the jobs' events."},
    {"name": "access", "description": "API keys, tenants and the audit log; for administrators."},
    {"name": "health", "description": "For load balancers and operators."},
]


SWITCH_SECONDS = 0.0005
"""How long a thread that checks a submission runs before one that answers gets its turn; an answer
takes several turns."""


ROUTES = (
    jobs,
    events,
    logs,
    estimates,
    artifacts,
    datasets,
    webhooks,
    keys,
    tenants,
    credentials,
    audit,
    health,
    metrics,
)
PAGES = (
    jobs_page,
    job_rows,
    new_page,
    compare_page,
    job_page,
    job_live,
    job_log_stream,
    job_actions,
    sign_in,
    page_assets,
)


class State(TypedDict):
    """The state that the lifespan gives to every request."""

    services: Services
    feed: Feed
    streams: OpenStreams
    metrics: Metrics
    answered: Note
    board: Board
    log_feed: LogFeed


def create_app(
    settings: Settings | None = None,
    open_services: Callable[[Settings], AbstractContextManager[Services]] = open_services,
) -> FastAPI:
    """The API on ``settings``, or on those of the environment."""
    chosen = settings or Settings()
    start_tracing("eigenpress-api")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        sys.setswitchinterval(SWITCH_SECONDS)
        with open_services(chosen) as services:
            news = services.store.news
            async with (
                Feed(news.after) as feed,
                Board(news.standing) as board,
                LogFeed() as log_feed,
                OpenStreams(services.store.keys.valid) as streams,
            ):
                # A server waits for its streams before it ends the lifespan.
                with (
                    calling_on_signals(feed.close),
                    calling_on_signals(board.close),
                    calling_on_signals(log_feed.close),
                ):
                    measured = Metrics(services.store.statistics, streams.count)
                    await run_in_threadpool(_begin, measured)
                    _freeze()
                    yield {
                        "services": services,
                        "feed": feed,
                        "streams": streams,
                        "board": board,
                        "log_feed": log_feed,
                        "metrics": measured,
                        "answered": measured.answered,
                    }

    # FastAPI's own /docs loads Swagger UI from a CDN: behind a firewall the page stays empty.
    app = FastAPIOffline(
        title="Eigenpress",
        summary="Compression of large language models as a service",
        description=DESCRIPTION,
        version=VERSION,
        openapi_tags=TAGS,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call it
        lifespan=lifespan,
    )
    app.add_middleware(AuditLog)
    app.add_middleware(BodyLimit, streamed=datasets.STREAMED)
    app.add_middleware(SameSite, hosts=chosen.served_hosts)
    app.add_middleware(Versioned)
    app.add_middleware(Timed)
    if is_tracing():
        app.add_middleware(Traced)
    app.add_middleware(Named)  # the outermost one
    errors.install(app)
    for routes in (*ROUTES, *PAGES):
        app.include_router(routes.router)
    _declare_problems(app)
    return app


@cache
def _freeze() -> None:
    """Once in a process: a full collection of what the start has made takes 0.1 s without answers.

    (To ask Python whether anything is frozen takes long afterwards, for it counts.)
    """
    gc.freeze()


def _begin(measured: Metrics) -> None:
    """Count events from now on; while the database is away, from the first time it answers."""
    with suppress(DatabaseUnavailable):
        measured.begin()


def _declare_problems(app: FastAPI) -> None:
    """Give problem responses their media type in the OpenAPI document; FastAPI knows only JSON."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        operations = (each for path in schema["paths"].values() for each in path.values())
        for response in (each for op in operations for each in op["responses"].values()):
            body = response.get("content", {}).get("application/json", {})
            if body.get("schema", {}).get("$ref", "").endswith("/Problem"):
                response["content"] = {errors.PROBLEM_JSON: body}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
