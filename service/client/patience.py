"""How long a client repeats what an outage has interrupted, without any I/O of its own.

Both clients ask these after each error, and sleep in their own ways.
"""

from __future__ import annotations

import time

from service.client.answers import Job
from service.client.errors import ClientError, is_outage, may_have_worked

REPEAT_SECONDS = 1.0
"""The pause before a submission is repeated."""


class Submitting:
    """For a submission, which is repeated once it may have had its effect without an answer."""

    def __init__(self, patience_seconds: float) -> None:
        self._deadline = time.monotonic() + patience_seconds
        self._unknown = False

    def pause_after(self, error: ClientError) -> float:
        """The seconds to wait before the next try. Raises the error if there is to be none."""
        self._unknown = self._unknown or may_have_worked(error)
        patient = self._unknown and time.monotonic() < self._deadline
        if not (patient and is_outage(error)):
            raise error
        return REPEAT_SECONDS


class Watching:
    """For looks at a job, which may fail for a while after each that succeeded."""

    def __init__(self, patience_seconds: float, poll_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._poll_seconds = poll_seconds
        self._last_answer = time.monotonic()

    def pause_after_answer(self) -> float:
        """The seconds to wait before the next look."""
        self._last_answer = time.monotonic()
        return self._poll_seconds

    def pause_after(self, error: ClientError) -> float:
        """The seconds to wait before the next look. Raises the error if there is to be none."""
        patient = time.monotonic() - self._last_answer < self._patience_seconds
        if not (patient and is_outage(error)):
            raise error
        return self._poll_seconds


def unwatched(_job: Job) -> None:
    """Takes the looks at a job that nobody watches."""
