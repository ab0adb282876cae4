"""Repeats a call during an outage, until it succeeds or the time is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0

Result = TypeVar("Result")


def retry(
    act: Callable[[], Result], *, on: type[Exception] | tuple[type[Exception], ...], seconds: float
) -> Result:
    """Return the result of `act`; repeat it while it raises `on`, for about `seconds`.

    Raises the last error unchanged. `act` must be idempotent: a call that raises may still have had
    its effect.
    """
    tries = Retrying(
        retry=retry_if_exception_type(on),
        stop=stop_after_delay(seconds),
        wait=wait_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
        reraise=True,
    )
    return tries(act)
