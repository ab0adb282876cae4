"""A job's attempts and steps, as its events tell them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.pages.job.timeline import Bar, current_step, timeline
from api.schemas.jobs import Job
from service.domain.job import Event, EventType
from service.domain.job import Job as StoredJob
from service.domain.job import StepProgress as StoredStep
from service.domain.states import JobState, Step
from tests.fixtures.jobs import small_spec

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
LOST = {"code": "worker_lost", "detail": "Worker 1 died.", "after_seconds": 5.0}


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def history(*told: tuple[float, int | None, str, dict[str, Any]]) -> list[Event]:
    """Events: the second, the attempt, the type and the data."""
    return [
        Event(number, "job-1", attempt, at(second), kind, str(data.get("detail", kind)), data)
        for number, (second, attempt, kind, data) in enumerate(told)
    ]


def job(state: JobState, attempt: int = 1, steps: tuple[StoredStep, ...] = ()) -> Job:
    stored = StoredJob(
        "job-1",
        None,
        state,
        small_spec().model_dump_json(),
        attempt,
        START,
        None,
        None,
        None,
        steps,
    )
    return Job.of(stored, root_path="", dashboard_url="")


def step(number: int, second: float, kind: EventType, name: str) -> Any:
    return (second, number, kind, {"step": name, "total": 128, "unit": "sequences"})


FIRST: tuple[Any, ...] = (
    (0, None, EventType.QUEUED, {}),
    (10, 1, EventType.CLAIMED, {}),
    step(1, 20, EventType.STEP_STARTED, "resolve"),
    step(1, 30, EventType.STEP_FINISHED, "resolve"),
    step(1, 30, EventType.STEP_STARTED, "calibrate"),
    (110, 1, EventType.RETRIED, LOST),
)


def test_an_attempt_that_failed_says_when_and_why_and_which_step_broke() -> None:
    (attempt,) = timeline(job(JobState.QUEUED), history(*FIRST), at(200))
    assert (attempt.number, attempt.seconds, attempt.outcome) == (1, 100, "failed")
    assert (attempt.code, attempt.reason) == ("worker_lost", "Worker 1 died.")
    assert (attempt.pause_seconds, attempt.to_come) == (5.0, ())
    resolve, calibrate = attempt.steps
    assert (resolve.seconds, resolve.done, resolve.bar) == (10, 128, Bar(0.1, 0.1))
    assert (calibrate.seconds, calibrate.done, calibrate.bar) == (None, None, Bar(0.2, 0.8))


def test_the_latest_attempt_is_first_and_has_the_job_s_progress() -> None:
    told = history(
        *FIRST,
        (120, 2, EventType.CLAIMED, {}),
        (121, 2, "attempt.resumed", {"detail": "Continues after 48 sequences."}),
        step(2, 140, EventType.STEP_STARTED, "calibrate"),
    )
    steps = (StoredStep(Step.CALIBRATE, 64, 128, "sequences", at(140), None),)
    second, first = timeline(job(JobState.RUNNING, 2, steps), told, at(160))
    assert (first.number, second.number) == (1, 2)
    assert (second.outcome, second.ended_at) == ("running", None)
    assert second.notes == ("Continues after 48 sequences.",)
    (calibrate,) = second.steps
    assert (calibrate.done, calibrate.total, calibrate.bar) == (64, 128, Bar(0.5, 0.5))
    others = set(Step) - {Step.CALIBRATE, Step.RECOVER}
    assert second.to_come == tuple((each, None) for each in Step if each in others)


def test_a_released_attempt_gives_its_number_to_the_next() -> None:
    told = history(
        (0, 1, EventType.CLAIMED, {}),
        (1, 1, EventType.RELEASED, {"detail": "Ray does not answer."}),
        (5, 1, EventType.CLAIMED, {}),
    )
    second, first = timeline(job(JobState.RUNNING), told, at(6))
    assert (first.number, first.outcome) == (1, "could not start")
    assert (second.number, second.outcome) == (1, "running")


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (EventType.SUCCEEDED, "succeeded"),
        (EventType.FAILED, "failed"),
        (EventType.CANCELLED, "cancelled"),
    ],
)
def test_what_follows_an_attempt_s_end_is_not_of_it(end: EventType, outcome: str) -> None:
    told = history(
        (0, 1, EventType.CLAIMED, {}),
        (7, 1, end, {}),
        (9, 1, EventType.REQUEUED, {}),
        (20, 1, EventType.CANCELLED, {}),
    )
    (attempt,) = timeline(job(JobState(outcome)), told, at(30))
    assert (attempt.outcome, attempt.seconds) == (outcome, 7)


def test_attempts_whose_beginning_is_not_told_are_left_out() -> None:
    assert timeline(job(JobState.QUEUED), history(*FIRST[2:]), at(200)) == ()


def test_an_instant_has_bars_that_can_be_seen_and_fit() -> None:
    told = history(
        (0, 1, EventType.CLAIMED, {}),
        step(1, 0, EventType.STEP_STARTED, "resolve"),
        step(1, 0, EventType.STEP_FINISHED, "resolve"),
        step(1, 100, EventType.STEP_STARTED, "publish"),
        step(1, 100, EventType.STEP_FINISHED, "publish"),
        (100, 1, EventType.SUCCEEDED, {}),
    )
    (attempt,) = timeline(job(JobState.SUCCEEDED), told, at(200))
    for each in attempt.steps:
        assert each.bar.length > 0
        assert each.bar.start + each.bar.length <= 1


def test_the_step_under_way_is_the_one_that_has_not_finished() -> None:
    steps = (
        StoredStep(Step.RESOLVE, 1, 1, "models", at(0), at(1)),
        StoredStep(Step.CALIBRATE, 3, 9, "sequences", at(1), None),
    )
    found = current_step(job(JobState.RUNNING, 1, steps))
    assert found is not None
    assert found.step is Step.CALIBRATE
    assert current_step(job(JobState.FAILED, 1, steps)) is None
    assert current_step(job(JobState.RUNNING, 1, steps[:1])) is None
