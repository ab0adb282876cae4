"""What the checks of a recovery decide, and how its text is divided."""

from __future__ import annotations

import json
import math

import pytest

from workers.attempt.course import Batches, Course, Verdict


def sequences(count: int) -> list[list[int]]:
    return [[number] for number in range(count)]


@pytest.mark.parametrize(
    ("count", "size", "training", "aside"),
    [
        (96, 4, 22, 8),
        (32, 4, 7, 4),
        (33, 4, 7, 5),
        (8, 4, 1, 4),
        (1000, 4, 248, 8),
        (1003, 4, 248, 11),
    ],
)
def test_every_sequence_is_trained_on_or_kept_aside(
    count: int, size: int, training: int, aside: int
) -> None:
    batches = Batches.of(sequences(count), size, seed=0)
    assert (len(batches.training), len(batches.aside)) == (training, aside)
    assert {len(batch) for batch in batches.training} == {size}
    every = [each for batch in (*batches.training, batches.aside) for each in batch]
    assert sorted(map(list, every)) == sequences(count)
    assert batches.aside == sequences(count)[-aside:]


def test_workers_share_every_batch() -> None:
    batches = Batches.of(sequences(96), 4, seed=0)
    shares = [batches.shares(number, 3) for number in range(3)]
    for number, batch in enumerate((*batches.training, batches.aside)):
        assert sorted(list(each) for share in shares for each in share[number]) == sorted(
            map(list, batch)
        )
        assert all(share[number] for share in shares)


def test_epochs_have_orders_of_their_own_that_are_always_the_same() -> None:
    batches = Batches.of(sequences(96), 4, seed=0)
    orders = [batches.order(epoch, seed=0) for epoch in range(3)]
    assert orders == [batches.order(epoch, seed=0) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(22)) for order in orders)


def test_the_best_factors_are_kept_and_worse_ones_make_steps_smaller() -> None:
    course = Course(22)
    assert course.check(0.5) is Verdict.KEEP
    course.step = 4
    assert course.check(0.4) is Verdict.KEEP
    course.step = 8
    assert course.check(0.405) is Verdict.GO_ON
    assert course.factor == 1
    course.step = 12
    assert course.check(0.6) is Verdict.GO_BACK
    assert course.factor == 0.5
    course.step = 16
    assert course.check(math.nan) is Verdict.GO_BACK
    assert course.factor == 0.25
    assert course.best == (4, 0.4)


def test_a_course_is_the_same_after_json() -> None:
    course = Course(22)
    course.check(0.5)
    course.step = 4
    course.check(math.nan)
    again = Course.from_data(json.loads(json.dumps(course.as_data())))
    assert again == course


@pytest.mark.parametrize(("steps", "pauses"), [(1, [1]), (22, [4] * 5 + [2]), (66, [9] * 7 + [3])])
def test_checks_come_at_intervals_and_at_the_end(steps: int, pauses: list[int]) -> None:
    course, found = Course(steps), []
    while course.step < steps:
        found.append(course.pause)
        course.step += course.pause
    assert found == pauses
