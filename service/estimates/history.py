"""What the last jobs of this installation took, beside what the cost model said of them."""

from __future__ import annotations

from service.client.versions import VERSION
from service.domain.job import Job
from service.domain.placement import Placement
from service.domain.prediction import PREDICTED, Prediction, prediction_of
from service.domain.spec.job import JobSpec
from service.domain.states import JobState
from service.errors import EigenpressError
from service.estimates.speeds import Measured
from service.store.listing import JobFilter
from service.store.records import Records

MEASURED_JOBS = 5
JOBS_LOOKED_AT = 20
"""Of the last jobs that succeeded, the first so many in one attempt and on such workers count."""


def measured_jobs(records: Records, spec: JobSpec, placement: Placement) -> list[Measured]:
    """The last jobs that computed as this one will on this placement.

    They ran on GPUs of its type, or on none, in its precision, and this version's cost model
    predicted them. Raises DatabaseUnavailable.
    """
    found: list[Measured] = []
    succeeded = JobFilter(states=[JobState.SUCCEEDED])
    for job in records.list_jobs(succeeded, limit=JOBS_LOOKED_AT):
        if len(found) == MEASURED_JOBS:
            break
        if job.attempt != 1:
            continue  # it was resumed
        predicted = records.last_event(job.id, PREDICTED)
        theirs = None if predicted is None else prediction_of(predicted.data)
        if theirs is not None and _alike(job, theirs, spec, placement):
            found.append(_measured(job, theirs))
    return found


def _alike(job: Job, theirs: Prediction, spec: JobSpec, placement: Placement) -> bool:
    kinds = [(each.gpus, each.accelerator_type) for each in (placement, theirs.placement)]
    try:
        precise = job.spec.mixed_precision == spec.mixed_precision
    except EigenpressError:
        return False  # of another version
    return kinds[0] == kinds[1] and precise and theirs.version == VERSION and bool(theirs.modelled)


def _measured(job: Job, prediction: Prediction) -> Measured:
    return Measured(
        prediction.modelled,
        {
            each.step: (each.finished_at - each.started_at).total_seconds()
            for each in job.steps
            if each.finished_at is not None
        },
    )
