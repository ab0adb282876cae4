"""Counts what happens to jobs, by the events in the database."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence

from service.domain.job import Event
from service.store.census import Statistics

LATE_SECONDS = 60.0
"""How much later than a greater id an event may be committed: transactions are short."""
PAGE = 1000


class History:
    """Finds every new event once. It begins with those that are committed after its first look."""

    def __init__(self, statistics: Statistics, clock: Callable[[], float] = time.monotonic) -> None:
        self._statistics = statistics
        self._clock = clock
        self._looks: deque[tuple[float, int]] = deque()
        """When, and up to which id, the database was read; the first one is older than
        LATE_SECONDS, if there is such."""
        self._seen: set[int] = set()
        """The ids above the first look's."""

    def pages(self) -> Generator[Sequence[Event], None, None]:
        """Those that no look has found yet, some at a time. Raises DatabaseUnavailable.

        A page counts as found when the next one is asked for: whoever fails over it gets it again.
        """
        if not self._looks:
            # What is committed late was there before, but for a moment.
            self._looks.append((self._clock(), self._statistics.last_event()))
            return
        after, full = self._looks[0][1], True
        while full:
            found = self._statistics.events_after(after, limit=PAGE)
            full = len(found) == PAGE
            yield [event for event in found if event.id not in self._seen]
            self._seen.update(event.id for event in found)
            after = found[-1].id if found else after
        self._advance()

    def _advance(self) -> None:
        now = self._clock()
        self._looks.append((now, max(self._seen, default=self._looks[-1][1])))
        while len(self._looks) > 1 and now - self._looks[1][0] > LATE_SECONDS:
            self._looks.popleft()
        self._seen = {each for each in self._seen if each > self._looks[0][1]}
