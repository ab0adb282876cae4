"""The store on a real SQLite file: reads, the life of a job, the fence."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, create_engine, select, update

import service.store.attempts
import service.store.claims
import service.store.queue
import service.store.rows
import service.store.transitions
import service.store.users
from service.domain.job import DEFAULT_TENANT, Artifact, EventType, FileEntry, Job
from service.domain.placement import Placement
from service.domain.prediction import PREDICTED, Prediction
from service.domain.retry_policy import RetryPolicy
from service.domain.spec.job import JobSpec, Limits
from service.domain.states import TRANSITIONS, JobState, Step
from service.errors import (
    ArtifactConflict,
    AttemptStale,
    IdempotencyKeyReused,
    InvalidParameter,
    JobConflict,
    JobNotFound,
    SpecificationUnknown,
    StorageUnavailable,
)
from service.store import tables
from service.store.database import clock
from service.store.listing import JobFilter
from service.store.store import Store
from service.store.transitions import mark_deleted
from tests.fixtures.jobs import age, at_once, rewrite_spec, small_spec

RETRYABLE = StorageUnavailable("S3 is away").failure()
FATAL = InvalidParameter("no such thing", param="model.path").failure()
ARTIFACT = Artifact("keep-0.8", "jobs/x/artifacts/keep-0.8/", (FileEntry("a/b", 3, "0" * 64),))


def claimed(store: Store) -> Job:
    store.users(DEFAULT_TENANT).create(small_spec())
    job = store.claims.claim()
    assert job is not None
    return job


def types(store: Store, job_id: str) -> list[str]:
    return [event.type for event in store.records.events(job_id)]


def test_a_created_job_waits_and_reads_back(job_store: Store, job_spec: JobSpec) -> None:
    before = datetime.now(UTC)
    job = job_store.users(DEFAULT_TENANT).create(job_spec)
    assert job == job_store.records.get(job.id)
    assert (job.spec, job.name, job.state, job.attempt) == (job_spec, "small", "queued", 0)
    assert before <= job.created_at <= datetime.now(UTC)
    assert job.created_at.utcoffset() is not None
    assert (job.started_at, job.finished_at, job.failure, job.steps) == (None, None, None, ())
    assert types(job_store, job.id) == [EventType.QUEUED]


def test_an_attempt_from_claim_to_success(job_store: Store) -> None:
    job = claimed(job_store)
    assert (job.state, job.attempt, job.submitted_at) == (JobState.RUNNING, 1, None)
    assert job.started_at is not None
    job_store.claims.submitted(job.id, 1)
    job_store.claims.submitted(job.id, 1)
    job_store.attempts.record(job.id, 1, "gpu.found", "Two GPUs", {"count": 2})
    job_store.attempts.published(job.id, 1, 0, ARTIFACT)
    job_store.attempts.published(job.id, 1, 0, ARTIFACT)
    job_store.attempts.succeed(job.id, 1, {"loss": 1.5})
    ended = job_store.records.get(job.id)
    assert ended.state is JobState.SUCCEEDED
    assert ended.finished_at is not None
    assert ended.submitted_at is not None
    assert job_store.records.artifacts(job.id) == (ARTIFACT,)
    assert job_store.records.report(job.id) == {"loss": 1.5}
    assert types(job_store, job.id) == [
        EventType.QUEUED,
        EventType.CLAIMED,
        EventType.SUBMITTED,
        "gpu.found",
        EventType.PUBLISHED,
        EventType.SUCCEEDED,
    ]
    found = job_store.records.events(job.id)[3]
    assert (found.attempt, found.message, found.data) == (1, "Two GPUs", {"count": 2})


def test_nothing_is_published_before_success(job_store: Store) -> None:
    job = claimed(job_store)
    assert job_store.records.artifacts(job.id) == ()
    assert job_store.records.report(job.id) is None


def test_a_report_must_be_json_that_every_reader_takes(job_store: Store) -> None:
    job = claimed(job_store)
    with pytest.raises(Exception, match="Out of range float"):
        job_store.attempts.succeed(job.id, 1, {"perplexity": float("nan")})
    assert job_store.records.get(job.id).state is JobState.RUNNING  # nothing half-written


@pytest.mark.parametrize("method", ["get", "events", "artifacts", "report", "cancel", "retry"])
def test_an_unknown_job_is_not_found(job_store: Store, method: str) -> None:
    with pytest.raises(JobNotFound, match="job-none"):
        getattr(job_store.users(DEFAULT_TENANT), method)("job-none")
    with pytest.raises(JobNotFound):
        getattr(job_store.users(DEFAULT_TENANT), method)("job-\0")


def test_a_message_may_hold_anything(job_store: Store) -> None:
    job = claimed(job_store)
    odd = "a\0b \udcff"
    job_store.attempts.record(job.id, 1, "note", odd, {"odd": odd})
    job_store.attempts.fail(job.id, 1, replace(FATAL, detail=odd), at_once(1))
    note, end = job_store.records.events(job.id)[-2:]
    assert (note.message, note.data["odd"]) == ("a\\x00b \\udcff", "a\0b \\udcff")
    assert end.message == note.message
    ended = job_store.records.get(job.id).failure
    assert ended is not None
    assert ended.detail == "a\0b \\udcff"


def test_what_is_stored_can_be_sent(job_store: Store) -> None:
    job = claimed(job_store)
    odd = {"\udcff": ["\ud83d\udd11 \U0001f511 \\ud800", {"half": "\ud800"}]}
    job_store.attempts.record(job.id, 1, "note", "odd", odd)
    data = job_store.records.events(job.id)[-1].data
    assert data == {"\\udcff": ["\\ud83d\\udd11 \U0001f511 \\ud800", {"half": "\\ud800"}]}
    assert json.dumps(data, ensure_ascii=False).encode()


class TestListing:
    def test_newest_first_in_pages(self, job_store: Store) -> None:
        jobs = [
            job_store.users(DEFAULT_TENANT).create(small_spec(f"n{number}")) for number in range(5)
        ]
        newest = list(reversed(jobs))
        assert job_store.records.list_jobs(limit=2) == newest[:2]
        assert job_store.records.list_jobs(limit=2, before=newest[1].id) == newest[2:4]
        assert job_store.records.list_jobs(limit=9, before=jobs[0].id) == []

    def test_by_state_with_steps(self, job_store: Store) -> None:
        running = claimed(job_store)
        job_store.users(DEFAULT_TENANT).create(small_spec())
        job_store.attempts.progress(running.id, 1, Step.RESOLVE, 1, 2, "files")
        either = JobFilter(states={JobState.RUNNING, JobState.FAILED})
        (found,) = job_store.records.list_jobs(either, limit=9)
        assert found == job_store.records.get(running.id)
        assert [step.step for step in found.steps] == [Step.RESOLVE]

    def test_events_after_one_seen(self, job_store: Store) -> None:
        job = claimed(job_store)
        for number in range(3):
            job_store.attempts.record(job.id, 1, "note", str(number))
        first = job_store.records.events(job.id, limit=3)
        rest = job_store.records.events(job.id, after=first[-1].id)
        assert [event.message for event in rest] == ["1", "2"]
        assert [event.id for event in first + rest] == sorted(e.id for e in first + rest)

    def test_jobs_are_counted_by_state_without_deleted_ones(self, job_store: Store) -> None:
        assert job_store.records.count(set(JobState)) == 0
        jobs = [job_store.users(DEFAULT_TENANT).create(small_spec()) for _ in range(3)]
        job_store.claims.claim()
        assert job_store.records.count({JobState.QUEUED}) == 2
        assert job_store.records.count({JobState.RUNNING, JobState.CANCELLING}) == 1
        job_store.users(DEFAULT_TENANT).cancel(jobs[2].id)
        job_store.users(DEFAULT_TENANT).delete(jobs[2].id)
        assert job_store.records.count(set(JobState)) == 2


class TestSteps:
    def test_progress_starts_and_finishes_a_step_once(self, job_store: Store) -> None:
        job = claimed(job_store)
        for done in (0, 1, 2, 2):
            job_store.attempts.progress(job.id, 1, Step.CALIBRATE, done, 2, "sequences")
        (step,) = job_store.records.get(job.id).steps
        assert (step.step, step.done, step.total, step.unit) == ("calibrate", 2, 2, "sequences")
        assert step.finished_at is not None
        assert step.finished_at >= step.started_at
        assert types(job_store, job.id)[2:] == [EventType.STEP_STARTED, EventType.STEP_FINISHED]

    def test_an_empty_step_finishes_as_it_starts(self, job_store: Store) -> None:
        job = claimed(job_store)
        job_store.attempts.progress(job.id, 1, Step.EVALUATE, 0, 0, "texts")
        assert job_store.records.get(job.id).steps[0].finished_at is not None

    def test_steps_come_in_order_and_belong_to_the_attempt(self, job_store: Store) -> None:
        job = claimed(job_store)
        for step in (Step.SOLVE, Step.RESOLVE, Step.CALIBRATE):
            job_store.attempts.progress(job.id, 1, step, 0, 1, "parts")
        order = [progress.step for progress in job_store.records.get(job.id).steps]
        assert order == [Step.RESOLVE, Step.CALIBRATE, Step.SOLVE]
        job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(2))
        job_store.claims.claim()
        assert job_store.records.get(job.id).steps == ()

    @pytest.mark.parametrize(("done", "total"), [(-1, 2), (3, 2), (0, -1)])
    def test_impossible_progress_is_a_defect(self, job_store: Store, done: int, total: int) -> None:
        job = claimed(job_store)
        with pytest.raises(ValueError, match="cannot be done"):
            job_store.attempts.progress(job.id, 1, Step.SOLVE, done, total, "layers")


class TestFailure:
    def test_retryable_failures_go_back_to_the_queue(self, job_store: Store) -> None:
        job = claimed(job_store)
        assert job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(2)) is JobState.QUEUED
        waiting = job_store.records.get(job.id)
        assert (waiting.started_at, waiting.failure, waiting.finished_at) == (None, None, None)
        assert job_store.records.events(job.id)[-1].data["code"] == "storage_unavailable"
        again = job_store.claims.claim()
        assert again is not None
        assert (again.id, again.attempt) == (job.id, 2)
        assert job_store.attempts.fail(job.id, 2, RETRYABLE, at_once(2)) is JobState.FAILED
        assert job_store.records.get(job.id).failure == RETRYABLE

    def test_a_users_mistake_ends_the_job(self, job_store: Store) -> None:
        job = claimed(job_store)
        assert job_store.attempts.fail(job.id, 1, FATAL, at_once(9)) is JobState.FAILED
        ended = job_store.records.get(job.id)
        assert ended.failure == FATAL
        assert ended.finished_at is not None

    def test_a_failed_job_is_cleaned_once(self, job_store: Store) -> None:
        job = claimed(job_store)
        job_store.attempts.fail(job.id, 1, FATAL, at_once(1))
        assert [dirty.id for dirty in job_store.claims.to_clean()] == [job.id]
        job_store.claims.cleaned(job.id, 1)
        job_store.claims.cleaned(job.id, 1)
        assert job_store.claims.to_clean() == []

    def test_cleaning_waits_for_its_grace_and_may_be_due_again(self, job_store: Store) -> None:
        job = claimed(job_store)
        job_store.attempts.succeed(job.id, 1, {})
        assert job_store.claims.to_clean(grace_seconds=60) == []
        job_store.claims.cleaned(job.id, 1, again_after=timedelta(seconds=60))
        assert job_store.claims.to_clean() == []
        job_store.claims.cleaned(job.id, 1, again_after=timedelta(0))
        assert [dirty.id for dirty in job_store.claims.to_clean()] == [job.id]

    def test_a_job_that_was_taken_up_again_is_not_cleaned(self, job_store: Store) -> None:
        job = claimed(job_store)
        job_store.attempts.fail(job.id, 1, FATAL, at_once(1))
        job_store.users(DEFAULT_TENANT).retry(job.id)
        assert job_store.claims.to_clean() == []
        with pytest.raises(AttemptStale):
            job_store.claims.cleaned(job.id, 1)

    def test_what_it_published_does_not_count(self, job_store: Store) -> None:
        job = claimed(job_store)
        job_store.attempts.published(job.id, 1, 0, ARTIFACT)
        job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(2))
        assert job_store.records.artifacts(job.id) == (
            ARTIFACT,
        )  # the next attempt need not do it again
        job_store.claims.claim()
        job_store.attempts.fail(job.id, 2, RETRYABLE, at_once(2))
        assert job_store.records.artifacts(job.id) == ()


class TestPauses:
    def test_a_job_waits_before_its_next_attempt(self, job_store: Store) -> None:
        job = claimed(job_store)
        other = job_store.users(DEFAULT_TENANT).create(small_spec())
        job_store.attempts.fail(job.id, 1, RETRYABLE, RetryPolicy(2, first_pause_seconds=60))
        waiting = job_store.records.get(job.id)
        assert waiting.available_at is not None
        assert 50 < (waiting.available_at - datetime.now(UTC)).total_seconds() <= 60
        assert [
            claim and claim.id for claim in (job_store.claims.claim(), job_store.claims.claim())
        ] == [
            other.id,
            None,
        ]

    def test_it_says_what_the_attempt_before_died_of(self, job_store: Store) -> None:
        job = claimed(job_store)
        job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(3))
        assert job_store.records.get(job.id).last_failure == RETRYABLE
        again = job_store.claims.claim()
        assert again is not None
        assert (again.failure, again.last_failure) == (None, RETRYABLE)
        job_store.attempts.fail(job.id, 2, FATAL, at_once(3))
        ended = job_store.records.get(job.id)
        assert (ended.failure, ended.last_failure) == (FATAL, None)
        assert job_store.users(DEFAULT_TENANT).retry(job.id).last_failure == FATAL

    def test_its_users_retry_does_not_wait_and_has_all_attempts_again(
        self, job_store: Store
    ) -> None:
        job = claimed(job_store)
        job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(1))
        again = job_store.users(DEFAULT_TENANT).retry(job.id)
        assert (again.state, again.failure, again.finished_at) == ("queued", None, None)
        assert again.attempts_before == 1
        claim = job_store.claims.claim()
        assert claim is not None
        assert claim.attempt == 2
        assert job_store.attempts.fail(job.id, 2, RETRYABLE, at_once(2)) is JobState.QUEUED


class TestFairness:
    def test_priority_comes_before_age(self, job_store: Store) -> None:
        spec = small_spec()
        jobs = {
            p: job_store.users(DEFAULT_TENANT).create(spec.model_copy(update={"priority": p}))
            for p in (0, -1, 9)
        }
        claims = [job_store.claims.claim() for _ in jobs]
        assert [job and job.id for job in claims] == [jobs[p].id for p in (9, 0, -1)]

    def test_a_tenant_with_many_jobs_does_not_starve_one_with_few(self, job_store: Store) -> None:
        for _ in range(20):
            job_store.users("many").create(small_spec())
        job_store.users("one").create(small_spec())
        served = [job_store.claims.claim() for _ in range(3)]
        assert [job and job.tenant for job in served] == ["many", "one", "many"]

    def test_one_slot_goes_from_tenant_to_tenant(self, job_store: Store) -> None:
        for tenant in ("a", "a", "a", "b", "b"):
            job_store.users(tenant).create(small_spec())
        order = []
        while (job := job_store.claims.claim(max_running=1)) is not None:
            order.append(job.tenant)
            job_store.attempts.succeed(job.id, 1, {})
        assert order == ["a", "b", "a", "b", "a"]

    def test_limits_on_running_jobs(self, job_store: Store) -> None:
        for tenant in ("a", "a", "b", "b"):
            job_store.users(tenant).create(small_spec())
        claims = [job_store.claims.claim(max_running=3, max_running_per_tenant=1) for _ in range(3)]
        assert [job and job.tenant for job in claims] == ["a", "b", None]
        assert job_store.claims.claim(max_running=2) is None
        assert job_store.claims.claim(max_running=3) is not None


class TestLeases:
    def test_a_lease_lapses_and_is_renewed(self, job_store: Store) -> None:
        job_store.users(DEFAULT_TENANT).create(small_spec())
        job = job_store.claims.claim(owner="a", lease_seconds=0)
        assert job is not None
        assert job.lapsed
        job_store.claims.submitted(job.id, 1, 60)
        assert not job_store.records.get(job.id).lapsed
        job_store.attempts.renew(job.id, 1, 0)
        assert job_store.records.get(job.id).lapsed
        job_store.attempts.renew(job.id, 1, 60)
        assert not job_store.records.get(job.id).lapsed

    def test_history_does_not_grow_with_renewals(self, job_store: Store) -> None:
        job = claimed(job_store)
        job_store.attempts.renew(job.id, 1, 60)
        history = job_store.records.events(job.id)
        assert history[-1].type == EventType.SUBMITTED
        for _ in range(3):
            job_store.attempts.renew(job.id, 1, 60)
        assert job_store.records.events(job.id) == history

    def test_a_silent_claim_is_taken_over_once(self, job_store: Store) -> None:
        job_store.users(DEFAULT_TENANT).create(small_spec())
        job = job_store.claims.claim(owner="a", lease_seconds=0)
        assert job is not None
        job_store.claims.take_over(job.id, 1, "b", 60)
        with pytest.raises(AttemptStale):
            job_store.claims.take_over(job.id, 1, "c", 60)
        assert job_store.records.events(job.id)[-1].data["owner"] == "b"

    def test_what_was_submitted_is_not_taken_over(self, job_store: Store) -> None:
        job = claimed(job_store)
        job_store.claims.submitted(job.id, 1, 0)
        with pytest.raises(AttemptStale):
            job_store.claims.take_over(job.id, 1, "b", 60)


class TestLimits:
    @staticmethod
    def limited(**limits: int) -> JobSpec:
        return small_spec().model_copy(update={"limits": Limits(**limits)})

    def test_a_job_that_waits_too_long_fails(
        self, job_store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = job_store.users(DEFAULT_TENANT).create(self.limited(queue_seconds=60))
        assert job_store.claims.end_overdue() == []
        later(monkeypatch, 61)
        assert [ended.id for ended in job_store.claims.end_overdue()] == [job.id]
        failure = job_store.records.get(job.id).failure
        assert failure is not None
        assert (failure.code, failure.param) == ("queue_time_exceeded", "limits.queue_seconds")
        for _ in range(2):
            assert job_store.users(DEFAULT_TENANT).retry(job.id).state is JobState.QUEUED

    def test_running_time_counts_over_all_attempts(
        self, job_store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = job_store.users(DEFAULT_TENANT).create(
            self.limited(queue_seconds=60, run_seconds=100)
        )
        job_store.claims.claim()
        later(monkeypatch, 70)
        assert job_store.claims.end_overdue() == []
        job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(9))
        later(monkeypatch, 5000)
        assert job_store.claims.end_overdue() == []
        job_store.claims.claim()
        later(monkeypatch, 5029)
        assert job_store.claims.end_overdue() == []
        later(monkeypatch, 5031)
        (ended,) = job_store.claims.end_overdue()
        assert ended.failure is not None
        assert ended.failure.code == "run_time_exceeded"

    def test_a_released_job_goes_on_waiting_since_its_user_queued_it(
        self, job_store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = job_store.users(DEFAULT_TENANT).create(self.limited(queue_seconds=60))
        job_store.claims.claim()
        job_store.attempts.fail(job.id, 1, FATAL, at_once(1))
        later(monkeypatch, 1000)
        job_store.users(DEFAULT_TENANT).retry(job.id)
        job_store.claims.claim()
        job_store.claims.release(job.id, 2, "Ray does not answer")
        later(monkeypatch, 1059)
        assert job_store.claims.end_overdue() == []
        later(monkeypatch, 1061)
        assert [ended.id for ended in job_store.claims.end_overdue()] == [job.id]

    def test_a_retry_has_all_of_its_time_again(
        self, job_store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = job_store.users(DEFAULT_TENANT).create(
            self.limited(queue_seconds=60, run_seconds=100)
        )
        job_store.claims.claim()
        later(monkeypatch, 101)
        job_store.claims.end_overdue()
        job_store.users(DEFAULT_TENANT).retry(job.id)
        job_store.claims.claim()
        later(monkeypatch, 200)
        assert job_store.claims.end_overdue() == []


class TestIdempotency:
    def test_a_key_stands_for_one_job(self, job_store: Store, job_spec: JobSpec) -> None:
        job, new = job_store.users(DEFAULT_TENANT).create_once(job_spec, "key")
        assert new
        assert job_store.users(DEFAULT_TENANT).create_once(job_spec, "key") == (job, False)
        assert len(job_store.records.list_jobs(limit=9)) == 1
        assert job_store.users(DEFAULT_TENANT).find_once(job_spec, "key") == job
        assert job_store.users(DEFAULT_TENANT).find_once(job_spec, "another") is None
        for method in (
            job_store.users(DEFAULT_TENANT).create_once,
            job_store.users(DEFAULT_TENANT).find_once,
        ):
            with pytest.raises(IdempotencyKeyReused):
                method(small_spec("other"), "key")

    def test_saying_a_default_makes_no_other_body(self, job_store: Store) -> None:
        spec = small_spec()
        said = JobSpec.model_validate(spec.model_dump())
        job, _ = job_store.users(DEFAULT_TENANT).create_once(spec, "key")
        assert job_store.users(DEFAULT_TENANT).create_once(said, "key") == (job, False)

    def test_keys_are_a_tenants_own(self, job_store: Store, job_spec: JobSpec) -> None:
        first, _ = job_store.users("a").create_once(job_spec, "key")
        second, new = job_store.users("b").create_once(job_spec, "key")
        assert new
        assert first.id != second.id


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the database's clock be so many seconds ahead."""
    ahead = timedelta(seconds=seconds)

    def now(connection: Connection) -> datetime:
        return clock(connection) + ahead

    for module in (
        service.store.users,
        service.store.claims,
        service.store.attempts,
        service.store.transitions,
        service.store.rows,
        service.store.queue,
    ):
        monkeypatch.setattr(module, "clock", now)
    monkeypatch.setattr(service.store.transitions, "clock_value", now)


