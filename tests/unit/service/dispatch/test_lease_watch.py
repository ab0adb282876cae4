"""The state that the dispatcher's threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

import service.dispatch.lease_watch
from service.dispatch.lease_watch import LeaseWatch, LoggedErrors, Pause


def in_threads(act: Callable[[], object], count: int) -> list[object]:
    """The results of `act` in `count` threads that start together."""
    together, returned = threading.Barrier(count), list[object]()

    def run() -> None:
        together.wait()
        returned.append(act())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return returned


class Yielding(int):
    """A number whose subtraction lets the interpreter switch to another thread."""

    def __sub__(self, other: int) -> Yielding:
        time.sleep(0)
        return Yielding(int(self) - other)


class YieldingKey(str):
    """A key whose lookup lets the interpreter switch to another thread."""

    __slots__ = ()

    def __hash__(self) -> int:
        time.sleep(0.005)
        return super().__hash__()


def test_each_pass_of_a_pause_is_skipped_once() -> None:
    pause = Pause()
    pause.begin(Yielding(5))
    assert sum(map(bool, in_threads(pause.skip_one, 12))) == 5
    assert not pause.under_way


def test_an_error_is_new_to_one_thread_and_ends_in_one() -> None:
    errors, subject = LoggedErrors(), YieldingKey("the bucket")
    first = in_threads(lambda: errors.add(subject, OSError("no answer")), 8)
    assert sum(map(bool, first)) == 1
    assert errors.add(subject, ValueError("no answer"))
    assert sum(map(bool, in_threads(lambda: errors.remove(subject), 8))) == 1
    assert errors.add(subject, ValueError("no answer"))


def test_one_thread_at_a_time_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = LeaseWatch(0)
    both, overlaps = threading.Barrier(2), list[bool]()

    def asleep() -> float:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.05)
            overlaps.append(True)
        return 0.0

    monkeypatch.setattr(service.dispatch.lease_watch, "seconds_asleep", asleep)
    assert in_threads(watch.may_judge, 2) == [True, True]
    assert overlaps == []
