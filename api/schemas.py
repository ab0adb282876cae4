"""The bodies of responses: jobs, events, artifacts, readiness and problems.

The request body is `service.domain.spec.JobSpec`. Times are RFC 3339 in UTC, sizes are bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from service.domain import job as jobs
from service.domain.costs.sizes import TargetSize
from service.domain.spec import JobSpec
from service.domain.states import JobState, Step
from service.errors import SpecificationUnknown
from service.estimates import estimate as estimates

JOB_ID_EXAMPLE = "job-01kah7m0q8v5n2c4x6z9b3d1fg"


class Schema(BaseModel):
    """A response, made from an object of the store and not changed afterwards."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class StepProgress(Schema):
    """The progress of one step of the current attempt."""

    step: Step
    done: int = Field(examples=[48])
    total: int = Field(examples=[128])
    unit: str = Field(examples=["sequences"])
    started_at: datetime
    finished_at: datetime | None = None


class JobError(Schema):
    """Why a job, or one of its attempts, failed."""

    code: str = Field(description="Stable.", examples=["calibration_too_short"])
    detail: str
    param: str | None = Field(default=None, description="The field of the request at fault.")


class Links(Schema):
    """Paths on this server, and the URL of the attempt in Ray's dashboard."""

    self: str
    events: str
    artifacts: str
    report: str
    ray_dashboard: str | None = Field(default=None, description="Null before the first attempt.")


class Job(Schema):
    """A job: its specification, its state and its progress."""

    id: str = Field(examples=[JOB_ID_EXAMPLE])
    name: str | None = None
    state: JobState
    spec: JobSpec | dict[str, Any] = Field(
        description="As accepted, with the defaults filled in. It may have fields that this server "
        "does not know, if a newer version of the service accepted the job."
    )
    attempt: int = Field(description="The current or last attempt; 0 before the first.")
    created_at: datetime
    started_at: datetime | None = Field(default=None, description="Of the current attempt.")
    finished_at: datetime | None = None
    steps: list[StepProgress] = Field(description="Of the current attempt, in order.")
    available_at: datetime | None = Field(
        default=None,
        description="While the job waits after a failed attempt: when the next attempt may begin.",
    )
    error: JobError | None = Field(default=None, description="Why the job failed.")
    last_error: JobError | None = Field(
        default=None, description="Until the job ends: why its previous attempt failed."
    )
    links: Links

    @classmethod
    def of(cls, job: jobs.Job, *, root_path: str, dashboard_url: str) -> Self:
        """``root_path`` is the path under which a proxy mounts this server, usually empty."""
        here = f"{root_path}/v1/jobs/{job.id}"
        return cls(
            id=job.id,
            name=job.name,
            state=job.state,
            spec=_shown_spec(job),
            attempt=job.attempt,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            steps=[StepProgress.model_validate(step) for step in job.steps],
            available_at=job.available_at,
            error=JobError.model_validate(job.failure) if job.failure else None,
            last_error=JobError.model_validate(job.last_failure) if job.last_failure else None,
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


def _shown_spec(job: jobs.Job) -> JobSpec | dict[str, Any]:
    """The specification; as it is stored if this version does not know all of it."""
    try:
        return job.spec
    except SpecificationUnknown:
        stored: dict[str, Any] = json.loads(job.stored_spec)
        return stored


class JobPage(Schema):
    """Jobs, newest first."""

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

    events: list[Event]
    next_after: int = Field(description="Pass as `after` to read later events.")

    @classmethod
    def of(cls, events: Sequence[jobs.Event], *, after: int) -> Self:
        return cls(
            events=[Event.model_validate(event) for event in events],
            next_after=events[-1].id if events else after,
        )


class ArtifactFile(Schema):
    """One file of an artifact."""

    path: str = Field(description="Relative to the artifact.", examples=["model.safetensors"])
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="Of the file's bytes, in hexadecimal.")
    url: str = Field(description="Presigned: anybody who has it can GET the file.")


class Artifact(Schema):
    """A compressed model in the bucket."""

    name: str = Field(examples=["keep-0.8"])
    uri: str = Field(description="For users who have credentials for the bucket.")
    bytes: int = Field(description="Of all files together.")
    files: list[ArtifactFile] = Field(description="All of them, manifest.json last.")
    expires_at: datetime = Field(description="When the URLs expire; ask again for fresh ones.")


class ArtifactList(Schema):
    """A job's artifacts, one per target, in the order of the targets."""

    artifacts: list[Artifact]


class ProblemItem(Schema):
    """One of several mistakes in a request."""

    code: str
    detail: str
    param: str | None


class ModelEstimate(Schema):
    """The dense model, by its configuration and the headers of its weights."""

    parameters: int
    linear_parameters: int = Field(description="Of the layers that can be compressed.")
    dtype: str = Field(description="Of the checkpoint.", examples=["bfloat16"])
    dense_bytes: int = Field(description="Of all parameters in the artifacts' precision.")


