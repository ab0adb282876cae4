"""The rows of the list of jobs: shown, changed by their buttons, and kept up to date."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import RedirectResponse
from fastapi.sse import format_sse_event
from starlette.responses import HTMLResponse, Response

from api.access import Caller, ReaderDep, SubmitterDep
from api.board import Board
from api.event_stream import EventStream, OpenStreamsDep, Permit
from api.pages.filters import PageFilterDep
from api.pages.rendering import HEADERS, rendered
from api.pages.route import PageRoute
from api.routes import JobId
from api.routes.jobs import cancel, get_job, list_jobs, retry
from api.schemas.jobs import Job, StepProgress
from api.services import Services, ServicesDep
from service.domain.job import JOB_ID_PATTERN
from service.domain.spec.job import JobSpec
from service.domain.states import TERMINAL, JobState, Step
from service.errors import JobNotFound
from service.store.listing import JobFilter
from service.store.news import Progress

MAX_NEW_JOBS = 50
"""That appear above a list while it is open."""
MAX_SHOWN = 200
MAX_PLACE = 2000
"""Characters of the query to return to."""
SHOWN_PATTERN = rf"{JOB_ID_PATTERN[:-1]}\.({'|'.join(JobState)})\.[0-9]{{1,9}}\.[0-9]{{1,18}}$"
"""A job and its progress, as a list names them to its stream."""

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@dataclass(frozen=True)
class Row:
    """A job in the list, as its template shows it."""

    job: Job

    @property
    def step(self) -> StepProgress | None:
        """The step under way; None if none is."""
        if self.job.state is not JobState.RUNNING:
            return None
        return next((each for each in self.job.steps if each.finished_at is None), None)

    @property
    def share(self) -> float:
        """The part of the attempt's steps that is done; steps count alike."""
        done = [each.done / each.total for each in self.job.steps if each.total]
        return min(sum(done) / len(Step), 1.0)

    @property
    def seconds(self) -> float | None:
        """How long the last attempt took, once the job has ended."""
        if self.job.finished_at is None or self.job.started_at is None:
            return None
        return (self.job.finished_at - self.job.started_at).total_seconds()

    @property
    def targets(self) -> list[str]:
        """The names of its artifacts; none if a newer version wrote the specification."""
        spec = self.job.spec
        return [each.name for each in spec.targets] if isinstance(spec, JobSpec) else []

    @property
    def can_cancel(self) -> bool:
        return self.job.state in (JobState.QUEUED, JobState.RUNNING)

    @property
    def can_retry(self) -> bool:
        return self.job.state is JobState.FAILED

    @property
    def has_ended(self) -> bool:
        return self.job.state in TERMINAL


def progress_of(job: Job) -> Progress:
    """The same as `News.standing` says of a job."""
    finished = sum(each.finished_at is not None for each in job.steps)
    done = sum(each.done for each in job.steps)
    return Progress(job.state, job.attempt, done + len(job.steps) + finished)


def stream_query(jobs: Sequence[Job], chosen: Sequence[tuple[str, str]], *, is_first: bool) -> str:
    """The query of the stream that keeps a list of these jobs up to date.

    Only on the first page do new jobs appear.
    """
    shown = [("shown", ".".join(map(str, (job.id, *progress_of(job))))) for job in jobs]
    newest = [("newest", jobs[0].id if jobs else "job-")] if is_first else []
    return urlencode([*shown, *newest, *chosen])


def _row_html(job: Job, request: Request, *, focused: bool = False) -> str:
    return rendered(request, "job_row.html", row=Row(job), focused=focused)


async def _board(request: Request) -> Board:
    board: Board = request.state.board
    return board


@dataclass
class OpenList:
    """The list on one open page."""

    request: Request
    services: Services
    caller: Caller
    wanted: JobFilter
    shown: dict[str, Progress]
    newest: str | None

    def __post_init__(self) -> None:
        self.tenant = self.caller.tenant
        self._since = self.newest or ""

    def frames(self, changed: Collection[str], newest: str | None) -> bytes:
        """Rows by the ids of their jobs, empty ones for deleted jobs; and all new rows."""
        frames, shown = [], dict(self.shown)
        for job_id in changed:
            try:
                job = get_job(job_id, self.request, self.services, self.caller)
            except JobNotFound:
                del shown[job_id]
                frames.append(_frame(job_id, ""))
            else:
                shown[job_id] = progress_of(job)
                frames.append(_frame(job_id, _row_html(job, self.request)))
        if newest is not None:
            new = self._new_jobs()
            shown |= {job.id: progress_of(job) for job in new}
            rows = (_row_html(job, self.request) for job in new)
            frames.append(_frame("new", "".join(rows)))
            self.newest = newest
        self.shown = shown
        return b"".join(frames)

    def _new_jobs(self) -> list[Job]:
        found = list_jobs(self.request, self.services, self.caller, self.wanted, MAX_NEW_JOBS, None)
        return [job for job in found.jobs if job.id > self._since]


def _frame(event: str, html: str) -> bytes:
    return format_sse_event(data_str=html, event=event)


@router.get("/rows")
def rows(
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    wanted: PageFilterDep,
    board: Annotated[Board, Depends(_board)],
    streams: OpenStreamsDep,
    shown: Annotated[
        tuple[Annotated[str, Query(pattern=SHOWN_PATTERN)], ...], Query(max_length=MAX_SHOWN)
    ] = (),
    newest: Annotated[str | None, Query(max_length=32)] = None,
) -> Response:
    """A stream of rows that have changed since the page was made, each under its job's id.

    An event `new` has all rows of jobs above `newest`. So a stream may break and begin again with
    the same query.
    """
    streams.check_room(caller.tenant)
    board.check_room(len(shown))
    known = dict(map(_shown, shown))
    open_list = OpenList(request, services, caller, wanted, known, newest)
    permit = Permit(caller.principal)
    return EventStream(board.follow(open_list, permit), streams, permit)


def _shown(text: str) -> tuple[str, Progress]:
    job_id, state, attempt, done = text.split(".")
    return job_id, Progress(JobState(state), int(attempt), int(done))


Place = Annotated[str, Form(alias="list", max_length=MAX_PLACE)]


@router.post("/rows/{job_id}/cancel", name="cancel")
def cancel_row(
    job_id: JobId, request: Request, services: ServicesDep, caller: SubmitterDep, place: Place = ""
) -> Response:
    """Cancel the job, and show its row or the list that had it."""
    return _changed(cancel(job_id, request, services, caller), request, place)


@router.post("/rows/{job_id}/retry", name="retry")
def retry_row(
    job_id: JobId, request: Request, services: ServicesDep, caller: SubmitterDep, place: Place = ""
) -> Response:
    """Queue the failed job again, and show its row or the list that had it."""
    return _changed(retry(job_id, request, services, caller), request, place)


def _changed(job: Job, request: Request, query: str) -> Response:
    request.state.subject = job.links.self
    if "hx-request" in request.headers:
        return HTMLResponse(_row_html(job, request, focused=True), headers=HEADERS)
    root: str = request.scope.get("root_path", "")
    return RedirectResponse(f"{root}/?{query}" if query else f"{root}/", 303)
