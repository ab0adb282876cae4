"""The frozen data that the store returns: a job, its steps, its events, its artifacts."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from service.domain.prediction import Prediction
from service.domain.spec.job import JobSpec
from service.domain.spec.stored import read_stored
from service.domain.states import JobState, Step
from service.errors import Failure

JOB_ID_PATTERN = r"^job-[0-9a-z]{26}$"

DEFAULT_TENANT = "default"

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: its order is ASCII order
_DIGITS = 26
_RANDOM_BITS = 66  # 26 digits of 5 bits, less 64 bits of time


def new_job_id() -> str:
    """A job's id, as from `new_id`."""
    return new_id("job")


def new_id(kind: str) -> str:
    """An id that sorts by its time of creation (to the nanosecond) and cannot be guessed."""
    number = (time.time_ns() << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    digits = (_ALPHABET[(number >> 5 * place) & 31] for place in reversed(range(_DIGITS)))
    return f"{kind}-" + "".join(digits)


class EventType(StrEnum):
    """The events that the store itself appends; an attempt may record others of its own."""

    QUEUED = "job.queued"
    """Accepted: the job exists, as `queued`."""

    REQUEUED = "job.requeued"
    """failed -> queued: a user retried it."""

    CHANGED = "job.changed"
    """A user changed its priority or its labels; the state does not change."""

    CLAIMED = "job.claimed"
    """queued -> running: a dispatcher took it and numbered a new attempt."""

    RELEASED = "job.released"
    """running -> queued: the cluster could not start the attempt, which does not count."""

    RETRIED = "job.retried"
    """running -> queued: the attempt failed with an error that a retry may overcome."""

    SUCCEEDED = "job.succeeded"
    """running -> succeeded."""

    FAILED = "job.failed"
    """running -> failed, or queued -> failed: it waited too long, or its limits are unknown."""

    CANCELLING = "job.cancelling"
    """running -> cancelling: the attempt is told to stop."""

    CANCELLED = "job.cancelled"
    """queued -> cancelled, or cancelling -> cancelled once the attempt has stopped."""

    SUBMITTED = "attempt.submitted"
    """The cluster accepted the attempt; the job's state does not change."""

    TAKEN_OVER = "attempt.taken_over"
    """The claimer's lease expired before it submitted the attempt; another dispatcher will."""

    PUBLISHED = "artifact.published"
    """An artifact of the attempt is in the bucket; it counts once the job has succeeded."""

    WITHDRAWN = "artifact.withdrawn"
    """The artifacts of earlier attempts come from another computation and do not count."""

    STEP_STARTED = "step.started"
    """First progress of a step."""

    STEP_FINISHED = "step.finished"
    """All of a step is done."""


@dataclass(frozen=True)
class StepProgress:
    """The progress of a step of an attempt: `done` of `total`, counted in `unit`."""

    step: Step
    done: int
    total: int
    unit: str
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact; `path` is relative to the artifact, `size` is in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """One published result; `prefix` is its folder in the bucket, with a final slash."""

    name: str
    prefix: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class JobWarning:
    """What an attempt did otherwise than its user may expect: an event that the job shows, too."""

    type: str
    message: str


@dataclass(frozen=True)
class Submitter:
    """The API key that submitted a job."""

    key_id: str
    key_name: str | None


@dataclass(frozen=True)
class Job:
    """A job as it stood when it was read."""

    id: str
    name: str | None
    state: JobState
    stored_spec: str
    """Its specification as JSON, by the version that accepted it."""
    attempt: int
    """The current attempt, or the last one; 0 before the first."""
    created_at: datetime
    started_at: datetime | None
    """When the current attempt was claimed; None while the job waits."""
    finished_at: datetime | None
    failure: Failure | None
    """The error that ended the job; only a failed one has it."""
    steps: tuple[StepProgress, ...]
    """The steps of that attempt, in the order of `Step`."""
    submitted_at: datetime | None = None
    """When the cluster accepted the current attempt; None until that is known."""
    last_failure: Failure | None = None
    """The error of the last failed attempt, while the job is retried."""
    tenant: str = DEFAULT_TENANT
    submitted_by: Submitter | None = None
    """None where no key was required, and of a job of an earlier version."""
    attempts_before: int = 0
    """Attempts before the last retry by its user; these no longer count."""
    available_at: datetime | None = None
    """The earliest time to claim a waiting job; None: at once."""
    lease_until: datetime | None = None
    """When the current attempt's lease expires."""
    lapsed: bool = False
    """Whether the lease had expired, by the database's clock, when the job was read."""
    warnings: tuple[JobWarning, ...] = ()
    """Of that attempt."""
    prediction: Prediction | None = None
    """Of that attempt, while it runs and has made one."""
    read_at: datetime | None = field(default=None, compare=False)
    """When the job was read, by the database's clock; None unless an attempt is under way."""

    @cached_property
    def spec(self) -> JobSpec:
        """Its specification. Raises SpecificationUnknown if this version cannot read it."""
        return read_stored(self.id, self.stored_spec)


@dataclass(frozen=True)
class JobHead:
    """A job as it stood when it was read, without its specification and its steps."""

    id: str
    tenant: str
    state: JobState
    attempt: int
    submitted_at: datetime | None
    finished_at: datetime | None
    failure: Failure | None
    """The last one, also while the job is tried again."""
    lapsed: bool
    deleted: bool = False
    """Whether users see it no more, and a cleaner is to remove all of it."""


@dataclass(frozen=True)
class Event:
    """One line of a job's history; within a job, ids increase in the order of the events."""

    id: int
    job_id: str
    attempt: int | None
    at: datetime
    type: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)
