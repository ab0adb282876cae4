"""Reports the progress of an attempt to the database.

During an outage of the database, progress inside a step may be dropped; every other write is
repeated until it succeeds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from service.domain.job import Artifact
from service.domain.placement import Placement
from service.domain.prediction import PREDICTED, Prediction
from service.domain.spec.job import JobSpec
from service.domain.states import Step
from service.errors import DatabaseUnavailable
from service.estimates.history import measured_jobs
from service.estimates.speeds import Measured
from service.retrying import retry
from service.store.store import Store
from service.tracing import span

MIN_SECONDS_BETWEEN_WRITES = 0.5


Result = TypeVar("Result")

log = logging.getLogger("eigenpress.driver")


class Progress:
    """Writes the steps and events of one attempt, and measures how long each step takes.

    Every method raises AttemptStale once the attempt is no longer current.
    """

    def __init__(
        self, store: Store, job_id: str, attempt: int, *, patience_seconds: float = 0
    ) -> None:
        """Writes are retried for `patience_seconds` during an outage of the database."""
        self.attempt = attempt
        self.seconds: dict[str, float] = {}
        self._store = store
        self._job_id = job_id
        self._patience_seconds = patience_seconds
        self._prediction: Prediction | None = None

    @contextmanager
    def step(self, step: Step, unit: str) -> Iterator[StepMeter]:
        """One step; it counts as finished only when the block ends without an error."""
        meter = StepMeter(self, step, unit)
        start = time.perf_counter()
        log.info("Step %s begins", step)
        meter.expect(1)
        with span(f"step.{step}"):
            yield meter
        self.seconds[step.value] = round(time.perf_counter() - start, 3)
        meter.finish()
        log.info("Step %s ended after %.1f seconds", step, self.seconds[step.value])

    def note(
        self, type_: str, message: str, data: Mapping[str, object], *, is_warning: bool = False
    ) -> None:
        """Append an event to the job's history, and a warning to what the job shows."""
        self._retry(
            lambda: self._store.attempts.record(
                self._job_id, self.attempt, type_, message, data, is_warning=is_warning
            )
        )

    def measured_jobs(self, spec: JobSpec, placement: Placement) -> list[Measured]:
        """What the last jobs of this installation took that computed like this one."""
        return self._retry(lambda: measured_jobs(self._store.records, spec, placement))

    def predict(self, prediction: Prediction) -> None:
        """Record how long the steps should take."""
        self._prediction = prediction
        known = [each for each in prediction.seconds.values() if each is not None]
        self.note(
            PREDICTED,
            f"Steps of this kind take {sum(known):,.0f} seconds in all.",
            prediction.as_data(),
        )

    def resumes(self, step: Step, share: float) -> None:
        """Record that earlier attempts have done a share of a step's units."""
        if share and self._prediction is not None:
            resumed = {**self._prediction.resumed, step: share}
            self.predict(replace(self._prediction, resumed=resumed))

    def count_tokens(self, tenant: str, dataset_id: str, tokens: int) -> None:
        """Record how many tokens a dataset has."""
        datasets = self._store.datasets(tenant)
        self._retry(lambda: datasets.count_tokens(dataset_id, tokens))

    def last_noted(self, type_: str) -> Mapping[str, Any] | None:
        """The data of the last event of that type, by this or an earlier attempt."""
        event = self._retry(lambda: self._store.records.last_event(self._job_id, type_))
        return None if event is None else event.data

    def published(self, position: int, artifact: Artifact) -> None:
        """Record the published artifact of the target at this position."""
        self._retry(
            lambda: self._store.attempts.published(self._job_id, self.attempt, position, artifact)
        )

    def withdraw(self, reason: str) -> None:
        """Withdraw the artifacts that earlier attempts have published."""
        self._retry(lambda: self._store.attempts.withdraw(self._job_id, self.attempt, reason))

    def artifacts(self) -> tuple[Artifact, ...]:
        """The artifacts that this and earlier attempts have published."""
        return self._retry(lambda: self._store.records.artifacts(self._job_id))

    def in_flight(self) -> set[str]:
        """The names of all attempts, of any job, that are under way."""
        return {f"{job.id}-{job.attempt}" for job in self._retry(self._store.claims.in_flight)}

    def write(self, step: Step, done: int, total: int, unit: str) -> None:
        """Write the progress of a step; repeat the write during an outage."""
        self._retry(lambda: self.write_once(step, done, total, unit))

    def write_once(self, step: Step, done: int, total: int, unit: str) -> None:
        """Write the progress of a step. Raises DatabaseUnavailable."""
        self._store.attempts.progress(self._job_id, self.attempt, step, done, total, unit)

    def _retry(self, act: Callable[[], Result]) -> Result:
        return retry(act, on=DatabaseUnavailable, seconds=self._patience_seconds)


class StepMeter:
    """Counts the work of one step; writes it to the database at intervals and at the end."""

    def __init__(self, progress: Progress, step: Step, unit: str) -> None:
        self._progress = progress
        self._step = step
        self._unit = unit
        self._done = 0
        self._total = 1
        self._written = float("-inf")

    def expect(self, total: int, *, done: int = 0) -> None:
        """Set the number of units of the step, and how many an earlier attempt has done."""
        self._total = total
        self._done = done
        # `finish` reports the last unit, because a step ends when its results are stored.
        self._write(min(done, max(0, total - 1)))

    def advance(self, units: int = 1) -> None:
        """Count `units` more as done."""
        self._done += units
        due = time.monotonic() - self._written >= MIN_SECONDS_BETWEEN_WRITES
        if due and self._done < self._total:
            try:
                self._progress.write_once(self._step, self._done, self._total, self._unit)
            except DatabaseUnavailable as error:
                log.warning("%s of %s %s: %s", self._done, self._total, self._unit, error)
            self._written = time.monotonic()

    def finish(self) -> None:
        self._write(self._total)

    def _write(self, done: int) -> None:
        self._progress.write(self._step, done, self._total, self._unit)
        self._written = time.monotonic()
