"""Writing is due after enough work, and never takes more of the time than it may."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import pytest

from service.errors import StorageUnavailable
from workers.resumption.write_throttle import Rhythm


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_due_before_the_work_is_done() -> None:
    rhythm = Rhythm(32, clock=Clock())
    rhythm.worked(31)
    assert not rhythm.due
    rhythm.worked(1)
    assert rhythm.due


def test_the_first_writing_is_not_taken_for_free() -> None:
    clock = Clock()
    rhythm = Rhythm(1, expected_seconds=10, clock=clock)
    rhythm.worked(100)
    clock.now = 89.9
    assert not rhythm.due
    clock.now = 90
    assert rhythm.due


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_writing_takes_no_more_than_its_share(share: float) -> None:
    clock = Clock()
    rhythm = Rhythm(1, share_of_time=share, clock=clock)
    written = 0.0
    for step in range(1000):
        rhythm.worked(1)
        clock.now += 0.1
        if rhythm.due:
            with rhythm.writing():
                clock.now += 1 + step % 3
                written += 1 + step % 3
    assert written / clock.now <= share * 1.5  # a writing may take longer than the one before
    assert written > 0


def test_a_writing_that_fails_counts_as_one() -> None:
    clock = Clock()
    rhythm = Rhythm(1, clock=clock)
    rhythm.worked(1)
    with suppress(StorageUnavailable), rhythm.writing():
        clock.now += 10
        raise StorageUnavailable
    rhythm.worked(1)
    clock.now += 89
    assert not rhythm.due
    clock.now += 1
    assert rhythm.due


def test_there_may_be_a_least_pause() -> None:
    clock = Clock()
    rhythm = Rhythm(1, least_seconds=2, clock=clock)
    rhythm.worked(1)
    assert not rhythm.due
    clock.now = 2
    assert rhythm.due
