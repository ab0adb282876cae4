"""How an attempt tells the database where it stands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.states import Step
from service.store import Store

MIN_SECONDS_BETWEEN_WRITES = 0.5


class StepMeter:
    """Counts the work of one step; the database is told now and then, and at the end."""

    def __init__(self, store: Store, job_id: str, attempt: int, step: Step, unit: str) -> None:
        self._store = store
        self._job_id = job_id
        self._attempt = attempt
        self._step = step
        self._unit = unit
        self._done = 0
        self._total = 1
        self._written = float("-inf")

    def expect(self, total: int) -> None:
        """Say how many units the step has; raises AttemptStale if the attempt is not current."""
        self._total = total
        self._write()

    def advance(self, units: int = 1) -> None:
        """Say that so many more units are done; raises AttemptStale."""
        self._done += units
        # The last unit is reported by `finish`: a step is over when its results are kept.
        due = time.monotonic() - self._written >= MIN_SECONDS_BETWEEN_WRITES
        if due and self._done < self._total:
            self._write()

    def finish(self) -> None:
        self._done = self._total
        self._write()

    def _write(self) -> None:
        self._store.progress(
            self._job_id, self._attempt, self._step, self._done, self._total, self._unit
        )
        self._written = time.monotonic()


class Progress:
    """The steps of one attempt, and how long each took."""

    def __init__(self, store: Store, job_id: str, attempt: int) -> None:
        self._store = store
        self._job_id = job_id
        self._attempt = attempt
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, step: Step, unit: str) -> Iterator[StepMeter]:
        """One step; it counts as finished only when the block ends without an error."""
        meter = StepMeter(self._store, self._job_id, self._attempt, step, unit)
        start = time.perf_counter()
        meter.expect(1)
        yield meter
        self.seconds[step.value] = round(time.perf_counter() - start, 3)
        meter.finish()

    def note(self, type_: str, message: str, data: dict[str, object]) -> None:
        """Append an event to the job's history."""
        self._store.record(self._job_id, self._attempt, type_, message, data)
