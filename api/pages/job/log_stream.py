"""The stream of what a process of an attempt prints, while the page shows its log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from api.access import ReaderDep
from api.event_stream import EventStream, OpenStreamsDep, Permit
from api.log_feed import PART_BYTES, LogFeed, LogName
from api.pages.job.logs import Source
from api.pages.route import PageRoute
from api.routes import JobId
from api.routes.logs import MAX_ATTEMPT, MAX_OFFSET
from api.services import ServicesDep
from service.logs.attempt_logs import LogPage

router = APIRouter(include_in_schema=False, route_class=PageRoute)


async def _log_feed(request: Request) -> LogFeed:
    log_feed: LogFeed = request.state.log_feed
    return log_feed


@router.get("/jobs/{job_id}/logs/live")
def live_log(
    job_id: JobId,
    services: ServicesDep,
    caller: ReaderDep,
    log_feed: Annotated[LogFeed, Depends(_log_feed)],
    streams: OpenStreamsDep,
    attempt: Annotated[int, Query(ge=1, le=MAX_ATTEMPT)],
    source: Source,
    after: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, le=MAX_OFFSET)] = None,
) -> Response:
    """The log beyond an offset, as it is printed."""
    caller.users.get(job_id)
    name = LogName(job_id, attempt, source)
    streams.check_room(caller.tenant)
    log_feed.check_room(name)

    def read(offset: int | None) -> LogPage:
        job = caller.users.get(job_id)
        if offset is None:
            return services.logs.last(job, attempt, source, PART_BYTES)
        return services.logs.page(job, attempt, source, offset, PART_BYTES)

    permit = Permit(caller.principal)
    start = after if last_event_id is None else last_event_id
    return EventStream(log_feed.follow(name, read, start, permit), streams, permit)