def test_dispatchers_read_no_specification(job_store: Store) -> None:
    ended, cancelled, overdue = (claimed(job_store) for _ in range(3))
    job_store.attempts.fail(ended.id, 1, FATAL, at_once(1))
    job_store.users(DEFAULT_TENANT).cancel(cancelled.id)
    with job_store._database.writing() as connection:
        now = clock(connection)
        jobs = tables.jobs
        connection.execute(update(jobs).values(spec="{", lease_until=now))
        connection.execute(update(jobs).where(jobs.c.id == overdue.id).values(deadline=now))
    assert [job.id for job in job_store.claims.in_flight()] == [cancelled.id, overdue.id]
    assert all(job.lapsed for job in job_store.claims.in_flight())
    assert [job.id for job in job_store.claims.to_clean()] == [ended.id]
    assert job_store.claims.head(ended.id).failure == FATAL
    (ran_out,) = job_store.claims.end_overdue()
    assert ran_out.failure is not None
    assert (ran_out.id, ran_out.failure.code) == (overdue.id, "run_time_exceeded")


class TestCancellation:
    def test_of_a_waiting_job_is_at_once(self, job_store: Store, job_spec: JobSpec) -> None:
        job = job_store.users(DEFAULT_TENANT).create(job_spec)
        assert job_store.users(DEFAULT_TENANT).cancel(job.id).state is JobState.CANCELLED
        assert job_store.claims.claim() is None
        assert job_store.claims.to_clean() == []  # it never wrote anything

    def test_of_a_running_job_waits_for_its_attempt(self, job_store: Store) -> None:
        job = claimed(job_store)
        assert job_store.users(DEFAULT_TENANT).cancel(job.id).state is JobState.CANCELLING
        assert job_store.claims.in_flight() == [job_store.claims.head(job.id)]
        job_store.claims.end_cancelled(job.id, 1)
        assert job_store.records.get(job.id).state is JobState.CANCELLED
        assert [dirty.id for dirty in job_store.claims.to_clean()] == [job.id]

    def test_again_changes_nothing(self, job_store: Store) -> None:
        job = claimed(job_store)
        first = job_store.users(DEFAULT_TENANT).cancel(job.id)
        assert job_store.users(DEFAULT_TENANT).cancel(job.id) == first
        job_store.claims.end_cancelled(job.id, 1)
        assert job_store.users(DEFAULT_TENANT).cancel(job.id).state is JobState.CANCELLED
        assert types(job_store, job.id)[2:] == [EventType.CANCELLING, EventType.CANCELLED]

    def test_between_two_attempts(self, job_store: Store) -> None:
        job = claimed(job_store)
        job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(2))
        assert job_store.users(DEFAULT_TENANT).cancel(job.id).state is JobState.CANCELLED
        assert [dirty.id for dirty in job_store.claims.to_clean()] == [job.id]


