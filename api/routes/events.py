"""The events of a job: in pages, or as a stream of those that happen."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from api.access import ReaderDep
from api.event_stream import MEDIA_TYPE, EventStream, OpenStreamsDep, Permit, wants_stream
from api.feed import Feed
from api.frames import end_frame, event_frame
from api.routes import JobId, guarded, problems
from api.schemas.jobs import EVENT_EXAMPLE, EventPage
from service.domain.states import TERMINAL

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=guarded())

MAX_EVENTS = 1000
MAX_EVENT_ID = 2**63 - 1
"""The largest id that the database can hold."""

_EXAMPLE = (event_frame(EVENT_EXAMPLE) + end_frame("succeeded", EVENT_EXAMPLE.id)).decode()
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of events, or a stream of them, as the `Accept` header asks.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}, "example": _EXAMPLE}},
    },
    204: {"description": "To a follower: the job has ended, and there are no more events."},
}


async def _feed(request: Request) -> Feed:
    feed: Feed = request.state.feed
    return feed


@router.get(
    "/{job_id}/events",
    summary="Read or follow a job's events",
    response_model=EventPage,
    responses=_ANSWERS | problems(404),
)
def events(
    job_id: JobId,
    request: Request,
    response: Response,
    caller: ReaderDep,
    feed: Annotated[Feed, Depends(_feed)],
    streams: OpenStreamsDep,
    after: Annotated[
        int, Query(ge=0, le=MAX_EVENT_ID, description="Only events with a greater id.")
    ] = 0,
    limit: Annotated[
        int, Query(ge=1, le=MAX_EVENTS, description="Events per page; streams have no limit.")
    ] = MAX_EVENTS,
    last_event_id: Annotated[
        int | None,
        Header(
            alias="Last-Event-ID",
            ge=0,
            le=MAX_EVENT_ID,
            description="Of a follower that goes on after a break, in place of `after`.",
        ),
    ] = None,
) -> EventPage | Response:
    """All events of the job and its attempts, oldest first.

    With `Accept: text/event-stream` the answer is a stream of server-sent events, which goes on
    until the job ends or is deleted. The last frame, of type `end`, says which. After an
    interruption a client follows again with the last id that it has seen in `Last-Event-ID`; once
    nothing more can come, the answer is 204, at which browsers stop.
    """
    if not wants_stream(request.headers.get("accept", "")):
        response.headers["Vary"] = "Accept"
        return EventPage.of(caller.users.events(job_id, after=after, limit=limit), after=after)
    start = after if last_event_id is None else last_event_id
    ended = caller.users.get(job_id).state in TERMINAL
    if ended and not caller.users.events(job_id, after=start, limit=1):
        return Response(status_code=204)
    streams.check_room(caller.tenant)
    permit = Permit(caller.principal)
    return EventStream(feed.follow(caller.users.events, job_id, start, permit), streams, permit)
