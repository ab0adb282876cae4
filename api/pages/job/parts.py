"""What the templates of a job's page need to know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from api.access import Caller
from api.frames import END
from api.pages.job.remedies import remedy
from api.pages.job.timeline import NOTES, current_step, timeline
from api.pages.rows import Row, progress_of
from api.routes.jobs import get_job
from api.schemas.jobs import Job
from api.services import Services
from service.domain.job import Event, EventType
from service.domain.spec.job import JobSpec
from service.domain.states import TERMINAL, JobState
from service.report.fields import at

LIVE_TYPES = (
    *EventType,
    *sorted(NOTES - frozenset(EventType)),
    "recovery.checked",
    "recovery.gained_nothing",
    "steps.predicted",
    "tensors.unused",
    "texts.short",
    "texts.skipped",
    "texts.used",
)
"""All types of events; a browser must name those that it waits for."""

CHANGES = ", ".join(f"sse:{each} delay:100ms" for each in (*LIVE_TYPES, END))
"""When htmx asks for a part again: shortly after the last of several events."""

SAID = frozenset(EventType) - {EventType.CHANGED}
"""Events whose data stand elsewhere on the page."""

MAX_TOLD_EVENTS = 1000
"""That the timeline is made of; attempts before them are left out."""


def steps_values(
    job_id: str, request: Request, services: Services, caller: Caller
) -> dict[str, Any]:
    """For `job_steps.html`. Raises JobNotFound."""
    # Whatever happens between the two reads comes with the streams.
    events = caller.users.recent_events(job_id, limit=MAX_TOLD_EVENTS)
    job = get_job(job_id, request, services, caller)
    attempts = timeline(job, reversed(events), datetime.now(UTC))
    progress = ".".join(map(str, progress_of(job)))
    return {
        "job": job,
        "attempts": attempts,
        "progress": progress,
        "last_event": events[0].id if events else 0,
        "told": events,
    }


def head_values(job: Job, events: Sequence[Event]) -> dict[str, Any]:
    """For `job_head.html`; `events` are the job's, the latest first."""
    last = events[0] if events else None
    failure = job.error or job.last_error
    return {
        "job": job,
        "row": Row(job),
        "says": says(job, last),
        "remedy": failure and remedy(failure.code),
        "facts": list(facts(job)),
        "ended": job.state in TERMINAL,
    }


@dataclass(frozen=True)
class ShownEvent:
    """One line of the history."""

    event: Event
    data: str
    """What else it says, as JSON; empty if its message says all of it."""


def shown_events(events: Sequence[Event]) -> list[ShownEvent]:
    return [ShownEvent(each, _data(each)) for each in events]


def _data(event: Event) -> str:
    if not event.data or event.type in SAID:
        return ""
    return json_text(event.data)


def says(job: Job, last: Event | None) -> str:
    """What the job does now, in a sentence."""
    match job.state:
        case JobState.QUEUED if job.available_at is not None:
            return f"Attempt {job.attempt} failed; the next one is to come."
        case JobState.QUEUED:
            return "Waits for a dispatcher."
        case JobState.CANCELLING:
            return "Its attempt is being stopped."
        case JobState.SUCCEEDED:
            return "All artifacts are in the bucket."
        case JobState.FAILED:
            return "It has no artifacts."
        case JobState.CANCELLED:
            return "Nothing of it remains in the bucket."
        case JobState.RUNNING:
            return _runs(job, last)


def _runs(job: Job, last: Event | None) -> str:
    step = current_step(job)
    if step is not None:
        return f"Attempt {job.attempt}: {step.step}."
    if last is not None and last.type in NOTES | {EventType.SUBMITTED}:
        return f"Attempt {job.attempt}: {last.message}"
    return f"Attempt {job.attempt} {'is between two steps' if job.steps else 'begins'}."


def facts(job: Job) -> Iterator[tuple[str, str]]:
    """What was asked for, in a few words."""
    spec = specification(job)
    for name, part in (("model", at(spec, "model")), ("text", at(spec, "calibration", "data"))):
        if place := _place(part):
            yield name, place
    if method := at(spec, "method"):
        yield "method", str(method)
    if isinstance(job.spec, JobSpec):
        yield "targets", ", ".join(target.name for target in job.spec.targets)
        if (recovery := job.spec.recovery) is not None:
            often = "" if recovery.epochs == 1 else f", {recovery.epochs} times each"
            yield (
                "recovery",
                f"training on {recovery.asked(job.spec.calibration):,} sequences{often}",
            )
    if (workers := at(spec, "workers")) is not None:
        yield "workers", str(workers)
    yield "priority", str(at(spec, "priority") or 0)


def _place(part: Any) -> str:
    places = (at(part, name) for name in ("path", "uri", "id"))
    return next((str(place) for place in places if place), "")


def specification(job: Job) -> Mapping[str, Any]:
    """As JSON has it."""
    return job.spec.model_dump(mode="json") if isinstance(job.spec, JobSpec) else job.spec


def json_text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