def test_a_released_job_waits_and_its_attempt_is_not_counted(job_store: Store) -> None:
    job = claimed(job_store)
    job_store.attempts.progress(job.id, 1, Step.RESOLVE, 0, 1, "models")
    job_store.claims.release(job.id, 1, "Ray does not answer")
    waiting = job_store.records.get(job.id)
    assert replace(waiting, steps=()) == replace(
        job, state=JobState.QUEUED, attempt=0, started_at=None, lease_until=None
    )
    event = job_store.records.events(job.id)[-1]
    assert (event.type, event.attempt, event.message) == (
        EventType.RELEASED,
        1,
        "Ray does not answer",
    )
    again = job_store.claims.claim()
    assert again is not None
    assert (again.attempt, again.steps) == (1, ())


def test_what_another_dispatcher_has_submitted_is_not_released(job_store: Store) -> None:
    job = claimed(job_store)
    job_store.claims.submitted(job.id, 1)
    with pytest.raises(AttemptStale, match="Another dispatcher has submitted"):
        job_store.claims.release(job.id, 1, "Ray does not answer")
    assert job_store.records.get(job.id).state is JobState.RUNNING


def test_an_attempt_that_is_heard_was_submitted(job_store: Store) -> None:
    job = claimed(job_store)
    job_store.attempts.renew(job.id, 1, 60)
    assert job_store.records.get(job.id).submitted_at is not None
    job_store.claims.submitted(job.id, 1)
    assert types(job_store, job.id).count(EventType.SUBMITTED) == 1
    with pytest.raises(AttemptStale, match="Another dispatcher has submitted"):
        job_store.claims.release(job.id, 1, "its answer was lost")


