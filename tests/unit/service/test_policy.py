"""What follows a failure."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import errors
from service.errors import EigenpressError, Failure, InfrastructureError
from service.policy import Decision, decide

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, EigenpressError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_machines_do_is_retried(kind: type[EigenpressError]) -> None:
    decision = decide(kind().failure(), attempt=1, max_attempts=3)
    if not issubclass(kind, InfrastructureError):
        assert decision is Decision.FAIL
    else:
        assert (decision is Decision.RETRY) == kind.retryable


@given(attempt=st.integers(1, 200), max_attempts=st.integers(1, 100), retryable=st.booleans())
def test_no_job_has_more_attempts_than_allowed(
    attempt: int, max_attempts: int, retryable: bool
) -> None:
    failure = Failure("code", "detail", retryable=retryable)
    expected = Decision.RETRY if retryable and attempt < max_attempts else Decision.FAIL
    assert decide(failure, attempt, max_attempts) is expected
