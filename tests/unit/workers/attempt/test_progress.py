"""An attempt writes its progress within bounds and at intervals, and nothing once it is stale."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from service.domain.job import DEFAULT_TENANT, Job, StepProgress
from service.domain.placement import Placement
from service.domain.prediction import PREDICTED, Prediction
from service.domain.spec.job import JobSpec
from service.domain.states import Step
from service.errors import AttemptStale
from service.store.store import Store
from service.tracing import span
from tests.fixtures.spans import Spans, id_of, parent_of
from workers.attempt import progress as progress_module
from workers.attempt.progress import MIN_SECONDS_BETWEEN_WRITES, Progress


@dataclass
class Clock:
    """Time that passes when a test says so."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


@pytest.fixture
def job(job_store: Store, job_spec: JobSpec) -> Job:
    job_store.users(DEFAULT_TENANT).create(job_spec)
    claimed = job_store.claims.claim()
    assert claimed is not None
    return claimed


@pytest.fixture
def progress(job_store: Store, job: Job) -> Progress:
    return Progress(job_store, job.id, job.attempt)


def read(store: Store, job: Job) -> StepProgress:
    (step,) = store.records.get(job.id).steps
    return step


def test_a_step_shows_from_its_beginning(job_store: Store, job: Job, progress: Progress) -> None:
    with progress.step(Step.RESOLVE, "workers"):
        step = read(job_store, job)
        assert (step.step, step.done, step.total, step.unit) == (Step.RESOLVE, 0, 1, "workers")
        assert step.finished_at is None
    assert read(job_store, job).finished_at is not None


def test_units_are_written_at_intervals_and_the_last_only_at_the_end(
    job_store: Store, job: Job, progress: Progress, clock: Clock
) -> None:
    with progress.step(Step.CALIBRATE, "sequences") as meter:
        meter.expect(100)
        meter.advance(10)
        assert read(job_store, job).done == 0
        clock.now += MIN_SECONDS_BETWEEN_WRITES
        meter.advance(10)
        assert read(job_store, job).done == 20
        meter.advance(10)
        assert read(job_store, job).done == 20
        clock.now += 60
        meter.advance(70)
        assert read(job_store, job).done == 20
        assert read(job_store, job).finished_at is None
    step = read(job_store, job)
    assert (step.done, step.total) == (100, 100)
    assert step.finished_at is not None
    assert progress.seconds == {"calibrate": 60.5}


def test_a_step_that_fails_is_not_finished(job_store: Store, job: Job, progress: Progress) -> None:
    def fail() -> None:
        with progress.step(Step.SOLVE, "groups") as meter:
            meter.expect(2)
            meter.advance(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert read(job_store, job).finished_at is None
    assert progress.seconds == {}


def test_notes_are_events_of_the_attempt(job_store: Store, job: Job, progress: Progress) -> None:
    progress.note("texts.skipped", "2 files are not text.", {"files": ["a", "b"]})
    event = job_store.records.events(job.id)[-1]
    assert (event.type, event.message) == ("texts.skipped", "2 files are not text.")
    assert (event.attempt, event.data) == (1, {"files": ["a", "b"]})


def test_what_is_found_done_corrects_the_prediction(
    job_store: Store, job: Job, progress: Progress
) -> None:
    progress.resumes(Step.EVALUATE, 0.5)  # nothing was predicted
    progress.predict(Prediction(Placement(1, 1, 0), "1", resumed={Step.PUBLISH: 1.0}))
    progress.resumes(Step.EVALUATE, 0.0)
    progress.resumes(Step.EVALUATE, 0.25)
    events = [each for each in job_store.records.events(job.id) if each.type == PREDICTED]
    assert [each.data["resumed"] for each in events] == [
        {"publish": 1.0},
        {"publish": 1.0, "evaluate": 0.25},
    ]


def test_a_stale_attempt_fails_at_its_next_write(
    job_store: Store, job: Job, progress: Progress, clock: Clock
) -> None:
    with progress.step(Step.RESOLVE, "workers") as meter:
        meter.expect(3)
        meter.advance(2)
    job_store.users(DEFAULT_TENANT).cancel(job.id)
    clock.now += MIN_SECONDS_BETWEEN_WRITES
    for write in (
        lambda: meter.advance(0),
        meter.finish,
        lambda: progress.note("any", "thing", {}),
        lambda: progress.step(Step.SOLVE, "groups").__enter__(),
    ):
        with pytest.raises(AttemptStale):
            write()


def test_a_step_is_a_span_of_its_attempt(progress: Progress, spans: Spans) -> None:
    with span("attempt"), progress.step(Step.RESOLVE, "workers"):
        pass
    step, attempt = spans()
    assert (step.name, parent_of(step)) == ("step.resolve", id_of(attempt))