@pytest.mark.parametrize(("attempts", "end"), [(2, JobState.QUEUED), (1, JobState.FAILED)])
def test_an_attempt_may_be_ended_only_if_its_lease_is_over(
    job_store: Store, attempts: int, end: JobState
) -> None:
    job = claimed(job_store)
    job_store.attempts.renew(job.id, 1, 60)
    with pytest.raises(AttemptStale, match="has renewed its lease"):
        job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(2), only_if_lapsed=True)
    assert job_store.records.get(job.id).state is JobState.RUNNING
    job_store.attempts.renew(job.id, 1, -1)
    lapsed = job_store.records.get(job.id).lease_until
    assert lapsed is not None
    job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(attempts), only_if_lapsed=True)
    assert job_store.records.get(job.id).state is end
    assert job_store.records.events(job.id)[-1].data["lease_until"] == lapsed.isoformat()


def test_what_was_published_may_be_withdrawn_and_published_anew(job_store: Store) -> None:
    job = claimed(job_store)
    job_store.attempts.published(job.id, 1, 0, ARTIFACT)
    job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(2))
    job_store.claims.claim()
    for _ in range(2):
        job_store.attempts.withdraw(job.id, 2, "of another computation")
    assert job_store.records.artifacts(job.id) == ()
    withdrawn = job_store.records.last_event(job.id, EventType.WITHDRAWN)
    assert withdrawn is not None
    assert (withdrawn.attempt, withdrawn.data) == (2, {"names": [ARTIFACT.name]})
    assert types(job_store, job.id).count(EventType.WITHDRAWN) == 1
    other = replace(ARTIFACT, prefix="jobs/y/")
    job_store.attempts.published(job.id, 2, 0, other)
    assert job_store.records.artifacts(job.id) == (other,)


