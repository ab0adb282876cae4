"""Limits how often something is written, so that writing takes only a small share of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ASSUMED_BYTES_PER_SECOND = 100e6
"""How fast something is written, as long as nothing has been."""


class WriteThrottle:
    """Decides when the next write is due."""

    def __init__(
        self,
        every: int,
        expected_seconds: float = 0.0,
        *,
        share_of_time: float = 0.1,
        least_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A write is due after `every` units of work and `least_seconds`, at the earliest.

        Writes take at most `share_of_time`; `expected_seconds` is an estimate for the first one.
        """
        self._rest = (1 - share_of_time) / share_of_time
        self._every = every
        self._least_seconds = least_seconds
        self._writing_seconds = expected_seconds
        self._clock = clock
        self._units = 0
        self._since = clock()

    def worked(self, units: int) -> None:
        """Count `units` more of work."""
        self._units += units

    @property
    def due(self) -> bool:
        pause = max(self._writing_seconds * self._rest, self._least_seconds)
        return self._units >= self._every and self._clock() - self._since >= pause

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Time a write, successful or not; the longer it takes, the later the next one is due."""
        start = self._clock()
        try:
            yield
        finally:
            self._since = self._clock()
            self._writing_seconds = self._since - start
            self._units = 0
