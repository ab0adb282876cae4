"""The dispatcher, one pass at a time, with a real database, and cluster and bucket in memory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import service.dispatch.dispatcher
import service.dispatch.lease_watch
from service.cluster.diagnosis import EXIT_SCHEMA_MISMATCH
from service.cluster.ray_jobs import AttemptStatus, Ended
from service.dispatch.dispatcher import CLEANED_PER_PASS, PAUSE_TICKS, Dispatcher
from service.domain.job import DEFAULT_TENANT, EventType, Job
from service.domain.retry_policy import RetryPolicy
from service.domain.spec.job import JobSpec
from service.domain.states import JobState
from service.errors import (
    AttemptStale,
    DatabaseUnavailable,
    Failure,
    InvalidParameter,
    JobNotFound,
    StorageUnavailable,
)
from service.settings import Settings
from service.signals import StopRequest
from service.store.listing import JobFilter
from service.store.store import Store
from tests.fixtures.cluster import FakeCluster
from tests.fixtures.jobs import age, at_once, lapse, rewrite_spec, small_spec
from tests.fixtures.storage import MemoryStorage
from tests.fixtures.waiting import wait_until

USER_MISTAKE = InvalidParameter().failure()
PASSING = StorageUnavailable().failure()
AT_ONCE = RetryPolicy(max_attempts=2, first_pause_seconds=0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path,
        max_running_jobs=1,
        max_attempts=2,
        retry_first_seconds=0,
        cleanup_grace_seconds=0,
    )


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def bucket() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def make(
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    settings: Settings,
    clock: Clock,  # noqa: ARG001
) -> Iterator[Callable[..., Dispatcher]]:
    """A dispatcher, with some settings changed; one of several, if more are made."""
    made: list[Dispatcher] = []

    def make(**changes: object) -> Dispatcher:
        changed = settings.model_copy(update=changes)
        made.append(Dispatcher(job_store, cluster, bucket, changed))
        return made[-1]

    yield make
    for dispatcher in made:
        dispatcher.close()


@pytest.fixture
def dispatcher(make: Callable[..., Dispatcher]) -> Dispatcher:
    return make()


class Clock:
    """The dispatcher's own, which stands until a test moves it, or lets its machine sleep."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self) -> None:
        self.now = 1000.0
        self.asleep = 0.0
        self.stepped = 0.0

    def monotonic(self) -> float:
        return self.now

    def clock_gettime(self, clock: int) -> float:
        assert clock == self.CLOCK_BOOTTIME
        return self.now + self.asleep

    def time(self) -> float:
        return self.now + self.asleep + self.stepped


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(service.dispatch.lease_watch, "time", clock)
    return clock


@pytest.fixture
def queued(job_store: Store) -> Callable[[], Job]:
    return lambda: job_store.users(DEFAULT_TENANT).create(small_spec())


@pytest.fixture
def running(job_store: Store, dispatcher: Dispatcher, queued: Callable[[], Job]) -> Job:
    """A job whose first attempt was submitted."""
    job = queued()
    dispatcher.tick()
    return job_store.records.get(job.id)


@pytest.fixture
def silent(job_store: Store, running: Job, clock: Clock) -> Job:
    """A running job whose lease is over, after the dispatcher has watched for long enough."""
    clock.now += 1000
    lapse(job_store, running)
    return running


def failure_after_a_pass(store: Store, dispatcher: Dispatcher, job: Job) -> Failure | None:
    dispatcher.tick()
    return store.records.get(job.id).failure


