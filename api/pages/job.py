"""The page of one job."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.access import ReaderDep
from api.pages.rendering import page
from api.pages.route import PageRoute
from api.routes import JobId
from api.routes.jobs import get_job
from api.services import ServicesDep
from service.domain.states import JobState
from service.report.view import ReportView

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/jobs/{job_id}")
def job(job_id: JobId, request: Request, services: ServicesDep, caller: ReaderDep) -> Response:
    """What the job does, and what it has made."""
    shown = get_job(job_id, request, services, caller)
    found = caller.users.report(job_id) if shown.state is JobState.SUCCEEDED else None
    view = None if found is None else ReportView.of(found)
    return page(request, "job.html", job=shown, report=view)