def test_recent_events_come_in_pages_the_latest_first(job_store: Store) -> None:
    job = claimed(job_store)
    for number in range(3):
        job_store.attempts.record(job.id, 1, "note", str(number))
    events = job_store.records.events(job.id)[::-1]
    assert job_store.records.recent_events(job.id) == events
    first = job_store.records.recent_events(job.id, limit=2)
    assert first == events[:2]
    assert job_store.records.recent_events(job.id, before=first[-1].id) == events[2:]
    with pytest.raises(JobNotFound):
        job_store.users("other").recent_events(job.id)


def test_the_last_event_of_a_type(job_store: Store) -> None:
    job = claimed(job_store)
    assert job_store.records.last_event(job.id, "note") is None
    for number in range(3):
        job_store.attempts.record(job.id, 1, "note", "", {"number": number})
    job_store.attempts.record(job.id, 1, "other", "")
    last = job_store.records.last_event(job.id, "note")
    assert last is not None
    assert last.data == {"number": 2}


def test_a_running_job_has_the_last_prediction_of_its_attempt(job_store: Store) -> None:
    job = claimed(job_store)
    assert job.prediction is None
    made = [Prediction(Placement(workers, 1, 0), "1") for workers in (1, 2, 3)]
    for each in made[:2]:
        job_store.attempts.record(job.id, 1, PREDICTED, "", each.as_data())
    read = job_store.records.get(job.id)
    assert read.prediction == made[1]
    assert read.read_at is not None
    assert job_store.records.list_jobs(limit=1) == [read]
    job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(2))
    assert job_store.records.get(job.id).prediction is None
    again = job_store.claims.claim()
    assert again is not None
    assert again.prediction is None
    job_store.attempts.record(job.id, 2, PREDICTED, "", {"of": "another version"})
    assert job_store.records.get(job.id).prediction is None
    job_store.attempts.record(job.id, 2, PREDICTED, "", made[2].as_data())
    assert job_store.records.get(job.id).prediction == made[2]
    job_store.attempts.succeed(job.id, 2, {})
    assert job_store.records.get(job.id).prediction is None


