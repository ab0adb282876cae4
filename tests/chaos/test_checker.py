"""The checker finds violations in histories of the real store that a test has altered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from service.domain.job import DEFAULT_TENANT, Artifact, Event, EventType, FileEntry, Job
from service.domain.retry_policy import RetryPolicy
from service.domain.spec.job import JobSpec
from service.domain.states import JobState, Step
from service.errors import AttemptLost, LeaseLapsed
from service.store.store import Store
from tests.chaos.checker import History, read_history, violations

NO_PAUSE = RetryPolicy(max_attempts=3, first_pause_seconds=0.0)
LOST = AttemptLost().failure()


def artifact_of(job: Job, attempt: int) -> Artifact:
    prefix = f"jobs/{job.id}/artifacts/keep-0.8/{attempt}-00000000/"
    return Artifact("keep-0.8", prefix, (FileEntry("a", 1, "0" * 64),))


def run_attempt(store: Store, *, end: Callable[[Job], object]) -> Job:
    """Claim the only job, and make all writes of an attempt before its end."""
    job = store.claims.claim(owner="one", lease_seconds=30)
    assert job is not None
    store.claims.submitted(job.id, job.attempt, 30)
    store.attempts.renew(job.id, job.attempt, 30)
    for step in (Step.RESOLVE, Step.CALIBRATE):
        store.attempts.progress(job.id, job.attempt, step, 0, 2, "things")
        store.attempts.progress(job.id, job.attempt, step, 2, 2, "things")
    store.attempts.record(job.id, job.attempt, "workers.placed", "Somewhere.")
    store.attempts.renew(job.id, job.attempt, 30)
    end(job)
    return job


@pytest.fixture
def succeeded(job_store: Store, job_spec: JobSpec) -> History:
    """A job that was released once and lost once, then published by the second attempt."""

    def lose(job: Job) -> None:
        job_store.attempts.fail(job.id, job.attempt, LOST, NO_PAUSE)

    def succeed(job: Job) -> None:
        job_store.attempts.published(job.id, job.attempt, 0, artifact_of(job, job.attempt))
        job_store.attempts.renew(job.id, job.attempt, 30)
        job_store.attempts.succeed(job.id, job.attempt, {})

    made = job_store.users(DEFAULT_TENANT).create(job_spec)
    claimed = job_store.claims.claim(owner="one", lease_seconds=30)
    assert claimed is not None
    job_store.claims.release(made.id, claimed.attempt, "No agent.")
    run_attempt(job_store, end=lose)
    run_attempt(job_store, end=succeed)
    return read_history(job_store, made.id)


def test_what_the_store_writes_is_clean(succeeded: History) -> None:
    assert violations(succeeded) == []


def test_every_other_end_is_clean(job_store: Store, job_spec: JobSpec) -> None:
    def fail(job: Job) -> None:
        job_store.attempts.published(job.id, job.attempt, 0, artifact_of(job, job.attempt))
        job_store.attempts.fail(job.id, job.attempt, LOST, replace(NO_PAUSE, max_attempts=1))

    def cancel(job: Job) -> None:
        job_store.users(DEFAULT_TENANT).cancel(job.id)
        job_store.claims.end_cancelled(job.id, job.attempt)

    retried = job_store.users(DEFAULT_TENANT).create(job_spec)
    run_attempt(job_store, end=fail)
    assert violations(read_history(job_store, retried.id)) == []
    job_store.users(DEFAULT_TENANT).retry(retried.id)
    run_attempt(job_store, end=fail)
    stopped = job_store.users(DEFAULT_TENANT).create(job_spec)
    run_attempt(job_store, end=cancel)
    waiting = job_store.users(DEFAULT_TENANT).create(job_spec)
    job_store.users(DEFAULT_TENANT).cancel(waiting.id)
    for job in (retried, stopped, waiting):
        assert violations(read_history(job_store, job.id)) == []


def find(history: History, type_: str, nth: int = 0) -> int:
    return [n for n, event in enumerate(history.events) if event.type == type_][nth]


def without(history: History, type_: str, nth: int = 0) -> History:
    number = find(history, type_, nth)
    return replace(history, events=[*history.events[:number], *history.events[number + 1 :]])


def put(history: History, position: int, event: Event) -> History:
    """Insert an event; the ids and times of all stay in order."""
    events = [*history.events[:position], event, *history.events[position:]]
    start = events[0].at
    spread = [
        replace(event, id=number, at=start + timedelta(milliseconds=number))
        for number, event in enumerate(events, start=1)
    ]
    return replace(history, events=spread)


def again(history: History, type_: str, *, after: str, nth: int = 0) -> History:
    """A copy of the first event of a type, after the n-th of another."""
    copy = history.events[find(history, type_)]
    return put(history, find(history, after, nth) + 1, copy)


def with_attempt(history: History, type_: str, attempt: int, nth: int = 0) -> History:
    number = find(history, type_, nth)
    changed = replace(history.events[number], attempt=attempt)
    return replace(
        history, events=[*history.events[:number], changed, *history.events[number + 1 :]]
    )


SPOILED: dict[str, tuple[Callable[[History], History], str]] = {
    "never queued": (lambda h: without(h, "job.queued"), "before the job was queued"),
    "queued twice": (lambda h: again(h, "job.queued", after="job.released"), "second time"),
    "never claimed": (lambda h: without(h, "job.claimed"), "no way from queued"),
    "two attempts at once": (
        lambda h: again(h, "job.claimed", after="attempt.submitted"),
        "has not ended",
    ),
    "lost without an end": (lambda h: without(h, "job.retried"), "has not ended"),
    "a number left out": (lambda h: with_attempt(h, "job.claimed", 3, nth=2), "does not follow"),
    "a number used twice": (lambda h: with_attempt(h, "job.claimed", 1, nth=2), "does not follow"),
    "released yet counted": (lambda h: without(h, "job.released"), "has not ended"),
    "a stale note": (
        lambda h: again(h, "workers.placed", after="job.claimed", nth=2),
        "stale attempt",
    ),
    "a note between attempts": (
        lambda h: again(h, "workers.placed", after="job.retried"),
        "stale attempt",
    ),
    "stale progress": (
        lambda h: again(h, "step.finished", after="attempt.submitted", nth=1),
        "stale attempt",
    ),
    "a note after the end": (
        lambda h: again(h, "workers.placed", after="job.succeeded"),
        "stale attempt",
    ),
    "a stale publication": (
        lambda h: with_attempt(h, "artifact.published", 1),
        "stale attempt",
    ),
    "published twice": (
        lambda h: again(h, "artifact.published", after="artifact.published"),
        "second time",
    ),
    "published after the end": (
        lambda h: again(h, "artifact.published", after="job.succeeded"),
        "stale attempt",
    ),
    "ended twice": (
        lambda h: again(h, "job.succeeded", after="job.succeeded"),
        "no way from succeeded",
    ),
    "ended by a stale attempt": (lambda h: with_attempt(h, "job.succeeded", 1), "another"),
    "a user's retry of a running job": (
        lambda h: put(
            h, find(h, "job.succeeded"), replace(h.events[0], type=EventType.REQUEUED, attempt=2)
        ),
        "does not leave running",
    ),
    "a retry after success": (
        lambda h: again(h, "job.retried", after="job.succeeded"),
        "no way from succeeded",
    ),
    "another job's event": (
        lambda h: replace(h, events=[*h.events[:-1], replace(h.events[-1], job_id="job-x")]),
        "another job",
    ),
    "events out of order": (
        lambda h: replace(h, events=[h.events[0], *h.events[:0:-1]]),
        "out of order",
    ),
    "a clock that went back": (
        lambda h: replace(
            h,
            events=[*h.events[:-1], replace(h.events[-1], at=h.events[0].at - timedelta(hours=1))],
        ),
        "older than",
    ),
    "an end that the row does not know": (
        lambda h: replace(h, job=replace(h.job, state=JobState.RUNNING)),
        "its row has state running",
    ),
    "a row of another attempt": (
        lambda h: replace(h, job=replace(h.job, attempt=7)),
        "its row has attempt 7",
    ),
    "an artifact lost": (lambda h: replace(h, artifacts=()), "its rows have {}"),
    "an artifact of another publication": (
        lambda h: replace(h, artifacts=[replace(h.artifacts[0], prefix="elsewhere/")]),
        "elsewhere",
    ),
    "an artifact twice": (lambda h: replace(h, artifacts=[*h.artifacts, *h.artifacts]), "two rows"),
    "success without its artifact": (
        lambda h: replace(without(h, "artifact.published"), artifacts=()),
        "succeeded with []",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_it_finds(name: str, succeeded: History) -> None:
    spoil, words = SPOILED[name]
    found = violations(spoil(succeeded))
    assert any(words in line for line in found), found


def lapsed(store: Store, spec: JobSpec) -> History:
    def lapse(job: Job) -> None:
        store.attempts.renew(job.id, job.attempt, -1)
        failure = LeaseLapsed().failure()
        store.attempts.fail(job.id, job.attempt, failure, NO_PAUSE, only_if_lapsed=True)

    made = store.users(DEFAULT_TENANT).create(spec)
    run_attempt(store, end=lapse)
    return read_history(store, made.id)


def test_it_finds_an_attempt_ended_before_its_lease(job_store: Store, job_spec: JobSpec) -> None:
    late = lapsed(job_store, job_spec)
    assert violations(late) == []
    end = late.events[-1]
    until = (end.at + timedelta(seconds=1)).isoformat()
    for spoiled, words in (
        ({**end.data, "lease_until": until}, "whose lease ran until"),
        ({"code": end.data["code"]}, "lacks the time when"),
    ):
        early = replace(late, events=[*late.events[:-1], replace(end, data=spoiled)])
        assert any(words in line for line in violations(early))
