"""What the buttons of a job's page do: cancel, retry, delete."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from api.access import SubmitterDep
from api.pages.route import PageRoute
from api.routes import JobId
from api.routes import jobs as routes
from api.services import ServicesDep

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.post("/jobs/{job_id}/cancel")
def cancel(
    job_id: JobId, request: Request, services: ServicesDep, caller: SubmitterDep
) -> Response:
    """Cancel the job, and show it."""
    return _shown(request, routes.cancel(job_id, request, services, caller).id)


@router.post("/jobs/{job_id}/retry")
def retry(job_id: JobId, request: Request, services: ServicesDep, caller: SubmitterDep) -> Response:
    """Queue the failed job again, and show it."""
    return _shown(request, routes.retry(job_id, request, services, caller).id)


@router.post("/jobs/{job_id}/delete")
def delete(job_id: JobId, request: Request, caller: SubmitterDep) -> Response:
    """Delete the ended job, and show those that remain."""
    routes.delete(job_id, caller)
    return _to(request, job_id, "/")


def _shown(request: Request, job_id: str) -> Response:
    return _to(request, job_id, f"/jobs/{job_id}")


def _to(request: Request, job_id: str, place: str) -> Response:
    root: str = request.scope.get("root_path", "")
    request.state.subject = f"{root}/v1/jobs/{job_id}"  # in the audit log, as the API's
    return RedirectResponse(f"{root}{place}", 303)