class ArtifactSize(Schema):
    """The most that an artifact's weights have; the job's choice comes near it."""

    parameters: int
    bytes: int = Field(description="Without the headers of files, which take kilobytes.")
    linear_parameters: int
    linear_bytes: int


class TargetEstimate(Schema):
    """A target and the size of its artifact."""

    name: str = Field(examples=["keep-0.8"])
    size: ArtifactSize | None = Field(description="Null if calibration decides it.")


class WorkersEstimate(Schema):
    """The workers that the job would get, and what Ray reserves for each."""

    workers: int
    cpus: int
    gpus: int = Field(description="0 or 1.")
    accelerator_type: str | None = None


class MemoryEstimate(Schema):
    """The peaks of each process beyond its program, in bytes."""

    worker: int = Field(description="Of the host's memory.")
    worker_gpu: int | None = Field(description="Null without GPUs.")
    worker_files: int = Field(description="Of its machine's disk.")
    too_little: dict[Step, list[str]] = Field(
        description="By step, what the machines have too little of: `GPU`, `host` or `files`."
    )


class StepEstimate(Schema):
    """The time of one step."""

    step: Step
    seconds: float
    waits_for: str = Field(
        description="The slowest resource: `arithmetic`, `memory`, `loading`, `disk`, `network`."
    )


class TimeEstimate(Schema):
    """The time of the job, once it has its workers."""

    sum: float
    steps: list[StepEstimate]
    measured_jobs: int = Field(
        description="Earlier jobs of this installation whose times correct these; 0: none do."
    )


class Unknown(Schema):
    """What the estimate cannot say."""

    field: str = Field(description="Of the request, or of this answer.")
    reason: str


class Estimate(Schema):
    """What a job would make and take. Null is what is not known; `unknown` has the reasons."""

    model: ModelEstimate | None
    tokens: int = Field(description="Of calibration.")
    targets: list[TargetEstimate] = Field(description="Empty if the model is not known.")
    workers: WorkersEstimate | None
    waits: str | None = Field(description="Why the job would not begin at once, if it would not.")
    memory: MemoryEstimate | None
    driver_memory: int | None = Field(description="Of the process on Ray's head, in bytes.")
    seconds: TimeEstimate | None
    problems: list[ProblemItem] = Field(
        description="Why the job would be refused, or would fail: the errors of `POST /v1/jobs` "
        "and of attempts."
    )
    unknown: list[Unknown]

    @classmethod
    def of(cls, estimate: estimates.Estimate) -> Self:
        model, steps = estimate.model, estimate.steps
        return cls(
            model=None
            if model is None or estimate.bytes_of_dense is None
            else ModelEstimate(
                parameters=model.parameters,
                linear_parameters=model.linear,
                dtype=model.dtype,
                dense_bytes=estimate.bytes_of_dense,
            ),
            tokens=estimate.tokens,
            targets=[
                TargetEstimate(name=each.name, size=_size(each.size)) for each in estimate.targets
            ],
            workers=WorkersEstimate.model_validate(estimate.placement)
            if estimate.placement
            else None,
            waits=estimate.waits,
            memory=MemoryEstimate.model_validate(estimate.memory) if estimate.memory else None,
            driver_memory=estimate.driver_memory,
            seconds=TimeEstimate(
                sum=sum(each.seconds for each in steps),
                steps=[StepEstimate.model_validate(each) for each in steps],
                measured_jobs=estimate.measured_jobs,
            )
            if steps
            else None,
            problems=[ProblemItem.model_validate(each) for each in estimate.problems],
            unknown=[Unknown.model_validate(each) for each in estimate.unknown],
        )


def _size(size: TargetSize | None) -> ArtifactSize | None:
    return None if size is None else ArtifactSize.model_validate(size)


class Health(Schema):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Check(Schema):
    """Whether one dependency answers, and the error if it does not."""

    ok: bool
    detail: str | None = None


class Readiness(Schema):
    """Whether every dependency of the server answers."""

    ready: bool
    database: Check
    storage: Check = Field(description="Needed to accept jobs and to hand out artifacts.")
    cluster: Check = Field(description="Needed to run jobs; without it they stay queued.")


class Problem(Schema):
    """An error in the format of RFC 9457. `code` is stable; `detail` is for people."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:eigenpress:problem:invalid_parameter",
                    "title": "Invalid parameter",
                    "status": 422,
                    "detail": "targets.0.keep: Input should be less than 1 (got 1.5)",
                    "code": "invalid_parameter",
                    "param": "targets.0.keep",
                    "instance": "/v1/jobs",
                    "errors": [
                        {
                            "code": "invalid_parameter",
                            "detail": "targets.0.keep: Input should be less than 1 (got 1.5)",
                            "param": "targets.0.keep",
                        }
                    ],
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    param: str | None = Field(default=None, description="The field of the request at fault.")
    instance: str = Field(description="The path of the request.")
    errors: list[ProblemItem] = Field(
        default=[], description="Every mistake found in the request; `detail` states the first."
    )
