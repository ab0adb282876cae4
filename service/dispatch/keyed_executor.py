"""Calls to servers that may hang, each in a thread, so that one holds up no other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait


class KeyedExecutor:
    """Calls under way, at most `threads` at a time and one for each name.

    Used by one thread. The calls deal with their own errors.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads)
        self._under_way: dict[str, Future[object]] = {}

    def start(self, name: str, act: Callable[..., object], *args: object) -> None:
        """Make the call soon; no effect while the one before of this name has not ended."""
        self._forget_ended()
        if name not in self._under_way:
            self._under_way[name] = self._executor.submit(act, *args)

    def has_room(self, seconds: float) -> bool:
        """Whether another call could begin at once, or within so many seconds."""
        self._forget_ended()
        if len(self._under_way) >= self._threads:
            wait(self._under_way.values(), seconds, FIRST_COMPLETED)
            self._forget_ended()
        return len(self._under_way) < self._threads

    def wait(self, seconds: float) -> None:
        """Until all calls have ended, but no longer than so many seconds."""
        wait(self._under_way.values(), seconds)

    def close(self) -> None:
        """Wait for the calls that have begun; the others are not made."""
        self._executor.shutdown(cancel_futures=True)

    def _forget_ended(self) -> None:
        self._under_way = {n: call for n, call in self._under_way.items() if not call.done()}
