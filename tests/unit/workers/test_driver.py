"""Every error of an attempt ends it with a failure that its user can read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError, WorkerCrashedError

from service.errors import (
    CalibrationTooShort,
    Failure,
    JobNotFound,
    ModelInvalid,
    StorageUnavailable,
)
from service.jobs import Job, new_job_id
from service.settings import Settings
from service.spec import JobSpec
from service.states import JobState
from service.store import Store
from workers import driver
from workers.compression.errors import BudgetTooSmall, SolveFailed, UnsupportedLayer
from workers.driver import EXIT_FAILED, EXIT_STALE, failure_of, main
from workers.pipeline import Outcome

ERRORS = [
    (
        ModelInvalid("no weights", param="model.path"),
        Failure("model_invalid", "no weights", "model.path"),
    ),
    (
        CalibrationTooShort("add text", param="calibration.sequences"),
        Failure("calibration_too_short", "add text", "calibration.sequences"),
    ),
    (
        StorageUnavailable("S3 is away"),
        Failure("storage_unavailable", "S3 is away", retryable=True),
    ),
    (
        UnsupportedLayer("h.0.attn is a Conv1D"),
        Failure("unsupported_layer", "h.0.attn is a Conv1D", "model"),
    ),
    (SolveFailed("q_proj: not finite"), Failure("solve_failed", "q_proj: not finite")),
    (
        ZeroDivisionError("division by zero\nand more"),
        Failure(
            "internal_error",
            "Unexpected ZeroDivisionError: division by zero. The driver's log has more.",
        ),
    ),
    (
        BudgetTooSmall(),
        Failure(
            "internal_error",
            "Unexpected BudgetTooSmall: BudgetTooSmall. The driver's log has more.",
        ),
    ),
]

KINDS = pytest.mark.parametrize(
    ("error", "failure"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS]
)


def in_a_task(error: BaseException) -> Any:
    """The error as an actor's result carries it."""
    crossed = pickle.loads(pickle.dumps(error))
    task_error: Any = RayTaskError
    return task_error("solve", "Traceback ...", crossed, "worker", 1, "127.0.0.1")


@KINDS
def test_an_error_becomes_a_failure(error: BaseException, failure: Failure) -> None:
    assert failure_of(error) == failure


@KINDS
def test_it_does_so_wherever_in_the_cluster_it_arose(
    error: BaseException, failure: Failure
) -> None:
    task = in_a_task(error)
    assert failure_of(task) == failure
    assert failure_of(task.as_instanceof_cause()) == failure
    assert failure_of(in_a_task(task)) == failure  # the actor was waiting for another


@pytest.mark.parametrize("died", [ActorDiedError(), WorkerCrashedError()])
def test_a_worker_that_died_is_lost_and_its_attempt_may_be_repeated(died: Exception) -> None:
    for error in (died, in_a_task(died)):
        failure = failure_of(error)
        assert failure.code == "worker_lost"
        assert failure.retryable
        assert failure.detail.startswith("A worker was lost: ")
        assert "\n" not in failure.detail


# The attempt and the database


@pytest.fixture
def attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_spec: JobSpec
) -> Iterator[tuple[Store, Job]]:
    """A claimed job in the database that the driver's own settings name; no Ray is started."""
    monkeypatch.setenv("EIGENPRESS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("EIGENPRESS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("EIGENPRESS_RETRY_FIRST_SECONDS", "0")
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    store = Store(Settings().database)
    store.migrate()
    store.create(job_spec)
    job = store.claim()
    assert job is not None
    yield store, job
    store.close()


def run_as(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    def run_attempt(job: Job, _progress: object, settings: Settings) -> Any:
        scratch = settings.scratch_dir / f"{job.id}-{job.attempt}"
        scratch.mkdir(parents=True)
        return run(job)

    monkeypatch.setattr(driver, "run_attempt", run_attempt)


def raising(error: Exception) -> Any:
    def run(_job: Job) -> Any:
        raise error

    return run


def test_an_outcome_ends_the_job_as_succeeded(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, job = attempt
    run_as(monkeypatch, lambda _: Outcome([], {"format": 1}))
    assert main(job.id, 1) == 0
    assert store.get(job.id).state is JobState.SUCCEEDED
    assert store.report(job.id) == {"format": 1}
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_error_ends_the_job_with_its_failure(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, job = attempt
    error = in_a_task(ModelInvalid("no weights", param="model")).as_instanceof_cause()
    run_as(monkeypatch, raising(error))
    assert main(job.id, 1) == EXIT_FAILED
    ended = store.get(job.id)
    assert ended.state is JobState.FAILED
    assert ended.failure == Failure("model_invalid", "no weights", "model")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_lost_worker_puts_the_job_back_until_its_attempts_are_used_up(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt
    run_as(monkeypatch, raising(ActorDiedError()))
    assert main(job.id, 1) == EXIT_FAILED
    assert store.get(job.id).state is JobState.QUEUED
    again = store.claim()
    assert again is not None
    assert main(job.id, 2) == EXIT_FAILED
    assert store.get(job.id).state is JobState.FAILED


def test_a_cancelled_attempt_stops_without_a_trace(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt

    def cancelled_meanwhile(_job: Job) -> Outcome:
        store.cancel(job.id)
        return Outcome([], {})

    run_as(monkeypatch, cancelled_meanwhile)
    assert main(job.id, 1) == EXIT_STALE
    assert store.get(job.id).state is JobState.CANCELLING
    assert store.report(job.id) is None


def test_an_attempt_that_is_not_the_current_one_does_nothing(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt
    run_as(monkeypatch, raising(AssertionError("it ran")))
    assert main(job.id, 7) == EXIT_STALE
    assert store.get(job.id) == job
    with pytest.raises(JobNotFound):
        main(new_job_id(), 1)
