"""What follows the failure of an attempt: a pure decision."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import Failure


@dataclass(frozen=True)
class RetryPolicy:
    """How often a job is tried, and how long it waits between two attempts."""

    max_attempts: int = 5
    first_pause_seconds: float = 5.0
    """Before the second attempt; every later pause is twice the one before."""
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
    """Retry what a machine or a service did, never what the user or our own code did.

    `attempts` are those that the job has had, the one that failed included.
    """
    if failure.retryable and attempts < policy.max_attempts:
        return Retry(policy.pause_seconds(attempts))
    return Fail()
