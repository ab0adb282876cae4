"""The bodies of responses about jobs and their events.

The request body is `service.domain.spec.job.JobSpec`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import Field

from api.schemas import examples
from api.schemas.schema import Schema
from service.domain import job as jobs
from service.domain.spec.job import JobSpec
from service.domain.states import JobState, Step
from service.domain.time_left import TimeLeft as TimesLeft
from service.domain.time_left import time_left
from service.errors import SpecificationUnknown

JOB_ID_EXAMPLE = examples.JOB_ID
EVENT_EXAMPLE = jobs.Event(
    id=7,
    job_id=JOB_ID_EXAMPLE,
    attempt=1,
    at=datetime(2026, 11, 21, 12, tzinfo=UTC),
    type="step.started",
    message="solve started",
    data={"step": "solve", "total": 60, "unit": "groups"},
)


class StepProgress(Schema):
    """The progress of one step of the current attempt."""

    step: Step
    done: int = Field(examples=[48])
    total: int = Field(examples=[128])
    unit: str = Field(examples=["sequences"])
    started_at: datetime
    finished_at: datetime | None = None
    seconds_left: float | None = Field(
        default=None, description="Null once it has ended, and where that is not known."
    )


class StepToCome(Schema):
    """A step of the current attempt that has not begun."""

    step: Step
    seconds: float | None = Field(description="Null where that is not known.")


class TimeLeft(Schema):
    """How long the job still takes: as predicted, corrected by what it has taken so far."""

    seconds: float | None = Field(description="Null where that is not known.", examples=[312.0])
    to_come: list[StepToCome] = Field(description="The steps that have not begun, in order.")
    reason: str | None = Field(default=None, description="Why seconds are not known.")

    @classmethod
    def of(cls, left: TimesLeft, begun: Collection[Step]) -> Self:
        return cls(
            seconds=_rounded(left.seconds),
            to_come=[
                StepToCome(step=step, seconds=_rounded(seconds))
                for step, seconds in left.steps.items()
                if step not in begun
            ],
            reason=left.reason,
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


class JobError(Schema):
    """Why a job, or one of its attempts, failed."""

    code: str = Field(description="Stable.", examples=["calibration_too_short"])
    detail: str
    param: str | None = Field(default=None, description="The field of the request at fault.")


class JobWarning(Schema):
    """What the current attempt did otherwise than expected; its events have the details."""

    type: str = Field(description="Of the event.", examples=["texts.short"])
    message: str


class Links(Schema):
    """Paths on this server, and the URL of the attempt in Ray's dashboard."""

    self: str
    events: str
    artifacts: str
    report: str
    ray_dashboard: str | None = Field(default=None, description="Null before the first attempt.")


class Submitter(Schema):
    """The API key that submitted a job."""

    key_id: str = Field(description="`admin` for the key from the server's settings.")
    key_name: str | None = Field(default=None, examples=["laptop"])


class Job(Schema):
    """A job: its specification, its state and its progress."""

    model_config = examples.example(examples.JOB)

    id: str = Field(examples=[JOB_ID_EXAMPLE])
    name: str | None = None
    state: JobState
    spec: JobSpec | dict[str, Any] = Field(
        description="As accepted, with the defaults filled in. It may have fields that this server "
        "does not know, if a newer version of the service accepted the job."
    )
    attempt: int = Field(description="The current or last attempt; 0 before the first.")
    created_at: datetime
    submitted_by: Submitter | None = Field(
        default=None,
        description="Null where keys are not required, and of a job of an earlier version.",
    )
    started_at: datetime | None = Field(default=None, description="Of the current attempt.")
    finished_at: datetime | None = None
    steps: list[StepProgress] = Field(description="Of the current attempt, in order.")
    time_left: TimeLeft | None = Field(default=None, description="Null once the job has ended.")
    available_at: datetime | None = Field(
        default=None,
        description="While the job waits after a failed attempt: when the next attempt may begin.",
    )
    error: JobError | None = Field(default=None, description="Why the job failed.")
    last_error: JobError | None = Field(
        default=None, description="Until the job ends: why its previous attempt failed."
    )
    warnings: list[JobWarning] = Field(description="Of the current attempt.")
    links: Links

    def request(self) -> dict[str, Any]:
        """The body that submits it again, without the defaults."""
        if isinstance(self.spec, JobSpec):
            return self.spec.model_dump(mode="json", exclude_defaults=True)
        return self.spec

    @classmethod
    def of(cls, job: jobs.Job, *, root_path: str, dashboard_url: str) -> Self:
        """``root_path`` is the path under which a proxy mounts this server, usually empty."""
        here = f"{root_path}/v1/jobs/{job.id}"
        left = time_left(job)
        return cls(
            id=job.id,
            name=job.name,
            state=job.state,
            spec=_shown_spec(job),
            attempt=job.attempt,
            created_at=job.created_at,
            submitted_by=job.submitted_by and Submitter.model_validate(job.submitted_by),
            started_at=job.started_at,
            finished_at=job.finished_at,
            steps=[_shown_step(step, left) for step in job.steps],
            time_left=left and TimeLeft.of(left, [step.step for step in job.steps]),
            available_at=job.available_at,
            error=JobError.model_validate(job.failure) if job.failure else None,
            last_error=JobError.model_validate(job.last_failure) if job.last_failure else None,
            warnings=[JobWarning.model_validate(warning) for warning in job.warnings],
            links=Links(
                self=here,
                events=f"{here}/events",
                artifacts=f"{here}/artifacts",
                report=f"{here}/report",
                ray_dashboard=(
                    f"{dashboard_url}/#/jobs/{job.id}-{job.attempt}" if job.attempt else None
                ),
            ),
        )


def _shown_step(step: jobs.StepProgress, left: TimesLeft | None) -> StepProgress:
    seconds = None if left is None else left.steps.get(step.step)
    shown = StepProgress.model_validate(step)
    return shown.model_copy(update={"seconds_left": _rounded(seconds)})


def _shown_spec(job: jobs.Job) -> JobSpec | dict[str, Any]:
    """The specification; as it is stored if this version does not know all of it."""
    try:
        return job.spec
    except SpecificationUnknown:
        stored: dict[str, Any] = json.loads(job.stored_spec)
        return stored


class JobPage(Schema):
    """Jobs, newest first."""

    model_config = examples.example(examples.JOB_PAGE)

    jobs: list[Job]
    next_cursor: str | None = Field(
        default=None, description="Pass as `cursor` for the next page; null on the last one."
    )


class Event(Schema):
    """Something that happened to a job; ids grow with time."""

    id: int
    attempt: int | None = Field(default=None, description="Null outside an attempt.")
    at: datetime
    type: str = Field(examples=["job.claimed"])
    message: str
    data: dict[str, Any]


class EventPage(Schema):
    """Events, oldest first."""

    model_config = examples.example(examples.EVENT_PAGE)

    events: list[Event]
    next_after: int = Field(description="Pass as `after` to read later events.")

    @classmethod
    def of(cls, events: Sequence[jobs.Event], *, after: int) -> Self:
        return cls(
            events=[Event.model_validate(event) for event in events],
            next_after=events[-1].id if events else after,
        )
