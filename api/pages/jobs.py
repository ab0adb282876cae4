"""The page with the list of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.access import ReaderDep
from api.pages.rendering import page
from api.pages.route import PageRoute
from api.routes.job_filters import JobFilterDep
from api.routes.jobs import list_jobs
from api.services import ServicesDep

JOBS_PER_PAGE = 50

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/")
def jobs(
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    wanted: JobFilterDep,
    cursor: Annotated[str | None, Query()] = None,
) -> Response:
    """The tenant's jobs, newest first."""
    found = list_jobs(request, services, caller, wanted, JOBS_PER_PAGE, cursor)
    return page(request, "jobs.html", jobs=found.jobs, next_cursor=found.next_cursor)