def test_a_job_of_a_newer_version_is_seen_and_claimed_but_its_specification_not_read(
    job_store: Store,
) -> None:
    job = job_store.users(DEFAULT_TENANT).create(small_spec())
    rewrite_spec(job_store, job, evaluation={"not_yet": {"deep": True}})
    seen, claim = job_store.records.get(job.id), job_store.claims.claim()
    assert claim is not None
    for each in (seen, claim, *job_store.records.list_jobs(limit=9)):
        assert (each.id, each.name) == (job.id, "small")
        assert json.loads(each.stored_spec)["evaluation"]["not_yet"] == {"deep": True}
        with pytest.raises(SpecificationUnknown) as refused:
            _ = each.spec
        assert refused.value.param == "evaluation.not_yet"
    job_store.claims.release(job.id, 1, "No room.")
    assert job_store.users(DEFAULT_TENANT).cancel(job.id).state is JobState.CANCELLED


def test_limits_of_a_newer_version_fail_the_job_that_a_dispatcher_would_run_without_them(
    job_store: Store,
) -> None:
    newer = job_store.users(DEFAULT_TENANT).create(small_spec())
    rewrite_spec(job_store, newer, limits={"gpu_seconds": 5})
    next_one = job_store.users(DEFAULT_TENANT).create(small_spec())
    claim = job_store.claims.claim()
    assert claim is not None
    assert claim.id == next_one.id
    assert job_store.claims.claim() is None
    failed = job_store.records.get(newer.id)
    assert (failed.state, failed.attempt) == (JobState.FAILED, 0)
    assert failed.failure is not None
    assert (failed.failure.code, failed.failure.param) == (
        "specification_unknown",
        "limits.gpu_seconds",
    )
    with pytest.raises(SpecificationUnknown, match=f"{newer.id}.*limits.gpu_seconds"):
        job_store.users(DEFAULT_TENANT).retry(newer.id)
    assert job_store.records.get(newer.id) == failed
    rewrite_spec(job_store, newer, limits={"run_seconds": 7})  # as if this version knew them
    assert job_store.users(DEFAULT_TENANT).retry(newer.id).state is JobState.QUEUED


def test_one_artifact_is_published_in_each_place(job_store: Store) -> None:
    job = claimed(job_store)
    for _ in range(2):
        job_store.attempts.published(job.id, 1, 0, ARTIFACT)
    with pytest.raises(ArtifactConflict, match="jobs/y/"):
        job_store.attempts.published(job.id, 1, 0, replace(ARTIFACT, prefix="jobs/y/"))
    assert job_store.records.artifacts(job.id) == (ARTIFACT,)
    assert types(job_store, job.id).count(EventType.PUBLISHED) == 1


def test_the_oldest_job_is_claimed_first(job_store: Store) -> None:
    jobs = [job_store.users(DEFAULT_TENANT).create(small_spec()) for _ in range(3)]
    claims = [job_store.claims.claim() for _ in range(4)]
    assert [job and job.id for job in claims] == [*(job.id for job in jobs), None]
    assert [job.id for job in job_store.claims.in_flight()] == [job.id for job in jobs]


# Every way into every state, and every write, tried in each of them.


def cancel_to_the_end(store: Store, job: str) -> None:
    store.users(DEFAULT_TENANT).cancel(job)
    store.claims.end_cancelled(job, 1)