def limited_spec(**limits: int) -> JobSpec:
    return JobSpec.model_validate(small_spec().model_dump() | {"limits": limits})


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What the service has logged; threads of earlier tests may still log through libraries."""
    ours = (record for record in caplog.records if record.name.startswith("service."))
    return [record.getMessage() for record in ours if record.levelno == level]


class TestSubmission:
    def test_a_waiting_job_is_submitted_once(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        assert (running.state, running.attempt) == (JobState.RUNNING, 1)
        assert running.submitted_at is not None
        assert cluster.active == [f"{running.id}-1"]
        assert cluster.names == {f"{running.id}-1": "small"}
        dispatcher.tick()
        assert job_store.records.get(running.id) == running
        assert cluster.submissions == [f"{running.id}-1"]

    def test_only_so_many_run_at_once(
        self, job_store: Store, dispatcher: Dispatcher, queued: Callable[[], Job], running: Job
    ) -> None:
        second = queued()
        dispatcher.tick()
        assert job_store.records.get(second.id).state is JobState.QUEUED
        job_store.attempts.succeed(running.id, 1, {})
        dispatcher.tick()
        assert job_store.records.get(second.id).state is JobState.RUNNING

    def test_all_that_there_is_room_for_start_in_one_pass(
        self, make: Callable[..., Dispatcher], cluster: FakeCluster, queued: Callable[[], Job]
    ) -> None:
        jobs = [queued() for _ in range(9)]
        make(max_running_jobs=7).tick()
        assert sorted(cluster.active) == [f"{job.id}-1" for job in jobs[:7]]

    def test_only_so_many_of_a_tenant_run_at_once(
        self, make: Callable[..., Dispatcher], cluster: FakeCluster, job_store: Store
    ) -> None:
        for tenant in ("busy", "busy", "idle"):
            job_store.users(tenant).create(small_spec())
        make(max_running_jobs=3, max_running_jobs_per_tenant=1).tick()
        assert len(cluster.active) == 2

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
        failure = job_store.records.get(job.id).failure
        assert failure is not None
        assert (failure.code, failure.detail) == ("submission_refused", "bad entrypoint")

    def test_a_job_of_a_newer_version_is_for_its_driver_to_judge(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        queued: Callable[[], Job],
    ) -> None:
        job = queued()
        rewrite_spec(job_store, job, not_yet=1)
        dispatcher.tick()
        assert cluster.active == [f"{job.id}-1"]
        cluster.end(job.id, 1, Ended("FAILED"), "The schema is 0002.", EXIT_SCHEMA_MISMATCH)
        dispatcher.tick()
        failed = job_store.records.get(job.id)
        assert (failed.state, failed.attempt) == (JobState.FAILED, 1)  # of two attempts
        assert failed.failure is not None
        assert failed.failure.code == "schema_mismatch"
        assert "The schema is 0002." in failed.failure.detail

    def test_the_driver_has_time_to_start(
        self,
        make: Callable[..., Dispatcher],
        job_store: Store,
        cluster: FakeCluster,
        queued: Callable[[], Job],
        clock: Clock,
    ) -> None:
        job, dispatcher = queued(), make(start_seconds=300, lease_seconds=1)
        dispatcher.tick()
        clock.now += 100
        dispatcher.tick()
        started = job_store.records.get(job.id)
        assert started.lease_until is not None
        assert started.submitted_at is not None
        assert (started.lease_until - started.submitted_at).total_seconds() == 300
        assert cluster.active == [f"{job.id}-1"]


class TestSeveralDispatchers:
    def test_a_claim_that_its_dispatcher_did_not_submit_is_taken_over_once_it_lapsed(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        queued: Callable[[], Job],
    ) -> None:
        first, second = queued(), queued()
        job_store.claims.claim(owner="killed", lease_seconds=30)
        dispatcher.tick()
        assert cluster.submissions == []
        job_store.claims.claim(owner="killed", lease_seconds=-1)
        dispatcher.tick()
        assert cluster.submissions == [f"{second.id}-1"]
        assert job_store.records.get(second.id).submitted_at is not None
        assert job_store.records.get(first.id).submitted_at is None

    def test_a_dispatcher_killed_right_after_submission_is_made_up_for(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        queued: Callable[[], Job],
    ) -> None:
        job = queued()
        job_store.claims.claim(lease_seconds=-1)
        cluster.submit(job.id, 1)
        dispatcher.tick()
        dispatcher.tick()
        assert cluster.active == [f"{job.id}-1"]
        assert job_store.records.get(job.id).submitted_at is not None

    def test_one_that_goes_on_after_its_claim_was_taken_over_puts_nothing_back(
        self,
        make: Callable[..., Dispatcher],
        job_store: Store,
        cluster: FakeCluster,
        queued: Callable[[], Job],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        job = queued()
        suspended, other = make(), make()
        submit, submissions = cluster.submit, list[str]()

        def suspended_while_submitting(job_id: str, attempt: int, name: str | None = None) -> None:
            submissions.append(job_id)
            if len(submissions) == 1:
                other.tick()
                cluster.dropping_submissions = True
            submit(job_id, attempt, name)

        monkeypatch.setattr(cluster, "submit", suspended_while_submitting)
        monkeypatch.setattr(
            service.dispatch.dispatcher, "CLAIM_SECONDS", -1
        )  # so long that it lapses
        suspended.tick()
        assert len(submissions) == 2
        assert cluster.active == [f"{job.id}-1"]
        started = job_store.records.get(job.id)
        assert (started.state, started.attempt) == (JobState.RUNNING, 1)

    def test_hundreds_of_jobs_are_each_submitted_once_and_the_limit_holds(
        self,
        make: Callable[..., Dispatcher],
        job_store: Store,
        cluster: FakeCluster,
    ) -> None:
        jobs = {job_store.users(f"tenant-{n % 3}").create(small_spec()).id for n in range(200)}
        dispatchers = [make(max_running_jobs=10, max_running_jobs_per_tenant=4) for _ in range(2)]
        most: list[int] = []
        stop = StopRequest()

        def finish_what_runs() -> bool:
            under_way = job_store.claims.in_flight()
            most.append(len(under_way))
            assert all(
                [job.tenant for job in under_way].count(f"tenant-{n}") <= 4 for n in (0, 1, 2)
            )
            for job in under_way:
                if job.submitted_at is not None:
                    job_store.attempts.succeed(job.id, job.attempt, {})
                    cluster.end(job.id, job.attempt)
            return not under_way and not job_store.records.list_jobs(
                JobFilter([JobState.QUEUED]), limit=1
            )

        threads = [threading.Thread(target=each.run, args=(stop,)) for each in dispatchers]
        for thread in threads:
            thread.start()
        try:
            wait_until(finish_what_runs, seconds=120)
        finally:
            stop.make(15)
            for thread in threads:
                thread.join()
        assert max(most) <= 10
        assert sorted(cluster.submissions) == sorted(f"{job}-1" for job in jobs)
        owners = {
            event.data["owner"]
            for job in jobs
            for event in job_store.records.events(job)
            if event.type == EventType.CLAIMED
        }
        assert owners == {dispatcher.owner for dispatcher in dispatchers}


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
        assert job_store.records.get(job.id) == job
        assert len(messages(caplog, logging.WARNING)) == 1
        cluster.down = False
        dispatcher.tick()
        assert job_store.records.get(job.id).state is JobState.RUNNING
        assert "The Ray cluster: works again" in messages(caplog, logging.INFO)
        assert len(messages(caplog, logging.WARNING)) == 1

    def test_no_attempt_is_lost_until_it_answers(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        running: Job,
        clock: Clock,
    ) -> None:
        cluster.down = True
        lapse(job_store, running)
        clock.now += 1000
        dispatcher.tick()
        assert job_store.records.get(running.id).state is JobState.RUNNING
        cluster.down = False
        dispatcher.tick()
        assert job_store.records.get(running.id).attempt == 2

    def test_a_job_that_waits_for_too_long_fails_all_the_same(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster
    ) -> None:
        cluster.down = True
        job = job_store.users(DEFAULT_TENANT).create(limited_spec(queue_seconds=1))
        wait_until(lambda: failure_after_a_pass(job_store, dispatcher, job))
        failure = job_store.records.get(job.id).failure
        assert failure is not None
        assert failure.code == "queue_time_exceeded"

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
        waiting = job_store.records.get(job.id)
        assert (waiting.state, waiting.attempt) == (JobState.QUEUED, 0)
        cluster.dropping_submissions = False
        for _ in range(PAUSE_TICKS):
            dispatcher.tick()
            assert job_store.records.get(job.id) == waiting
        dispatcher.tick()
        assert cluster.active == [f"{job.id}-1"]

    def test_a_new_cluster_in_its_place_gets_the_next_attempt(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        cluster.restart()
        dispatcher.tick()
        assert cluster.active == [f"{running.id}-2"]
        assert retry_of(job_store, running)["code"] == "cluster_restarted"


def retry_of(store: Store, job: Job) -> dict[str, object]:
    (retried,) = [e for e in store.records.events(job.id) if e.type == EventType.RETRIED]
    return dict(retried.data)


class TestLostAttempts:
    def test_the_job_runs_again_and_says_what_was_printed(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        cluster.end(running.id, 1, printed="loading", code=137)
        dispatcher.tick()
        job = job_store.records.get(running.id)
        assert (job.state, job.attempt) == (JobState.RUNNING, 2)
        retried = retry_of(job_store, running)
        assert retried["code"] == "driver_killed"
        assert "SIGKILL" in str(retried["detail"])
        assert "loading" in str(retried["detail"])

    def test_after_the_last_attempt_it_fails(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        for attempt in (1, 2):
            cluster.end(running.id, attempt)
            dispatcher.tick()
        job = job_store.records.get(running.id)
        assert job.state is JobState.FAILED
        assert job.failure is not None
        assert (job.failure.code, job.attempt) == ("attempt_lost", 2)

    def test_a_log_that_was_lost_too_changes_nothing(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        cluster.logs_lost = True
        cluster.end(running.id, 1)
        dispatcher.tick()
        assert job_store.records.get(running.id).attempt == 2

    @pytest.mark.parametrize("how", ["succeeded", "failed"])
    def test_a_driver_that_ended_the_attempt_first_is_believed(
        self,
        how: str,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        running: Job,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def ended_meanwhile(job_id: str, attempt: int) -> AttemptStatus:
            if how == "succeeded":
                job_store.attempts.succeed(job_id, attempt, {})
            else:
                job_store.attempts.fail(job_id, attempt, USER_MISTAKE, AT_ONCE)
            return Ended("SUCCEEDED")

        monkeypatch.setattr(cluster, "status", ended_meanwhile)
        dispatcher.tick()
        assert job_store.records.get(running.id).state == how
        assert messages(caplog, logging.WARNING) == []

    def test_a_failed_attempt_is_stopped_before_the_next(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        job_store.attempts.fail(running.id, 1, PASSING, AT_ONCE)  # its driver is yet to end
        dispatcher.tick()
        assert cluster.stopped == [f"{running.id}-1"]
        assert cluster.active == [f"{running.id}-2"]


class TestLeases:
    def test_an_attempt_whose_lease_lapsed_is_stopped_and_lost(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        silent: Job,
    ) -> None:
        dispatcher.tick()
        assert cluster.stopped == [f"{silent.id}-1"]
        assert retry_of(job_store, silent)["code"] == "lease_lapsed"
        assert cluster.active == [f"{silent.id}-2"]

    def test_also_when_ray_cannot_stop_it(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        silent: Job,
    ) -> None:
        cluster.agent_hangs = True
        dispatcher.tick()
        assert job_store.records.get(silent.id).state is JobState.QUEUED

    def test_none_is_judged_by_a_dispatcher_that_has_just_started(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        settings: Settings,
        running: Job,
        clock: Clock,
    ) -> None:
        lapse(job_store, running)
        clock.now += settings.lease_seconds - 1
        dispatcher.tick()
        assert job_store.records.get(running.id).attempt == 1
        clock.now += 1
        dispatcher.tick()
        assert job_store.records.get(running.id).attempt == 2

    def test_none_is_judged_while_drivers_may_not_have_reached_the_database(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        settings: Settings,
        silent: Job,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with monkeypatch.context() as away:
            away.setattr(job_store, "claims", Store("sqlite:////nowhere/jobs.db").claims)
            dispatcher.tick()
        clock.now += settings.lease_seconds - 1
        dispatcher.tick()
        assert job_store.records.get(silent.id).attempt == 1
        clock.now += 1
        dispatcher.tick()
        assert job_store.records.get(silent.id).attempt == 2

    def test_none_is_judged_when_drivers_may_have_slept(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        settings: Settings,
        silent: Job,
        clock: Clock,
    ) -> None:
        clock.asleep += 3600
        dispatcher.tick()
        clock.now += settings.lease_seconds - 1
        dispatcher.tick()
        assert job_store.records.get(silent.id).attempt == 1
        clock.now += 1
        dispatcher.tick()
        assert job_store.records.get(silent.id).attempt == 2

    def test_a_step_of_the_wall_clock_is_no_sleep(
        self, job_store: Store, dispatcher: Dispatcher, silent: Job, clock: Clock
    ) -> None:
        clock.stepped += 3600
        dispatcher.tick()
        assert job_store.records.get(silent.id).attempt == 2

    @pytest.mark.usefixtures("silent")
    def test_none_is_stopped_before_its_judgement_is_committed(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A renewal that waits for its commit holds the row."""

        def waits_for_the_row(*_: object, **__: object) -> None:
            raise DatabaseUnavailable

        monkeypatch.setattr(job_store.attempts, "fail", waits_for_the_row)
        dispatcher.tick()
        dispatcher.tick()
        assert cluster.stopped == []

    @pytest.mark.parametrize("call", ["status", "log_tail"])
    def test_one_that_was_renewed_after_it_was_read_is_left_alone(
        self,
        call: str,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        silent: Job,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        answer = getattr(cluster, call)

        def renewed_meanwhile(job_id: str, attempt: int) -> object:
            job_store.attempts.renew(job_id, attempt, 60)
            return answer(job_id, attempt)

        monkeypatch.setattr(cluster, call, renewed_meanwhile)
        dispatcher.tick()
        assert cluster.active == [f"{silent.id}-1"]
        assert job_store.records.get(silent.id).attempt == 1


class TestCancelling:
    def test_the_attempt_is_stopped_then_the_job_ends(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster, running: Job
    ) -> None:
        job_store.users(DEFAULT_TENANT).cancel(running.id)
        dispatcher.tick()
        assert cluster.stopped == [f"{running.id}-1"]
        assert job_store.records.get(running.id).state is JobState.CANCELLING
        dispatcher.tick()
        assert job_store.records.get(running.id).state is JobState.CANCELLED

    def test_between_claim_and_submission(
        self,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        queued: Callable[[], Job],
    ) -> None:
        job = queued()
        job_store.claims.claim()
        job_store.users(DEFAULT_TENANT).cancel(job.id)
        dispatcher.tick()
        assert cluster.names == {}
        assert job_store.records.get(job.id).state is JobState.CANCELLED

    @pytest.mark.parametrize("trouble", ["agent_hangs", "down"])
    @pytest.mark.parametrize(
        ("lapsed", "state"), [(False, JobState.CANCELLING), (True, JobState.CANCELLED)]
    )
    def test_an_attempt_that_cannot_be_stopped_ends_with_its_lease(
        self,
        lapsed: bool,
        state: JobState,
        trouble: str,
        job_store: Store,
        dispatcher: Dispatcher,
        cluster: FakeCluster,
        running: Job,
        clock: Clock,
    ) -> None:
        clock.now += 1000
        setattr(cluster, trouble, True)
        if lapsed:
            lapse(job_store, running)
        job_store.users(DEFAULT_TENANT).cancel(running.id)
        dispatcher.tick()
        assert job_store.records.get(running.id).state is state


class TestTimeLimits:
    def test_a_job_that_ran_for_too_long_fails_and_is_stopped(
        self, job_store: Store, dispatcher: Dispatcher, cluster: FakeCluster
    ) -> None:
        job = job_store.users(DEFAULT_TENANT).create(limited_spec(run_seconds=1))
        dispatcher.tick()
        assert cluster.active == [f"{job.id}-1"]
        wait_until(lambda: failure_after_a_pass(job_store, dispatcher, job))
        failure = job_store.records.get(job.id).failure
        assert failure is not None
        assert failure.code == "run_time_exceeded"
        assert cluster.active == []


class TestTrouble:
    def test_a_call_that_hangs_holds_up_no_other_job(
        self,
        make: Callable[..., Dispatcher],
        job_store: Store,
        cluster: FakeCluster,
        queued: Callable[[], Job],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(service.dispatch.dispatcher, "CALL_WAIT_SECONDS", 0.01)
        dispatcher, hanging = make(max_running_jobs=3), threading.Event()
        jobs = [queued() for _ in range(2)]
        dispatcher.tick()
        wait_until(lambda: all(job_store.records.get(job.id).submitted_at for job in jobs))
        stop = cluster.stop

        def stop_hangs(job_id: str, attempt: int) -> None:
            if job_id == jobs[0].id:
                hanging.wait(60)
            stop(job_id, attempt)

        monkeypatch.setattr(cluster, "stop", stop_hangs)
        for job in jobs:
            job_store.users(DEFAULT_TENANT).cancel(job.id)
        late = queued()

        def passes() -> bool:
            dispatcher.tick()
            cancelled = job_store.records.get(jobs[1].id).state is JobState.CANCELLED
            return cancelled and job_store.records.get(late.id).submitted_at is not None

        wait_until(passes)
        assert job_store.records.get(jobs[0].id).state is JobState.CANCELLING
        hanging.set()

    def test_a_defect_in_one_job_does_not_hold_up_the_others(
        self,
        make: Callable[..., Dispatcher],
        job_store: Store,
        cluster: FakeCluster,
        queued: Callable[[], Job],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        dispatcher, bad, good = make(max_running_jobs=2), queued(), queued()
        submit = cluster.submit

        def submit_badly(job_id: str, attempt: int, name: str | None = None) -> None:
            if job_id == bad.id:
                raise ZeroDivisionError("a defect")
            submit(job_id, attempt, name)

        monkeypatch.setattr(cluster, "submit", submit_badly)
        dispatcher.tick()
        assert job_store.records.get(good.id).submitted_at is not None
        (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert warning.exc_info is not None

    def test_a_write_that_comes_too_late_is_no_trouble(
        self,
        dispatcher: Dispatcher,
        queued: Callable[[], Job],
        cluster: FakeCluster,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def cancelled_meanwhile(job_id: str, attempt: int, name: str | None = None) -> None:
            raise AttemptStale(f"{job_id} {attempt} {name}")

        monkeypatch.setattr(cluster, "submit", cancelled_meanwhile)
        queued()
        dispatcher.tick()
        assert messages(caplog, logging.WARNING) == []

    def test_a_database_that_is_away_is_logged_once(
        self,
        database_url: str,
        cluster: FakeCluster,
        bucket: MemoryStorage,
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
        job = store.users(DEFAULT_TENANT).create(small_spec())
        dispatcher.tick()
        assert store.records.get(job.id).state is JobState.RUNNING
        dispatcher.close()
        store.close()


class TestRetention:
    @pytest.fixture
    def old(self, job_store: Store, bucket: MemoryStorage) -> Job:
        """A job that succeeded two hours ago, cleaned up after, with its result in the bucket."""
        job = job_store.users(DEFAULT_TENANT).create(small_spec())
        job_store.claims.claim()
        job_store.attempts.succeed(job.id, 1, {"loss": 1.5})
        job_store.claims.cleaned(job.id, 1)
        bucket.put_bytes(f"jobs/{job.id}/artifacts/keep-0.8/1-0000000a/weights", b"result")
        age(job_store, job.id, 7200)
        return job_store.records.get(job.id)

    def test_an_old_job_goes_with_its_result(
        self,
        make: Callable[..., Dispatcher],
        job_store: Store,
        bucket: MemoryStorage,
        old: Job,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        dispatcher = make(job_retention_seconds=3600.0)
        with caplog.at_level(logging.INFO):
            dispatcher.tick()
            with pytest.raises(JobNotFound):
                job_store.records.get(old.id)
            dispatcher.tick()
            dispatcher.tick()
        with pytest.raises(JobNotFound):
            job_store.claims.head(old.id)
        assert bucket.objects == {}
        assert messages(caplog, logging.INFO) == [
            "Deleted ended jobs older than 3600 seconds: 1",
            f"{old.id}: cleaned up",
        ]

    @pytest.mark.parametrize("retention", [None, 7300.0])
    def test_a_job_stays_until_its_time_has_passed(
        self,
        make: Callable[..., Dispatcher],
        job_store: Store,
        bucket: MemoryStorage,
        old: Job,
        retention: float | None,
    ) -> None:
        dispatcher = make(job_retention_seconds=retention)
        dispatcher.tick()
        dispatcher.tick()
        assert job_store.records.get(old.id) == old
        assert len(bucket.besides_logs) == 1

    def test_old_jobs_wait_until_those_that_ended_now_are_cleaned_up_after(
        self, make: Callable[..., Dispatcher], job_store: Store, old: Job
    ) -> None:
        for _ in range(CLEANED_PER_PASS):
            job = job_store.users(DEFAULT_TENANT).create(small_spec())
            job_store.claims.claim()
            job_store.attempts.fail(job.id, 1, USER_MISTAKE, at_once(1))
        dispatcher = make(job_retention_seconds=3600.0, checkpoint_retention_seconds=0.0)
        dispatcher.tick()
        assert job_store.claims.to_clean() == []
        assert job_store.records.get(old.id) == old
        dispatcher.tick()
        with pytest.raises(JobNotFound):
            job_store.records.get(old.id)


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
    make: Callable[..., Dispatcher], cluster: FakeCluster, tmp_path: Path
) -> None:
    dispatcher = make(dispatcher_heartbeat=tmp_path / "alive")
    stop = StopRequest()
    cluster.down = True

    def wait(_seconds: float) -> None:
        assert (tmp_path / "alive").exists()
        stop.make(15)

    stop.wait = wait  # type: ignore[assignment,method-assign]
    dispatcher.run(stop)
    assert stop.requested
