"""A request to stop, made by a signal and checked between two pieces of work."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Records that a signal asked the process to stop.

    Not a `threading.Event`: a handler that sets one deadlocks if it interrupts the main thread
    inside `Event.wait`. `SimpleQueue.put` may interrupt anything.
    """

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[int] = queue.SimpleQueue()

    @property
    def requested(self) -> bool:
        return not self._requests.empty()

    def make(self, number: int, _frame: object = None) -> None:
        """A signal handler."""
        self._requests.put(number)

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for a request; return whether there is one."""
        try:
            self._requests.put(self._requests.get(timeout=seconds))
        except queue.Empty:
            return False
        return True


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside the context, Ctrl-C, SIGTERM and a closed terminal only request a stop.

    A command under nohup, which ignores SIGHUP, still ignores it.
    """
    stop = StopRequest()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if (number, handler) != (signal.SIGHUP, signal.SIG_IGN):
            signal.signal(number, stop.make)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def calling_on_signals(act: Callable[[], object]) -> Iterator[None]:
    """Inside the context, signals that ask the process to stop call `act` before their handlers.

    Only those that have a handler do; in another thread than the main one, none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
    for number in STOP_SIGNALS:
        handler = signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler

    def call(number: int, frame: FrameType | None) -> None:
        act()
        handlers[number](number, frame)

    for each in handlers:
        signal.signal(each, call)
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