PATHS: dict[JobState, Callable[[Store, str], object]] = {
    JobState.QUEUED: lambda store, job: store.attempts.fail(job, 1, RETRYABLE, at_once(2)),
    JobState.RUNNING: lambda *_: None,
    JobState.CANCELLING: lambda store, job: store.users(DEFAULT_TENANT).cancel(job),
    JobState.SUCCEEDED: lambda store, job: store.attempts.succeed(job, 1, {}),
    JobState.FAILED: lambda store, job: store.attempts.fail(job, 1, FATAL, at_once(1)),
    JobState.CANCELLED: cancel_to_the_end,
}

REPEATED = {
    ("succeed", JobState.SUCCEEDED),
    *(
        (write, state)
        for write in ("fail", "retry")
        for state in (JobState.QUEUED, JobState.FAILED)
    ),
}
"""Writes that may be said again by the attempt that they have ended."""

WRITES: dict[str, tuple[JobState | None, Callable[[Store, str, int], object]]] = {
    "succeed": (JobState.SUCCEEDED, lambda store, job, n: store.attempts.succeed(job, n, {})),
    "fail": (JobState.FAILED, lambda store, job, n: store.attempts.fail(job, n, FATAL, at_once(1))),
    "retry": (
        JobState.QUEUED,
        lambda store, job, n: store.attempts.fail(job, n, RETRYABLE, at_once(9)),
    ),
    "release": (JobState.QUEUED, lambda store, job, n: store.claims.release(job, n, "no room")),
    "end_cancelled": (JobState.CANCELLED, lambda store, job, n: store.claims.end_cancelled(job, n)),
    "submitted": (None, lambda store, job, n: store.claims.submitted(job, n)),
    "renew": (None, lambda store, job, n: store.attempts.renew(job, n, 60)),
    "published": (None, lambda store, job, n: store.attempts.published(job, n, 0, ARTIFACT)),
    "withdraw": (None, lambda store, job, n: store.attempts.withdraw(job, n, "other")),
    "record": (None, lambda store, job, n: store.attempts.record(job, n, "note", "")),
    "progress": (
        None,
        lambda store, job, n: store.attempts.progress(job, n, Step.SOLVE, 0, 1, "layers"),
    ),
}


def brought_to(store: Store, state: JobState) -> Job:
    job = claimed(store)
    PATHS[state](store, job.id)
    job = store.records.get(job.id)
    assert job.state is state
    return job


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("state", JobState)
def test_writes_follow_the_table_of_transitions(
    job_store: Store, state: JobState, write: str
) -> None:
    target, act = WRITES[write]
    job = brought_to(job_store, state)
    history = job_store.records.events(job.id)
    needed = JobState.CANCELLING if write == "end_cancelled" else JobState.RUNNING
    if state is needed:
        act(job_store, job.id, job.attempt)
        assert job_store.records.get(job.id).state is (target or state)
        assert target is None or target in TRANSITIONS[state]
    else:
        refused = nullcontext() if (write, state) in REPEATED else pytest.raises(AttemptStale)
        with refused:
            act(job_store, job.id, job.attempt)
        assert job_store.records.get(job.id) == job
        assert job_store.records.events(job.id) == history


@pytest.mark.parametrize("attempt", [0, 1, 3])
@pytest.mark.parametrize("write", [write for write in WRITES if write != "end_cancelled"])
def test_other_attempts_are_refused(job_store: Store, write: str, attempt: int) -> None:
    job = claimed(job_store)
    job_store.attempts.fail(job.id, 1, RETRYABLE, at_once(9))
    job_store.claims.claim()
    before = job_store.records.get(job.id), job_store.records.events(job.id)
    with pytest.raises(AttemptStale):
        WRITES[write][1](job_store, job.id, attempt)
    assert (job_store.records.get(job.id), job_store.records.events(job.id)) == before


@pytest.mark.parametrize("state", JobState)
def test_cancel_in_every_state(job_store: Store, state: JobState) -> None:
    job = brought_to(job_store, state)
    match state:
        case JobState.SUCCEEDED | JobState.FAILED:
            with pytest.raises(JobConflict, match=state):
                job_store.users(DEFAULT_TENANT).cancel(job.id)
            assert job_store.records.get(job.id) == job
        case JobState.QUEUED:
            assert job_store.users(DEFAULT_TENANT).cancel(job.id).state is JobState.CANCELLED
        case JobState.RUNNING:
            assert job_store.users(DEFAULT_TENANT).cancel(job.id).state is JobState.CANCELLING
        case _:
            assert job_store.users(DEFAULT_TENANT).cancel(job.id) == job


ENDED = [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]


