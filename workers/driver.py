"""The driver of one attempt: ``python -m workers.driver JOB ATTEMPT``, as a Ray job.

It runs the pipeline and tells the database how it ended. Every write carries the attempt's
number; a driver whose attempt is no longer current stops without a trace.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import ray
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from service.errors import (
    AttemptStale,
    EigenpressError,
    Failure,
    OutOfMemory,
    SolveFailed,
    UnsupportedLayer,
    WorkerLost,
)
from service.settings import Settings
from service.store import Store
from workers.compression import errors as compression
from workers.pipeline import run_attempt
from workers.progress import Progress

log = logging.getLogger("eigenpress.driver")

EXIT_FAILED = 1
EXIT_STALE = 3


def main(job_id: str, attempt: int) -> int:
    """Run the attempt to its end; the exit status tells Ray whether it succeeded."""
    settings = Settings()
    store = Store(settings.database)
    try:
        return _run(job_id, attempt, store, settings)
    except AttemptStale as error:
        log.warning("%s, attempt %d: %s", job_id, attempt, error)
        return EXIT_STALE
    finally:
        store.close()


def _run(job_id: str, attempt: int, store: Store, settings: Settings) -> int:
    job = store.get(job_id)
    if job.attempt != attempt:
        raise AttemptStale
    _sweep_scratch(settings.scratch_dir, store)
    ray.init(namespace=f"{job_id}-{attempt}", logging_level=logging.WARNING)
    try:
        outcome = run_attempt(job, Progress(store, job_id, attempt), settings)
        for position, artifact in enumerate(outcome.artifacts):
            store.published(job_id, attempt, position, artifact)
        store.succeed(job_id, attempt, outcome.report)
    except AttemptStale:
        raise
    except Exception as error:
        log.exception("%s, attempt %d failed", job_id, attempt)
        store.fail(job_id, attempt, failure_of(error), settings.retry_policy)
        return EXIT_FAILED
    finally:
        ray.shutdown()
        shutil.rmtree(settings.scratch_dir / f"{job_id}-{attempt}", ignore_errors=True)
    return 0


def _sweep_scratch(folder: Path, store: Store) -> None:
    """Remove what attempts that were killed have left on this machine."""
    running = {f"{job.id}-{job.attempt}" for job in store.in_flight()}
    for left in folder.glob("*-*"):
        if left.name not in running:
            shutil.rmtree(left, ignore_errors=True)


def failure_of(error: BaseException) -> Failure:
    """What the job's user is told of an error, wherever in the cluster it arose."""
    if isinstance(error, RayTaskError):
        return failure_of(error.cause)
    if isinstance(error, ActorDiedError) and error.actor_init_failed:
        return EigenpressError(f"A worker did not start: {_first_line(error)}").failure()
    if isinstance(error, OutOfMemoryError | torch.OutOfMemoryError):
        return OutOfMemory(param="calibration.batch_size").failure()
    if isinstance(error, RayError):  # an actor, its node or an object that it owned is gone
        return WorkerLost(f"A worker was lost: {_first_line(error)}").failure()
    if isinstance(error, compression.UnsupportedLayer):
        return UnsupportedLayer(str(error), param="model").failure()
    if isinstance(error, compression.SolveFailed):
        return SolveFailed(str(error)).failure()
    if isinstance(error, EigenpressError):
        return error.failure()
    return EigenpressError(
        f"Unexpected {type(error).__name__}: {_first_line(error)}. The driver's log has more."
    ).failure()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
