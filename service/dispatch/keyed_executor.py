"""Runs calls to servers that may hang, each in a thread, so that none delays another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait


class KeyedExecutor:
    """Runs at most `threads` calls at a time, and one for each key.

    Only one thread may use it. The calls must handle their own errors.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads)
        self._under_way: dict[str, Future[object]] = {}

    def start(self, key: str, act: Callable[..., object], *args: object) -> None:
        """Start the call; no effect while the previous call with this key is under way."""
        self._forget_ended()
        if key not in self._under_way:
            self._under_way[key] = self._executor.submit(act, *args)

    def has_room(self, seconds: float) -> bool:
        """Whether another call can start now, or within `seconds`."""
        self._forget_ended()
        if len(self._under_way) >= self._threads:
            wait(self._under_way.values(), seconds, FIRST_COMPLETED)
            self._forget_ended()
        return len(self._under_way) < self._threads

    def wait(self, seconds: float) -> None:
        """Wait until all calls have ended, for at most `seconds`."""
        wait(self._under_way.values(), seconds)

    def close(self) -> None:
        """Wait for the running calls, and drop those that have not started."""
        self._executor.shutdown(cancel_futures=True)

    def _forget_ended(self) -> None:
        self._under_way = {k: call for k, call in self._under_way.items() if not call.done()}
