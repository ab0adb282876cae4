"""The page of one job, and its parts by themselves: htmx brings these up to date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.access import ReaderDep
from api.pages.job.artifacts import checked, shown_artifacts
from api.pages.job.logs import LogDep, log_values
from api.pages.job.parts import (
    CHANGES,
    head_values,
    json_text,
    shown_events,
    specification,
    steps_values,
)
from api.pages.rendering import page
from api.pages.route import PageRoute
from api.routes import JobId
from api.routes.events import MAX_EVENT_ID
from api.routes.jobs import get_job
from api.schemas.jobs import Job
from api.services import Services, ServicesDep
from service.cli.job_file import job_yaml
from service.domain.job import Event
from service.domain.states import JobState
from service.report.view import ReportView
from service.store.users import Users

EVENTS_PER_PAGE = 25
MAX_NEW_EVENTS = 200
"""That appear above the others at a time."""

router = APIRouter(include_in_schema=False, route_class=PageRoute)

EventId = Annotated[int, Query(ge=0, le=MAX_EVENT_ID)]


@router.get("/jobs/{job_id}")
def job(job_id: JobId, request: Request, services: ServicesDep, caller: ReaderDep) -> Response:
    """What the job does, and what it has made."""
    steps = steps_values(job_id, request, services, caller)
    shown: Job = steps["job"]
    values = {
        **steps,
        **head_values(shown, steps["told"]),
        **_results(shown, request, services, caller.users),
        **_event_page(steps["told"]),
        "changes": CHANGES,
        "specification": json_text(specification(shown)),
    }
    return page(request, "job.html", **values)


@router.get("/jobs/{job_id}/head")
def head(job_id: JobId, request: Request, services: ServicesDep, caller: ReaderDep) -> Response:
    """Its state, what to do about a failure, and its buttons."""
    last = caller.users.recent_events(job_id, limit=1)
    shown = get_job(job_id, request, services, caller)
    return page(request, "job_head.html", **head_values(shown, last), arrives=True)


@router.get("/jobs/{job_id}/results")
def results(job_id: JobId, request: Request, services: ServicesDep, caller: ReaderDep) -> Response:
    """Its pictures, tables and artifacts, once it has succeeded."""
    shown = get_job(job_id, request, services, caller)
    return page(
        request, "job_results.html", job=shown, **_results(shown, request, services, caller.users)
    )


@router.get("/jobs/{job_id}/artifacts")
def artifacts(
    job_id: JobId, request: Request, services: ServicesDep, caller: ReaderDep
) -> Response:
    """Its artifacts, as the bucket has them."""
    shown = get_job(job_id, request, services, caller)
    found = caller.users.artifacts(job_id) if shown.state is JobState.SUCCEEDED else ()
    listed = shown_artifacts(
        job_id, found, caller.users.report(job_id) or {}, services.storage.bucket, _url(request)
    )
    asked = list(checked(job_id, listed, found, services.storage))
    return _part(request, "job_artifacts.html", job=shown, artifacts=asked)


@router.get("/jobs/{job_id}/events")
def events(
    job_id: JobId,
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    before: EventId | None = None,
    after: EventId | None = None,
) -> Response:
    """The events before one, or the new ones after it."""
    shown = get_job(job_id, request, services, caller)
    if after is None:
        found = caller.users.recent_events(job_id, before=before, limit=EVENTS_PER_PAGE + 1)
        return _part(request, "job_events.html", job=shown, **_event_page(found))
    new = caller.users.events(job_id, after=after, limit=MAX_NEW_EVENTS)
    values: dict[str, Any] = {
        "events": shown_events(new[::-1]),
        "last_event": new[-1].id if new else after,
    }
    return page(request, "job_new_events.html", job=shown, **values)


@router.get("/jobs/{job_id}/request.yaml")
def request_file(
    job_id: JobId, request: Request, services: ServicesDep, caller: ReaderDep
) -> Response:
    """The job's request, without its defaults, as a file for `eigenpress submit --file`."""
    body = get_job(job_id, request, services, caller).request()
    headers = {
        "Content-Disposition": f'attachment; filename="{job_id}.yaml"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(job_yaml(body), media_type="application/yaml", headers=headers)


@router.get("/jobs/{job_id}/logs")
def logs(
    job_id: JobId, request: Request, services: ServicesDep, caller: ReaderDep, wanted: LogDep
) -> Response:
    """The end of a log, or what comes before or after a part of it."""
    values = log_values(caller.users.get(job_id), wanted, services.logs)
    job = get_job(job_id, request, services, caller)
    follows = "hx-request" in request.headers
    return _part(request, "job_log.html", job=job, follows=follows, **values)


def _part(request: Request, template: str, **values: Any) -> Response:
    """A part of a job's page, for htmx; or for a browser without scripts, as a page of its own."""
    if "hx-request" in request.headers:
        return page(request, template, **values)
    return page(request, "job_part.html", part=template, **values)


def _event_page(found: Sequence[Event]) -> dict[str, Any]:
    """The first of these, and the id before which there are others."""
    shown = found[:EVENTS_PER_PAGE]
    return {
        "events": shown_events(shown),
        "older": shown[-1].id if len(found) > len(shown) else None,
    }


def _results(job: Job, request: Request, services: Services, users: Users) -> dict[str, Any]:
    """The report and the artifacts, as the database knows them; neither without a success."""
    report = users.report(job.id) if job.state is JobState.SUCCEEDED else None
    if report is None:
        return {"report": None, "artifacts": []}
    found = users.artifacts(job.id)
    return {
        "report": ReportView.of(report),
        "artifacts": shown_artifacts(job.id, found, report, services.storage.bucket, _url(request)),
    }


def _url(request: Request) -> str:
    return str(request.base_url).rstrip("/")
