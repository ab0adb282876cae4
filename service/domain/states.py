"""The life of a job, as one pure table.

    queued ──> running ──> succeeded
     │ │▲         │  ├───> failed ──> queued (a user retried it)
     │ │└─────────┘  │        ▲
     │ │  (retried)  ▼        │
     │ │         cancelling ──│──> cancelled
     │ └──────────────────────│──────▲
     └────────────────────────┘ (waited too long)

Every transition is a compare-and-set in the store (`service.store.store`) and an appended event.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    """Accepted and durable; waits for a dispatcher (or was put back by one for another attempt)."""

    RUNNING = "running"
    """A dispatcher has claimed it: an attempt is being submitted to Ray or runs there."""

    CANCELLING = "cancelling"
    """A user asked to cancel a running job; its attempt is being stopped."""

    SUCCEEDED = "succeeded"
    """Every artifact is published; its manifest is in the bucket."""

    FAILED = "failed"
    """Ended by an error, which the job records. It has no artifacts; its user may retry it."""

    CANCELLED = "cancelled"
    """Ended by its user. Nothing of it remains in the bucket."""


class Step(StrEnum):
    """The steps of an attempt, in order; which of them a job has, `JobSpec.steps` says."""

    RESOLVE = "resolve"
    CALIBRATE = "calibrate"
    SOLVE = "solve"
    ALLOCATE = "allocate"
    RECOVER = "recover"
    ASSEMBLE = "assemble"
    PROVE = "prove"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
"""States that no process leaves by itself."""

IN_FLIGHT = frozenset({JobState.RUNNING, JobState.CANCELLING})
"""States with an attempt under way."""

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLING, JobState.QUEUED}
    ),
    JobState.CANCELLING: frozenset({JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset(),
}


def may_become(current: JobState, wanted: JobState) -> bool:
    """Whether the table has the transition ``current -> wanted``."""
    return wanted in TRANSITIONS[current]
