"""The state that a dispatcher's threads share: when to judge leases, pauses, logged errors."""

from __future__ import annotations

import sys
import threading
import time

SLEEP_SECONDS = 1.0
"""If a machine sleeps for longer, its drivers may miss a renewal."""


class LeaseWatch:
    """Allows a dispatcher to judge leases once drivers have had one whole lease to renew theirs.

    Threads may share it.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._asleep = seconds_asleep()
        self._judging_from = time.monotonic() + lease_seconds

    def restart(self) -> None:
        """Wait for another whole lease, because drivers may have been unable to renew theirs."""
        with self._lock:
            self._judging_from = time.monotonic() + self._lease_seconds

    def may_judge(self) -> bool:
        """Whether drivers have had a whole lease to renew theirs; a sleep restarts the wait."""
        with self._lock:
            asleep, now = seconds_asleep(), time.monotonic()
            if asleep > self._asleep + SLEEP_SECONDS:
                self._judging_from = now + self._lease_seconds
            self._asleep = asleep
            return now >= self._judging_from


class Pause:
    """A number of passes to skip. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0

    def begin(self, passes: int) -> None:
        """Skip the next `passes` passes."""
        with self._lock:
            self._left = passes

    @property
    def under_way(self) -> bool:
        """Whether passes remain to be skipped."""
        with self._lock:
            return self._left > 0

    def skip_one(self) -> bool:
        """Count one pass as skipped; return False if none remains to be skipped."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True


class LoggedErrors:
    """The type of each subject's error that was logged and persists. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._types: dict[str, type[Exception]] = {}

    def add(self, subject: str, error: Exception) -> bool:
        """Record the error; return whether it is new, that is, not of the recorded type.

        Messages do not count: a server's failures differ in wording from second to second.
        """
        with self._lock:
            if self._types.get(subject) is type(error):
                return False
            self._types[subject] = type(error)
            return True

    def remove(self, subject: str) -> bool:
        """Forget the subject's error; return whether there was one."""
        with self._lock:
            return self._types.pop(subject, None) is not None


def seconds_asleep() -> float:
    """A number that grows with the seconds for which the machine sleeps.

    A step of the wall clock does not change it on Linux, but does on other systems.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return time.time() - time.monotonic()
