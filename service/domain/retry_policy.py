"""Decides what follows the failure of an attempt; a pure function."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import Failure


@dataclass(frozen=True)
class RetryPolicy:
    """The number of attempts of a job, and the pauses between them."""

    max_attempts: int = 5
    first_pause_seconds: float = 5.0
    """Before the second attempt; each later pause is twice the previous one."""
    longest_pause_seconds: float = 600.0

    def pause_seconds(self, attempts: int) -> float:
        """How long to wait after so many attempts, at least 1."""
        doublings = min(attempts - 1, 64)  # far beyond any longest pause
        return min(self.first_pause_seconds * 2.0**doublings, self.longest_pause_seconds)


@dataclass(frozen=True)
class Retry:
    """Back to the queue, for another attempt after a pause."""

    after_seconds: float


@dataclass(frozen=True)
class Fail:
    """The job has failed."""


def decide(failure: Failure, attempts: int, policy: RetryPolicy) -> Retry | Fail:
    """Retry failures of a machine or a service, never those of the user or of our own code.

    `attempts` counts the job's attempts, including the one that failed.
    """
    if failure.retryable and attempts < policy.max_attempts:
        return Retry(policy.pause_seconds(attempts))
    return Fail()
