"""Calls run in threads, one for each key, and none waits for one that hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from service.dispatch.keyed_executor import KeyedExecutor

SECONDS = 30.0


@pytest.fixture
def executor() -> Iterator[KeyedExecutor]:
    executor = KeyedExecutor(2)
    yield executor
    executor.close()


def test_what_hangs_holds_up_no_other(executor: KeyedExecutor) -> None:
    hanging, done = threading.Event(), threading.Event()
    executor.start("hangs", hanging.wait, SECONDS)
    executor.start("works", done.set)
    assert done.wait(SECONDS)
    executor.wait(0)
    hanging.set()


def test_one_of_a_name_at_a_time(executor: KeyedExecutor) -> None:
    hanging, calls = threading.Event(), list[int]()

    def call(number: int) -> None:
        calls.append(number)
        hanging.wait(SECONDS)

    executor.start("job", call, 1)
    executor.start("job", call, 2)
    hanging.set()
    executor.wait(SECONDS)
    assert calls == [1]
    executor.start("job", call, 3)
    executor.wait(SECONDS)
    assert calls == [1, 3]


def test_there_is_room_until_all_threads_are_taken(executor: KeyedExecutor) -> None:
    hanging = threading.Event()
    for name in ("a", "b"):
        assert executor.has_room(0)
        executor.start(name, hanging.wait, SECONDS)
    assert not executor.has_room(0.01)
    hanging.set()
    assert executor.has_room(SECONDS)


def test_at_the_end_what_has_not_begun_is_dropped() -> None:
    executor, hanging, calls = KeyedExecutor(1), threading.Event(), list[int]()
    executor.start("hangs", hanging.wait, SECONDS)
    executor.start("waits", calls.append, 1)
    threading.Timer(0.05, hanging.set).start()
    executor.close()
    assert calls == []
