"""Calls in threads: one for each name, and none waits for one that hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from service.dispatch.keyed_executor import Errands

SECONDS = 30.0


@pytest.fixture
def errands() -> Iterator[Errands]:
    errands = Errands(2)
    yield errands
    errands.close()


def test_what_hangs_holds_up_no_other(errands: Errands) -> None:
    hanging, done = threading.Event(), threading.Event()
    errands.start("hangs", hanging.wait, SECONDS)
    errands.start("works", done.set)
    assert done.wait(SECONDS)
    errands.wait(0)
    hanging.set()


def test_one_of_a_name_at_a_time(errands: Errands) -> None:
    hanging, calls = threading.Event(), list[int]()

    def call(number: int) -> None:
        calls.append(number)
        hanging.wait(SECONDS)

    errands.start("job", call, 1)
    errands.start("job", call, 2)
    hanging.set()
    errands.wait(SECONDS)
    assert calls == [1]
    errands.start("job", call, 3)
    errands.wait(SECONDS)
    assert calls == [1, 3]


def test_there_is_room_until_all_threads_are_taken(errands: Errands) -> None:
    hanging = threading.Event()
    for name in ("a", "b"):
        assert errands.has_room(0)
        errands.start(name, hanging.wait, SECONDS)
    assert not errands.has_room(0.01)
    hanging.set()
    assert errands.has_room(SECONDS)


def test_at_the_end_what_has_not_begun_is_dropped() -> None:
    errands, hanging, calls = Errands(1), threading.Event(), list[int]()
    errands.start("hangs", hanging.wait, SECONDS)
    errands.start("waits", calls.append, 1)
    threading.Timer(0.05, hanging.set).start()
    errands.close()
    assert calls == []
