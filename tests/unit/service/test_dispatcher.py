"""The dispatcher, pass by pass, on a real database, a cluster and a bucket in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

import service.dispatcher
import service.store
from service.dispatcher import PAUSE_TICKS, Dispatcher
from service.errors import InvalidParameter, StorageUnavailable
from service.jobs import Job
from service.settings import Settings
from service.states import JobState
from service.stopping import StopRequest
from service.store import Store
from tests.fixtures.cluster import FakeCluster
from tests.fixtures.jobs import at_once, small_spec

USER_MISTAKE = InvalidParameter().failure()
PASSING = StorageUnavailable().failure()


class FakeBucket:
    """Remembers what was to be deleted and what was."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.deleted: list[str] = []
        self.trouble: Exception | None = None
        self.refused: str | None = None

    def delete_prefix(self, prefix: str) -> int:
        self.asked.append(prefix)
        if self.trouble:
            raise self.trouble
        if prefix == self.refused:
            raise StorageUnavailable
        self.deleted.append(prefix)
        return 3


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, max_running_jobs=1, max_attempts=2, retry_first_seconds=0)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def bucket() -> FakeBucket:
    return FakeBucket()


@pytest.fixture
def dispatcher(
    job_store: Store, cluster: FakeCluster, bucket: FakeBucket, settings: Settings
) -> Dispatcher:
    return Dispatcher(job_store, cluster, bucket, settings, cleaning_grace=0)


@pytest.fixture
def queued(job_store: Store) -> Callable[[], Job]:
    return lambda: job_store.create(small_spec())


@pytest.fixture
def running(job_store: Store, dispatcher: Dispatcher, queued: Callable[[], Job]) -> Job:
    """A job whose first attempt was submitted."""
    job = queued()
    dispatcher.tick()
    return job_store.get(job.id)


def ended_jobs(store: Store, queued: Callable[[], Job]) -> list[Job]:
    """Three jobs that failed in their first attempt, which the cluster no longer knows."""
    jobs = [queued() for _ in range(3)]
    for job in jobs:
        store.claim()
        store.fail(job.id, 1, USER_MISTAKE, at_once(1))
    return jobs


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