def assert_no_rows(database_url: str) -> None:
    """Nothing is left of any job."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        for table in tables.metadata.tables.values():
            if table is not tables.tenants:
                assert connection.execute(select(table)).all() == []
    engine.dispose()


class TestDelete:
    @pytest.mark.parametrize("state", ENDED)
    def test_users_see_the_job_no_more_and_a_cleaner_removes_it(
        self, job_store: Store, database_url: str, state: JobState
    ) -> None:
        job = brought_to(job_store, state)
        job_store.users(DEFAULT_TENANT).delete(job.id)
        users = job_store.users(DEFAULT_TENANT)
        for ask in (users.get, users.events, users.artifacts, users.report, users.cancel):
            with pytest.raises(JobNotFound):
                ask(job.id)
        for ask_again in (users.retry, users.delete):
            with pytest.raises(JobNotFound):
                ask_again(job.id)
        assert users.list_jobs(limit=9) == []
        (due,) = job_store.claims.to_clean()
        assert (due.id, due.deleted) == (job.id, True)
        job_store.claims.remove(job.id)
        assert_no_rows(database_url)

    @pytest.mark.parametrize("state", [state for state in JobState if state not in ENDED])
    def test_a_job_that_waits_or_runs_stays(self, job_store: Store, state: JobState) -> None:
        job = brought_to(job_store, state)
        with pytest.raises(JobConflict, match=state):
            job_store.users(DEFAULT_TENANT).delete(job.id)
        assert job_store.records.get(job.id) == job

    def test_its_key_may_be_used_again(self, job_store: Store) -> None:
        first, _ = job_store.users(DEFAULT_TENANT).create_once(small_spec(), "key")
        job_store.users(DEFAULT_TENANT).cancel(first.id)
        job_store.users(DEFAULT_TENANT).delete(first.id)
        assert job_store.users(DEFAULT_TENANT).find_once(small_spec(), "key") is None
        second, new = job_store.users(DEFAULT_TENANT).create_once(small_spec(), "key")
        assert new
        assert second.id != first.id

    def test_a_cleaner_that_does_not_know_of_it_leaves_it_due(self, job_store: Store) -> None:
        job = brought_to(job_store, JobState.FAILED)
        job_store.users(DEFAULT_TENANT).delete(job.id)
        with pytest.raises(AttemptStale, match="deleted"):
            job_store.claims.cleaned(job.id, 1, timedelta(days=1))
        assert [due.id for due in job_store.claims.to_clean()] == [job.id]

    def test_only_a_deleted_job_is_removed(self, job_store: Store) -> None:
        job = brought_to(job_store, JobState.SUCCEEDED)
        with pytest.raises(ValueError, match="not been deleted"):
            job_store.claims.remove(job.id)
        assert job_store.records.get(job.id) == job


class TestRetention:
    @pytest.mark.parametrize("state", ENDED)
    def test_an_ended_job_is_deleted_once_it_is_old_enough(
        self, job_store: Store, state: JobState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = brought_to(job_store, state)
        later(monkeypatch, 3590)
        assert job_store.claims.delete_old(3600) == 0
        assert job_store.records.get(job.id) == job
        later(monkeypatch, 3600)
        assert job_store.claims.delete_old(3600) == 1
        with pytest.raises(JobNotFound):
            job_store.records.get(job.id)
        assert job_store.claims.delete_old(3600) == 0

    @pytest.mark.parametrize("state", [state for state in JobState if state not in ENDED])
    def test_a_job_that_waits_or_runs_stays_however_old(
        self, job_store: Store, state: JobState, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = brought_to(job_store, state)
        later(monkeypatch, 1e9)
        assert job_store.claims.delete_old(60) == 0
        monkeypatch.undo()
        assert job_store.records.get(job.id) == job

    def test_nothing_stays_of_an_old_job(self, job_store: Store, database_url: str) -> None:
        first, _ = job_store.users(DEFAULT_TENANT).create_once(small_spec(), "key")
        job_store.claims.claim()
        job_store.attempts.progress(first.id, 1, Step.SOLVE, 1, 1, "layers")
        job_store.attempts.published(first.id, 1, 0, ARTIFACT)
        job_store.attempts.succeed(first.id, 1, {"loss": 1.5})
        age(job_store, first.id, 3600)
        assert job_store.claims.delete_old(3600) == 1
        assert job_store.users(DEFAULT_TENANT).find_once(small_spec(), "key") is None
        (due,) = job_store.claims.to_clean(grace_seconds=3600)  # it has passed since the end
        assert (due.id, due.deleted) == (first.id, True)
        job_store.claims.remove(first.id)
        assert_no_rows(database_url)

    def test_those_that_ended_first_go_first(self, job_store: Store) -> None:
        jobs = [brought_to(job_store, JobState.FAILED) for _ in range(4)]
        for job, seconds in zip(jobs, (5000, 7000, 4000, 10), strict=True):
            age(job_store, job.id, seconds)
        assert job_store.claims.delete_old(3600, limit=2) == 2
        kept = [job.id for job in job_store.records.list_jobs(limit=9)]
        assert kept == [jobs[3].id, jobs[2].id]
        assert job_store.claims.delete_old(3600, limit=2) == 1
        assert job_store.records.get(jobs[3].id) == job_store.records.list_jobs(limit=9)[0]

    def test_a_job_that_its_user_has_retried_is_as_new(self, job_store: Store) -> None:
        job = brought_to(job_store, JobState.FAILED)
        age(job_store, job.id, 3600)
        job_store.users(DEFAULT_TENANT).retry(job.id)
        assert job_store.claims.delete_old(60) == 0
        assert job_store.records.get(job.id).state is JobState.QUEUED

    @pytest.mark.parametrize("state", [state for state in JobState if state not in ENDED])
    def test_no_job_is_marked_before_it_has_ended(self, job_store: Store, state: JobState) -> None:
        job = brought_to(job_store, state)
        ended, _ = job_store.users(DEFAULT_TENANT).create_once(small_spec(), "key")
        job_store.users(DEFAULT_TENANT).cancel(ended.id)
        with job_store._database.writing() as connection:
            assert mark_deleted(connection, [job.id, ended.id]) == [ended.id]
        assert job_store.records.list_jobs(limit=9) == [job]

    def test_several_dispatchers_delete_each_job_once(self, job_store: Store) -> None:
        jobs = [job_store.users(DEFAULT_TENANT).create(small_spec()).id for _ in range(60)]
        for job_id in jobs:
            job_store.users(DEFAULT_TENANT).cancel(job_id)
            age(job_store, job_id, 3600)
        counts: list[int] = []

        def work(_: int) -> None:
            while sum(counts) < len(jobs):
                counts.append(job_store.claims.delete_old(60, limit=7))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert sum(counts) == len(jobs)
        assert {job.id for job in job_store.claims.to_clean()} == set(jobs)
