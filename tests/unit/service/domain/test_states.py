"""The properties of the whole table of states."""

from __future__ import annotations

from itertools import product

import pytest

from service.domain.states import TERMINAL, TRANSITIONS, JobState, may_become


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(JobState)


@pytest.mark.parametrize(("current", "wanted"), list(product(JobState, JobState)))
def test_the_table_is_what_may_happen(current: JobState, wanted: JobState) -> None:
    assert may_become(current, wanted) == (wanted in TRANSITIONS[current])


def test_a_terminal_state_is_left_by_a_retry_alone() -> None:
    ways = {(state, target) for state in TERMINAL for target in TRANSITIONS[state]}
    assert ways == {(JobState.FAILED, JobState.QUEUED)}
    assert all(targets for state, targets in TRANSITIONS.items() if state not in TERMINAL)


def test_every_state_is_reached_from_queued_and_can_end() -> None:
    reached = {JobState.QUEUED}
    while more := {target for state in reached for target in TRANSITIONS[state]} - reached:
        reached |= more
    assert reached == set(JobState)


def test_a_cancelled_job_never_runs_again() -> None:
    assert TRANSITIONS[JobState.CANCELLING] == {JobState.CANCELLED}
