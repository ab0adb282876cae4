"""Measured jobs correct predicted seconds, by how much longer their own steps took."""

from __future__ import annotations

import pytest

from service.domain.states import Step
from service.estimates.speeds import COMPARABLE, PARTS, Measured, comparable, corrected

PREDICTED = dict.fromkeys(Step, 10.0) | {Step.SOLVE: 2.0}


def took(factor: float, size: float = 1.0) -> Measured:
    """A job, larger by `size`, each of whose steps took `factor` times as long as predicted."""
    predicted = {step: seconds * size for step, seconds in PREDICTED.items()}
    return Measured(predicted, {step: seconds * factor for step, seconds in predicted.items()})


def test_every_step_is_in_one_part() -> None:
    assert sorted(step for part in PARTS for step in part) == sorted(Step)


@pytest.mark.parametrize("factor", [0.2, 1.0, 7.0])
def test_an_equal_job_gives_its_own_seconds(factor: float) -> None:
    assert corrected(PREDICTED, [took(factor)]) == pytest.approx(took(factor).taken)


def test_without_jobs_seconds_are_as_predicted() -> None:
    assert corrected(PREDICTED, []) == PREDICTED


def test_a_larger_job_counts_more() -> None:
    found = corrected(PREDICTED, [took(1.0), took(3.0, size=9)])
    assert found[Step.EVALUATE] == pytest.approx(10 * (1 + 27) / 10)


def test_each_step_has_a_ratio_of_its_own() -> None:
    job = took(1.0)
    slow = Measured(job.predicted, dict(job.taken) | {Step.EVALUATE: 50.0})
    found = corrected(PREDICTED, [slow])
    assert found == pytest.approx(PREDICTED | {Step.EVALUATE: 50.0})


def test_what_is_solved_while_others_are_calibrated_moves_no_time_between_the_steps() -> None:
    job = took(1.0)
    taken = dict(job.taken) | {Step.CALIBRATE: 24.0, Step.SOLVE: 0.0}
    found = corrected(PREDICTED, [Measured(job.predicted, taken)])
    assert (found[Step.CALIBRATE], found[Step.SOLVE]) == (20.0, 4.0)


def test_a_step_that_no_job_had_is_as_predicted() -> None:
    job = took(3.0)
    taken = dict(job.taken)
    del taken[Step.EVALUATE]
    assert corrected(PREDICTED, [Measured(job.predicted, taken)])[Step.EVALUATE] == 10.0


def test_much_smaller_jobs_say_nothing_and_larger_ones_do() -> None:
    near, far, large = took(1, 1.1 / COMPARABLE), took(1, 0.9 / COMPARABLE), took(1, 1e6)
    assert comparable(PREDICTED, [near, far, large]) == [near, large]