class TestSubmission:
    def test_a_waiting_job_is_submitted_once(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        assert (running.state, running.attempt) == (JobState.RUNNING, 1)
        assert running.submitted_at is not None
        assert cluster.active == [f"{running.id}-1"]
        assert cluster.names == {f"{running.id}-1": "small"}
        dispatcher.tick()
        assert job_store.get(running.id) == running

    def test_only_so_many_run_at_once(
        self, job_store: Store, dispatcher: Dispatcher, queued: Callable[[], Job], running: Job
    ) -> None:
        second = queued()
        dispatcher.tick()
        assert job_store.get(second.id).state is JobState.QUEUED
        job_store.succeed(running.id, 1, {})
        dispatcher.tick()
        assert job_store.get(second.id).state is JobState.RUNNING

    def test_all_that_there_is_room_for_start_in_one_pass(
        self, job_store: Store, cluster: FakeCluster, bucket: FakeBucket, settings: Settings
    ) -> None:
        jobs = [job_store.create(small_spec()) for _ in range(4)]
        roomy = settings.model_copy(update={"max_running_jobs": 3})
        Dispatcher(job_store, cluster, bucket, roomy).tick()
        assert cluster.active == [f"{job.id}-1" for job in jobs[:3]]

    def test_a_refused_job_fails_with_the_reason(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        queued: Callable[[], Job],
    ) -> None:
        cluster.refusing = "bad entrypoint"
        job = queued()
        dispatcher.tick()
        failure = job_store.get(job.id).failure
        assert failure is not None
        assert (failure.code, failure.detail) == ("submission_refused", "bad entrypoint")

    def test_a_dispatcher_killed_between_claim_and_submission_is_made_up_for(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        queued: Callable[[], Job],
    ) -> None:
        job = queued()
        job_store.claim()  # by the one that was killed
        dispatcher.tick()
        assert cluster.active == [f"{job.id}-1"]
        assert job_store.get(job.id).submitted_at is not None

    def test_a_dispatcher_killed_right_after_submission_is_made_up_for(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        queued: Callable[[], Job],
    ) -> None:
        job = queued()
        job_store.claim()
        cluster.submit(job.id, 1)
        dispatcher.tick()
        dispatcher.tick()
        assert cluster.active == [f"{job.id}-1"]
        assert job_store.get(job.id).state is JobState.RUNNING


class TestClusterDown:
    def test_jobs_wait_and_run_once_it_is_back(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        queued: Callable[[], Job],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        cluster.down = True
        job = queued()
        for _ in range(3):
            dispatcher.tick()
        assert job_store.get(job.id) == job
        assert len(messages(caplog, logging.WARNING)) == 1
        cluster.down = False
        dispatcher.tick()
        assert job_store.get(job.id).state is JobState.RUNNING
        assert "The Ray cluster: works again" in messages(caplog, logging.INFO)
        assert len(messages(caplog, logging.WARNING)) == 1

    def test_running_jobs_are_left_alone(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        cluster.down = True
        dispatcher.tick()
        assert job_store.get(running.id) == running

    def test_a_cluster_that_answers_but_takes_nothing_is_given_time(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        queued: Callable[[], Job],
    ) -> None:
        cluster.dropping_submissions = True
        job = queued()
        dispatcher.tick()
        waiting = job_store.get(job.id)
        assert (waiting.state, waiting.attempt) == (JobState.QUEUED, 0)
        cluster.dropping_submissions = False
        for _ in range(PAUSE_TICKS):
            dispatcher.tick()
            assert job_store.get(job.id) == waiting
        dispatcher.tick()
        assert cluster.active == [f"{job.id}-1"]

    def test_a_new_cluster_in_its_place_gets_the_next_attempt(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        cluster.forget()
        dispatcher.tick()
        assert cluster.active == [f"{running.id}-2"]
        assert job_store.get(running.id).attempt == 2


class TestLostAttempts:
    def test_the_job_runs_again_and_says_what_was_printed(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        cluster.end(running.id, 1, printed="Killed: out of memory")
        dispatcher.tick()
        job = job_store.get(running.id)
        assert (job.state, job.attempt) == (JobState.RUNNING, 2)
        retried = next(e for e in job_store.events(running.id) if e.type == "job.retried")
        assert retried.data["code"] == "attempt_lost"
        assert "Killed: out of memory" in retried.message

    def test_after_the_last_attempt_it_fails_and_is_cleaned(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        bucket: FakeBucket,
        running: Job,
    ) -> None:
        for attempt in (1, 2):
            cluster.end(running.id, attempt)
            dispatcher.tick()
        job = job_store.get(running.id)
        assert job.state is JobState.FAILED
        assert job.failure is not None
        assert (job.failure.code, job.attempt) == ("attempt_lost", 2)
        assert bucket.deleted == [f"jobs/{running.id}/"]

    def test_a_log_that_was_lost_too_changes_nothing(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        cluster.logs_lost = True
        cluster.end(running.id, 1)
        dispatcher.tick()
        assert job_store.get(running.id).attempt == 2

    def test_a_driver_that_ended_the_job_first_is_believed(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        running: Job,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def ended_meanwhile(job_id: str, attempt: int) -> bool:
            job_store.succeed(job_id, attempt, {})
            return False

        monkeypatch.setattr(cluster, "is_active", ended_meanwhile)
        dispatcher.tick()
        assert job_store.get(running.id).state is JobState.SUCCEEDED
        assert messages(caplog, logging.WARNING) == []

    def test_a_failed_attempt_is_stopped_before_the_next(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        job_store.fail(running.id, 1, PASSING, at_once(2))  # its driver is yet to end
        dispatcher.tick()
        assert cluster.stopped == [f"{running.id}-1"]
        assert cluster.active == [f"{running.id}-2"]


class TestEnding:
    def test_cancelling_stops_the_attempt_then_ends_and_cleans(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        bucket: FakeBucket,
        running: Job,
    ) -> None:
        job_store.cancel(running.id)
        dispatcher.tick()
        assert cluster.stopped == [f"{running.id}-1"]
        assert job_store.get(running.id).state is JobState.CANCELLING
        dispatcher.tick()
        assert job_store.get(running.id).state is JobState.CANCELLED
        assert bucket.deleted == [f"jobs/{running.id}/"]

    def test_cancelled_between_claim_and_submission(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        queued: Callable[[], Job],
    ) -> None:
        job = queued()
        job_store.claim()
        job_store.cancel(job.id)
        dispatcher.tick()
        assert cluster.names == {}
        assert job_store.get(job.id).state is JobState.CANCELLED

    def test_nothing_is_cleaned_while_the_driver_may_write(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        bucket: FakeBucket,
        running: Job,
    ) -> None:
        job_store.fail(running.id, 1, USER_MISTAKE, at_once(2))
        dispatcher.tick()
        assert bucket.deleted == []
        cluster.end(running.id, 1)
        dispatcher.tick()
        dispatcher.tick()
        assert bucket.deleted == [f"jobs/{running.id}/"]

    def test_storage_trouble_is_logged_once_and_cleaning_goes_on_after(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        bucket: FakeBucket,
        running: Job,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        job_store.fail(running.id, 1, USER_MISTAKE, at_once(2))
        cluster.end(running.id, 1)
        bucket.trouble = StorageUnavailable()
        for _ in range(2 * PAUSE_TICKS):
            dispatcher.tick()
        assert len(messages(caplog, logging.WARNING)) == 1
        bucket.trouble = None
        for _ in range(PAUSE_TICKS):
            dispatcher.tick()
        assert bucket.deleted == [f"jobs/{running.id}/"]

    def test_an_ended_job_is_left_alone_until_its_last_actor_is_gone(
        self,
        job_store: Store,
        cluster: FakeCluster,
        bucket: FakeBucket,
        settings: Settings,
        queued: Callable[[], Job],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        dispatcher = Dispatcher(job_store, cluster, bucket, settings)
        job = queued()
        dispatcher.tick()
        job_store.cancel(job.id)
        for _ in range(3):
            dispatcher.tick()
        ended = job_store.get(job.id).finished_at
        assert ended
        assert bucket.deleted == []
        for second in range(service.dispatcher.CLEANING_GRACE_SECONDS + 1):
            assert bucket.deleted == []
            at = ended + timedelta(seconds=second)
            monkeypatch.setattr(service.store, "clock", lambda _, at=at: at)
            dispatcher.tick()
        assert bucket.deleted == [f"jobs/{job.id}/"]

    def test_one_job_is_cleaned_per_pass(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        bucket: FakeBucket,
        queued: Callable[[], Job],
    ) -> None:
        jobs = ended_jobs(job_store, queued)
        for done in range(len(jobs)):
            assert bucket.deleted == [f"jobs/{job.id}/" for job in jobs[:done]]
            dispatcher.tick()
        assert job_store.to_clean() == []

    def test_a_bucket_that_fails_is_left_alone_for_some_passes(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        bucket: FakeBucket,
        queued: Callable[[], Job],
    ) -> None:
        ended_jobs(job_store, queued)
        bucket.trouble = StorageUnavailable()
        for _ in range(2 * (PAUSE_TICKS + 1)):
            dispatcher.tick()
        assert len(bucket.asked) == 2

    def test_a_job_that_cannot_be_cleaned_holds_up_no_other(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        bucket: FakeBucket,
        queued: Callable[[], Job],
    ) -> None:
        bad, *good = ended_jobs(job_store, queued)
        bucket.refused = f"jobs/{bad.id}/"
        for _ in range(3 * (PAUSE_TICKS + 1)):
            dispatcher.tick()
        assert bucket.deleted == [f"jobs/{job.id}/" for job in good]
        assert [job.id for job in job_store.to_clean()] == [bad.id]


def test_a_defect_in_one_job_does_not_hold_up_the_others(
    job_store: Store,
    dispatcher: Dispatcher,
    bucket: FakeBucket,
    running: Job,
    queued: Callable[[], Job],
    caplog: pytest.LogCaptureFixture,
) -> None:
    job_store.cancel(running.id)
    dispatcher.tick()
    bucket.trouble = ZeroDivisionError("a defect")
    waiting = queued()
    for _ in range(2):
        dispatcher.tick()
    assert job_store.get(waiting.id).state is JobState.RUNNING
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.exc_info is not None


def test_a_database_that_is_away_is_logged_once(
    database_url: str,
    cluster: FakeCluster,
    bucket: FakeBucket,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store(database_url)
    dispatcher = Dispatcher(store, cluster, bucket, settings)
    for _ in range(3):
        dispatcher.tick()
    (warning,) = messages(caplog, logging.WARNING)
    assert "no such table" in warning
    store.migrate()
    job = store.create(small_spec())
    dispatcher.tick()
    assert store.get(job.id).state is JobState.RUNNING
    store.close()


def test_it_runs_until_asked_to_stop(
    dispatcher: Dispatcher, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    checks: list[int] = []

    def check() -> None:
        checks.append(len(checks))
        if len(checks) == 3:
            stop.make(15)

    monkeypatch.setattr(cluster, "check", check)
    monkeypatch.setattr(stop, "wait", lambda _: stop.requested)
    dispatcher.run(stop)
    assert len(checks) == 3


def test_its_heartbeat_is_a_file(
    job_store: Store, cluster: FakeCluster, bucket: FakeBucket, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, dispatcher_heartbeat=tmp_path / "alive")
    stop = StopRequest()
    cluster.down = True

    def wait(_seconds: float) -> None:
        assert (tmp_path / "alive").exists()
        stop.make(15)

    stop.wait = wait  # type: ignore[assignment,method-assign]
    Dispatcher(job_store, cluster, bucket, settings).run(stop)
    assert stop.requested
