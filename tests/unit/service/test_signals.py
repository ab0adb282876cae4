"""`service.signals` with real signals, sent to the test's own process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from service.signals import STOP_SIGNALS, calling_on_signals, stop_on_signals


@pytest.fixture
def _no_nohup() -> Iterator[None]:
    """Also where the tests themselves run under it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.usefixtures("_no_nohup")
def test_each_signal_requests_a_stop_and_interrupts_nothing(number: signal.Signals) -> None:
    with stop_on_signals() as stop:
        assert not stop.requested
        assert not stop.wait(0)
        os.kill(os.getpid(), number)
        assert stop.wait(10)
        assert stop.wait(0)
        assert stop.requested


def test_a_signal_ends_a_wait() -> None:
    with stop_on_signals() as stop:
        later = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        later.start()
        assert stop.wait(60)
        later.join()


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with stop_on_signals():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_no_nohup")
def test_an_act_comes_before_the_handler_of_a_signal() -> None:
    seen: list[object] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with calling_on_signals(lambda: seen.append("act")):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert seen == ["act", signal.SIGTERM, signal.SIGTERM]
        with calling_on_signals(lambda: seen.append("act")):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL  # it ends the process
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    inside: list[object] = []

    def call() -> None:
        with calling_on_signals(lambda: None):
            inside.extend(signal.getsignal(number) for number in STOP_SIGNALS)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert inside == before
