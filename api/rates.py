"""The bound on requests with one key, or from one address without a valid key.

It counts in memory, so each API process has its own.
"""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from service.errors import TooManyRequests


class Rates:
    """Counts requests. Threads may share it."""

    def __init__(self, per_minute: int) -> None:
        self._limit = RateLimitItemPerMinute(per_minute)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def count(self, who: str) -> None:
        """Count a request. Raises TooManyRequests beyond the bound; such a request counts not."""
        if self._limiter.hit(self._limit, who):
            return
        reset = self._limiter.get_window_stats(self._limit, who).reset_time
        error = TooManyRequests(f"There were more than {self._limit.amount} requests in a minute.")
        error.retry_after_seconds = max(1, math.ceil(reset - time.time()))
        raise error
