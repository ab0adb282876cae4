"""Whether a dispatcher may judge leases, and how long it pauses: state that its threads share."""

from __future__ import annotations

import sys
import threading
import time

SLEEP_SECONDS = 1.0
"""A machine that has slept for longer may have slept through the renewals of its drivers."""


class LeaseWatch:
    """Allows leases to be judged after one whole lease in which drivers could renew theirs.

    Threads may share it.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._asleep = seconds_asleep()
        self._judging_from = time.monotonic() + lease_seconds

    def restart(self) -> None:
        """Wait for another whole lease: drivers may not have been able to renew."""
        with self._lock:
            self._judging_from = time.monotonic() + self._lease_seconds

    def may_judge(self) -> bool:
        """Whether drivers have had a whole lease to renew theirs; a sleep begins it anew."""
        with self._lock:
            asleep, now = seconds_asleep(), time.monotonic()
            if asleep > self._asleep + SLEEP_SECONDS:
                self._judging_from = now + self._lease_seconds
            self._asleep = asleep
            return now >= self._judging_from


class Pause:
    """A number of passes to leave out. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0

    def begin(self, passes: int) -> None:
        """Leave out the next `passes` passes."""
        with self._lock:
            self._left = passes

    @property
    def under_way(self) -> bool:
        """Whether a pass is to be left out."""
        with self._lock:
            return self._left > 0

    def leave_out_one(self) -> bool:
        """Whether this pass is left out; it then counts as one of them."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True


def seconds_asleep() -> float:
    """A number that grows by the seconds that the machine sleeps.

    On Linux a step of the wall clock does not change it. Elsewhere it does.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return time.time() - time.monotonic()
