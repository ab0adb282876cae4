"""A write is due after enough work, and writing never takes more than its share of the time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import pytest

from service.errors import StorageUnavailable
from workers.resumption.write_throttle import WriteThrottle


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_due_before_the_work_is_done() -> None:
    throttle = WriteThrottle(32, clock=Clock())
    throttle.worked(31)
    assert not throttle.due
    throttle.worked(1)
    assert throttle.due


def test_the_first_write_is_assumed_to_take_time() -> None:
    clock = Clock()
    throttle = WriteThrottle(1, expected_seconds=10, clock=clock)
    throttle.worked(100)
    clock.now = 89.9
    assert not throttle.due
    clock.now = 90
    assert throttle.due


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_writing_takes_no_more_than_its_share(share: float) -> None:
    clock = Clock()
    throttle = WriteThrottle(1, share_of_time=share, clock=clock)
    written = 0.0
    for step in range(1000):
        throttle.worked(1)
        clock.now += 0.1
        if throttle.due:
            with throttle.writing():
                clock.now += 1 + step % 3
                written += 1 + step % 3
    assert written / clock.now <= share * 1.5  # a write may take longer than the one before
    assert written > 0


def test_a_failed_write_counts_as_one() -> None:
    clock = Clock()
    throttle = WriteThrottle(1, clock=clock)
    throttle.worked(1)
    with suppress(StorageUnavailable), throttle.writing():
        clock.now += 10
        raise StorageUnavailable
    throttle.worked(1)
    clock.now += 89
    assert not throttle.due
    clock.now += 1
    assert throttle.due


def test_a_shortest_pause_can_be_set() -> None:
    clock = Clock()
    throttle = WriteThrottle(1, least_seconds=2, clock=clock)
    throttle.worked(1)
    assert not throttle.due
    clock.now = 2
    assert throttle.due
