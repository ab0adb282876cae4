"""What the last jobs of this installation took, beside what the cost model says of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Lock

from service.domain.costs.cluster import Cluster
from service.domain.costs.shapes import Model, ShapesUnknown
from service.domain.costs.steps import step_costs
from service.domain.job import Job
from service.domain.placement import PLACED, Placement
from service.domain.spec import JobSpec, ModelSource
from service.domain.states import JobState
from service.errors import EigenpressError
from service.estimates.models import model_of
from service.estimates.speeds import Measured
from service.inputs.checks import SubmissionChecks
from service.inputs.models.sources import check_model
from service.settings import Settings
from service.store.listing import JobFilter
from service.store.store import Store

MEASURED_JOBS = 5
JOBS_LOOKED_AT = 20
"""Of the last jobs that succeeded, the first so many in one attempt and on such workers count."""

READING_SECONDS = 1.0
"""For the headers of earlier jobs' models; those that are left then do not count. The one that is
being read then counts in later estimates."""

MAX_KNOWN_MODELS = 256
"""Whose shapes are kept: a few kilobytes each."""


class History:
    """The jobs that have succeeded, and the shapes of their models. Threads may share it."""

    def __init__(self, settings: Settings, store: Store, checks: SubmissionChecks) -> None:
        self._settings = settings
        self._store = store
        self._checks = checks
        self._lock = Lock()
        self._known: dict[ModelSource, Model] = {}
        self._reading: dict[ModelSource, Future[Model]] = {}

    def remember(self, source: ModelSource, model: Model) -> None:
        """Keep the shapes of a model, whose headers have been read."""
        with self._lock:
            if len(self._known) >= MAX_KNOWN_MODELS:
                self._known.clear()
            self._known[source] = model

    def measured(
        self, spec: JobSpec, placement: Placement, cluster_of: Callable[[Placement], Cluster]
    ) -> list[Measured]:
        """The last jobs that computed as this one will on this placement: on GPUs of its type, or
        on none, and in its precision. Raises DatabaseUnavailable.
        """
        found: list[Measured] = []
        deadline = time.monotonic() + READING_SECONDS
        succeeded = JobFilter(states=[JobState.SUCCEEDED])
        for job in self._store.records.list_jobs(succeeded, limit=JOBS_LOOKED_AT):
            if len(found) == MEASURED_JOBS or time.monotonic() > deadline:
                break
            if job.attempt != 1:
                continue  # it was resumed
            placed = self._store.records.last_event(job.id, PLACED)
            if placed is None:
                continue
            try:
                theirs = Placement(**placed.data["placement"])
                kinds = [(each.gpus, each.accelerator_type) for each in (placement, theirs)]
                if kinds[0] == kinds[1] and job.spec.mixed_precision == spec.mixed_precision:
                    model = self._model(job.spec.model, deadline)
                    found.append(_measured(job, model, cluster_of(theirs)))
            except (EigenpressError, ShapesUnknown, KeyError, TypeError, TimeoutError):
                continue  # of another version, or its model is gone or read too slowly
        return found

    def _model(self, source: ModelSource, deadline: float) -> Model:
        """The shapes of an earlier job's model.

        Raises what `check_model` raises, ShapesUnknown, and TimeoutError after the deadline.
        """
        with self._lock:
            if (known := self._known.get(source)) is not None:
                return known
            reading = self._reading.get(source)
            if reading is None:
                reading = self._checks.start(partial(self._read, source))
                self._reading[source] = reading
        return reading.result(max(0.0, deadline - time.monotonic()))

    def _read(self, source: ModelSource) -> Model:
        try:
            headers = check_model(source, self._settings)
            if headers is None:
                raise ShapesUnknown("the hub does not answer")
            model = model_of(headers)
            self.remember(source, model)
            return model
        finally:
            with self._lock:
                del self._reading[source]


def _measured(job: Job, model: Model, cluster: Cluster) -> Measured:
    costs = step_costs(model, job.spec, cluster)
    return Measured(
        {step: max(cost.seconds(cluster).values()) for step, cost in costs.items()},
        {
            each.step: (each.finished_at - each.started_at).total_seconds()
            for each in job.steps
            if each.finished_at is not None
        },
    )
