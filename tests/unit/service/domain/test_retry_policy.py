"""The policy decides whether and when a failed attempt is retried."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import errors
from service.domain.retry_policy import Fail, Retry, RetryPolicy, decide
from service.errors import EigenpressError, Failure, InfrastructureError

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, EigenpressError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_machines_do_is_retried(kind: type[EigenpressError]) -> None:
    decision = decide(kind().failure(), 1, RetryPolicy(3))
    retried = issubclass(kind, InfrastructureError) and kind.retryable
    assert isinstance(decision, Retry) == retried


@given(attempts=st.integers(1, 200), most=st.integers(1, 100), retryable=st.booleans())
def test_no_job_has_more_attempts_than_allowed(attempts: int, most: int, retryable: bool) -> None:
    decision = decide(Failure("code", "detail", retryable=retryable), attempts, RetryPolicy(most))
    assert isinstance(decision, Retry if retryable and attempts < most else Fail)


def test_pauses_double_up_to_the_longest() -> None:
    policy = RetryPolicy(100, first_pause_seconds=5, longest_pause_seconds=60)
    pauses = [policy.pause_seconds(attempts) for attempts in range(1, 7)]
    assert pauses == [5, 10, 20, 40, 60, 60]
    assert policy.pause_seconds(10**9) == 60
