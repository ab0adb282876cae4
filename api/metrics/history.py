"""Counts what happens to jobs, by the events in the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta

from service.domain.job import Event
from service.store.census import Statistics

LATE = timedelta(seconds=60)
"""How long after an event one with a smaller id may be committed: transactions are short."""
PAGE = 1000
LOOK_SECONDS = 2.0
"""After so long no further page is read: what is left after weeks without a look is found by the
next ones. Prometheus waits ten seconds."""


class History:
    """Finds every new event once. It begins with those that are committed after its first look."""

    def __init__(self, statistics: Statistics, clock: Callable[[], float] = time.monotonic) -> None:
        self._statistics = statistics
        self._clock = clock
        self._settled: int | None = None
        """No event with this id or a smaller one is to come."""
        self._seen: set[int] = set()
        """The ids above it that were found."""

    def pages(self) -> Generator[Sequence[Event], None, None]:
        """Those that no look has found yet, some at a time. Raises DatabaseUnavailable.

        A page counts as found when the next one is asked for: whoever fails over it gets it again.
        """
        if self._settled is None:
            # What is committed late was there before, but for a moment.
            self._settled = self._statistics.last_event()
            return
        end = self._clock() + LOOK_SECONDS
        # What is older than this has no earlier one that this look would not find.
        settled_at = self._statistics.now() - LATE
        after, more = self._settled, True
        while more:
            found = self._statistics.events_after(after, limit=PAGE)
            yield [event for event in found if event.id not in self._seen]
            self._seen.update(event.id for event in found)
            old = [event.id for event in found if event.at <= settled_at]
            self._settled = max(old, default=self._settled)
            self._seen = {each for each in self._seen if each > self._settled}
            after = found[-1].id if found else after
            more = len(found) == PAGE and self._clock() < end
