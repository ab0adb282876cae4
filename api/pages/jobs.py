"""The page with the list of jobs."""

from __future__ import annotations

from typing import Annotated, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.access import ReaderDep
from api.pages.filters import PageFilterDep
from api.pages.rendering import page
from api.pages.route import PageRoute
from api.pages.rows import Row, stream_query
from api.routes.jobs import list_jobs
from api.services import ServicesDep
from service.domain.spec.job import Method
from service.domain.states import JobState
from service.store.listing import ALL

JOBS_PER_PAGE = 50

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/")
def jobs(
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    wanted: PageFilterDep,
    cursor: Annotated[str | None, Query()] = None,
) -> Response:
    """The tenant's jobs, newest first."""
    found = list_jobs(request, services, caller, wanted, JOBS_PER_PAGE, cursor)
    chosen = [(name, text) for name, text in request.query_params.multi_items() if name != "cursor"]
    return page(
        request,
        "jobs.html",
        rows=[Row(job) for job in found.jobs],
        stream=stream_query(found.jobs, chosen, is_first=cursor is None),
        wanted=wanted,
        asked=request.query_params,
        filtered=wanted != ALL,
        is_first=cursor is None,
        newest=urlencode(chosen),
        older=found.next_cursor and urlencode([*chosen, ("cursor", found.next_cursor)]),
        states=list(JobState),
        methods=get_args(Method),
    )
