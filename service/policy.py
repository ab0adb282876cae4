"""What follows the failure of an attempt: a pure decision."""

from __future__ import annotations

from enum import StrEnum

from service.errors import Failure


class Decision(StrEnum):
    """What becomes of the job."""

    RETRY = "retry"
    """Back to the queue, for another attempt."""

    FAIL = "fail"
    """The job has failed."""


def decide(failure: Failure, attempt: int, max_attempts: int) -> Decision:
    """Retry what a machine or a service did, never what the user or our own code did.

    `attempt` is the number of the attempt that failed, the first being 1.
    """
    if failure.retryable and attempt < max_attempts:
        return Decision.RETRY
    return Decision.FAIL
