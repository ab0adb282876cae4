"""The stream that keeps the steps on a job's page up to date."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.sse import format_sse_event
from starlette.responses import Response

from api.access import Caller, ReaderDep
from api.board import Board
from api.event_stream import EventStream, OpenStreamsDep, Permit
from api.frames import END
from api.pages.job.parts import steps_values
from api.pages.rendering import rendered
from api.pages.route import PageRoute
from api.pages.rows import progress_of
from api.routes import JobId
from api.services import Services, ServicesDep
from service.domain.states import TERMINAL, JobState
from service.errors import JobNotFound
from service.store.news import Progress

SHOWN_PATTERN = rf"^({'|'.join(JobState)})\.[0-9]{{1,9}}\.[0-9]{{1,18}}$"
"""The progress that a page shows."""

router = APIRouter(include_in_schema=False, route_class=PageRoute)


async def _board(request: Request) -> Board:
    board: Board = request.state.board
    return board


@dataclass
class OpenJob:
    """The steps on one open page: an `OpenList` of one job."""

    request: Request
    services: Services
    caller: Caller
    shown: dict[str, Progress]
    newest: str | None = None

    def __post_init__(self) -> None:
        self.tenant = self.caller.tenant

    def frames(self, changed: Collection[str], newest: str | None) -> bytes:  # noqa: ARG002
        """The steps as they are now, and `end` if they will not change any more."""
        frames = b""
        for job_id in changed:
            try:
                values = steps_values(job_id, self.request, self.services, self.caller)
            except JobNotFound:
                self.shown = {}
                return format_sse_event(data_str="", event=END)
            job = values["job"]
            self.shown = {job_id: progress_of(job)}
            html = rendered(self.request, "job_steps.html", **values)
            frames += format_sse_event(data_str=html, event="steps")
            if job.state in TERMINAL:
                frames += format_sse_event(data_str="", event=END)
        return frames


@router.get("/jobs/{job_id}/live")
def live(
    job_id: JobId,
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    board: Annotated[Board, Depends(_board)],
    streams: OpenStreamsDep,
    shown: Annotated[str, Query(pattern=SHOWN_PATTERN)],
) -> Response:
    """The steps, each time that they differ from those that the page shows."""
    caller.users.get(job_id)
    streams.check_room(caller.tenant)
    board.check_room(1)
    state, attempt, done = shown.split(".")
    known = {job_id: Progress(JobState(state), int(attempt), int(done))}
    open_job = OpenJob(request, services, caller, known)
    permit = Permit(caller.principal)
    return EventStream(board.follow(open_job, permit), streams, permit)
