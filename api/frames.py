"""The frames of a stream of events, as in the HTML standard's server-sent events.

    id: 7                    what a client sends back as Last-Event-ID to go on after a break
    event: step.started      the event's type
    data: {"id": 7, ...}     the event, as in a page of events

The last frame has the type `end` and no id. A stream without it was interrupted.
"""

from __future__ import annotations

import json

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.schemas.jobs import Event
from service.domain import job as jobs

RETRY_MILLISECONDS = 1000
"""After which pause a browser follows again."""

END = "end"
"""The type of the last frame; the types of events have a full stop."""
DELETED = "deleted"
"""The state in the last frame of a job that was deleted."""

FIRST = format_sse_event(retry=RETRY_MILLISECONDS)
HEARTBEAT = KEEPALIVE_COMMENT


def event_frame(event: jobs.Event) -> bytes:
    data = Event.model_validate(event).model_dump_json()
    return format_sse_event(data_str=data, event=event.type, id=str(event.id))


def end_frame(state: str, after: int) -> bytes:
    data = json.dumps({"state": state, "next_after": after})
    return format_sse_event(data_str=data, event=END)
