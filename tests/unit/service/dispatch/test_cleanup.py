"""The cleanup after a job removes the right objects: real publications, a bucket in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.cluster.ray_jobs import Unknown
from service.credentials import seal
from service.dispatch.cleanup import AGAIN_SECONDS, LOGS_PATIENCE, Cleaner
from service.dispatch.dispatcher import Dispatcher
from service.domain.credentials import HubToken
from service.domain.job import DEFAULT_TENANT, Artifact, JobHead
from service.domain.manifest import checkpoints_prefix, logs_prefix
from service.domain.retry_policy import RetryPolicy
from service.domain.states import JobState
from service.encryption import new_key
from service.errors import (
    AttemptStale,
    ClusterUnavailable,
    InvalidParameter,
    JobNotFound,
    StorageFull,
    StorageUnavailable,
)
from service.logs.kept import log_key
from service.settings import Settings
from service.storage.publication import publish
from service.store.store import Store
from tests.fixtures.cluster import FakeCluster
from tests.fixtures.jobs import age, small_spec
from tests.fixtures.storage import MemoryStorage

NAME = "keep-0.8"
MISTAKE = InvalidParameter().failure()
LOST = StorageUnavailable().failure()
ONCE = RetryPolicy(max_attempts=1)
TWICE = RetryPolicy(max_attempts=2, first_pause_seconds=0)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    storage = MemoryStorage()
    monkeypatch.setattr(
        storage, "put_file", lambda key, path: storage.put_bytes(key, path.read_bytes())
    )
    return storage


@pytest.fixture
def clean(
    job_store: Store, cluster: FakeCluster, bucket: MemoryStorage, tmp_path: Path
) -> Callable[..., None]:
    """Clean up after a job; with the retention of a failed one's checkpoints, in seconds."""

    def clean(job: JobHead, retention: float = 0) -> None:
        settings = Settings(data_dir=tmp_path, checkpoint_retention_seconds=retention)
        Cleaner(job_store, cluster, bucket, settings).clean(job)

    return clean


class Attempts:
    """Attempts that leave things in the bucket."""

    def __init__(self, store: Store, cluster: FakeCluster, storage: MemoryStorage, folder: Path):
        self._store = store
        self._cluster = cluster
        self._storage = storage
        self._folder = folder
        folder.mkdir()
        self.job = store.users(DEFAULT_TENANT).create(small_spec())

    def start(self) -> int:
        claimed = self._store.claims.claim()
        assert claimed is not None
        self._cluster.submit(claimed.id, claimed.attempt)
        return claimed.attempt

    def publish(self, attempt: int) -> Artifact:
        (self._folder / "weights").write_text(f"of attempt {attempt}")
        return publish(self._storage, self.job.id, attempt, NAME, self._folder)

    def checkpoint(self, attempt: int) -> str:
        key = f"{checkpoints_prefix(self.job.id)}f1/{attempt}-0000000a/part"
        self._storage.put_bytes(key, b"half")
        return key

    def lose(self, attempt: int, policy: RetryPolicy = TWICE) -> JobHead:
        self._cluster.end(self.job.id, attempt)
        self._store.attempts.fail(self.job.id, attempt, LOST, policy)
        return self._store.claims.head(self.job.id)


@pytest.fixture
def attempts(
    job_store: Store, cluster: FakeCluster, bucket: MemoryStorage, tmp_path: Path
) -> Attempts:
    return Attempts(job_store, cluster, bucket, tmp_path / "artifact")


def test_what_counts_stays_after_success(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    clean: Callable[..., None],
) -> None:
    attempts.publish(attempts.start())
    attempts.lose(1)
    artifact = attempts.publish(attempts.start())
    stray = artifact.prefix.replace("/2-", "/1-") + "weights"
    bucket.put_bytes(stray, b"of a dead attempt")
    attempts.checkpoint(2)
    job_store.attempts.published(attempts.job.id, 2, 0, artifact)
    job_store.attempts.succeed(attempts.job.id, 2, {})
    cluster.end(attempts.job.id, 2)
    clean(job_store.claims.head(attempts.job.id))
    assert sorted(bucket.besides_logs) == [
        artifact.prefix + "weights",
        f"jobs/{attempts.job.id}/artifacts/{NAME}/manifest.json",
    ]
    assert job_store.claims.to_clean() == []
    assert cluster.known == []


def test_nothing_stays_of_a_cancelled_job(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    clean: Callable[..., None],
) -> None:
    attempts.publish(attempts.start())
    attempts.checkpoint(1)
    job_store.users(DEFAULT_TENANT).cancel(attempts.job.id)
    cluster.end(attempts.job.id, 1)
    job_store.claims.end_cancelled(attempts.job.id, 1)
    clean(job_store.claims.head(attempts.job.id))
    assert bucket.besides_logs == {}
    assert job_store.claims.to_clean() == []


def test_the_checkpoints_of_a_failed_job_stay_for_a_retry_and_no_longer(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    clean: Callable[..., None],
) -> None:
    attempts.publish(attempts.start())
    kept = attempts.checkpoint(1)
    failed = attempts.lose(1, ONCE)
    clean(failed, retention=3600)
    assert list(bucket.besides_logs) == [kept]
    assert job_store.claims.to_clean() == []  # not for an hour
    assert cluster.known == [f"{failed.id}-1"]  # with its log
    clean(failed, retention=0)
    assert bucket.besides_logs == {}
    assert cluster.known == []


def test_a_driver_that_is_still_active_is_stopped_and_the_job_looked_at_again(
    attempts: Attempts, job_store: Store, cluster: FakeCluster, clean: Callable[..., None]
) -> None:
    attempts.start()
    job_store.attempts.fail(attempts.job.id, 1, MISTAKE, ONCE)
    job = job_store.claims.head(attempts.job.id)
    clean(job)
    assert cluster.stopped == [f"{job.id}-1"]
    assert cluster.known == [f"{job.id}-1"]
    clean(job)
    assert cluster.status(job.id, 1) == Unknown()


def test_a_failed_jobs_driver_is_not_left_to_run_for_as_long_as_its_checkpoints_are_kept(
    attempts: Attempts, job_store: Store, cluster: FakeCluster, clean: Callable[..., None]
) -> None:
    attempts.start()
    job_store.attempts.fail(attempts.job.id, 1, MISTAKE, ONCE)
    job = job_store.claims.head(attempts.job.id)
    cluster.agent_hangs = True
    clean(job, retention=3600)
    assert [due.id for due in job_store.claims.to_clean(grace_seconds=-AGAIN_SECONDS)] == [job.id]
    cluster.agent_hangs = False
    clean(job, retention=3600)
    assert cluster.stopped == [f"{job.id}-1"]
    clean(job, retention=3600)
    assert job_store.claims.to_clean(grace_seconds=-AGAIN_SECONDS) == []


def test_the_bucket_is_cleaned_while_the_cluster_is_away(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    clean: Callable[..., None],
) -> None:
    attempts.publish(attempts.start())
    failed = attempts.lose(1, ONCE)
    cluster.down = True
    clean(failed)
    assert bucket.besides_logs == {}
    cluster.down = False
    clean(failed)  # for its driver may have written since
    assert cluster.known == []
    assert job_store.claims.to_clean() == []


def test_a_cleaner_that_was_suspended_removes_nothing_of_a_later_attempt(
    attempts: Attempts,
    job_store: Store,
    bucket: MemoryStorage,
    clean: Callable[..., None],
) -> None:
    attempts.publish(attempts.start())
    attempts.checkpoint(1)
    failed = attempts.lose(1, ONCE)  # as the cleaner has read it
    job_store.users(DEFAULT_TENANT).retry(failed.id)
    artifact = attempts.publish(attempts.start())
    checkpoint = attempts.checkpoint(2)
    with pytest.raises(AttemptStale):
        clean(failed)
    assert artifact.prefix + "weights" in bucket.objects
    assert f"jobs/{failed.id}/artifacts/{NAME}/manifest.json" in bucket.objects
    assert checkpoint in bucket.objects


@pytest.mark.parametrize("trouble", [StorageUnavailable(), ZeroDivisionError("a defect")])
def test_a_job_that_cannot_be_cleaned_up_after_holds_up_no_other(
    trouble: Exception,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs = []
    for number in range(20):
        attempts = Attempts(job_store, cluster, bucket, tmp_path / str(number))
        bucket.put_bytes(f"jobs/{attempts.job.id}/checkpoints/x", b"left")
        attempts.start()
        jobs.append(attempts.lose(1, ONCE))
    bucket.trouble, bucket.refused = trouble, f"jobs/{jobs[0].id}/"
    settings = Settings(data_dir=tmp_path, checkpoint_retention_seconds=0, cleanup_grace_seconds=0)
    dispatcher = Dispatcher(job_store, cluster, bucket, settings)
    for _ in range(5):
        dispatcher.tick()
    dispatcher.close()
    assert list(bucket.besides_logs) == [f"jobs/{jobs[0].id}/checkpoints/x"]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1


def test_an_ended_job_is_left_alone_until_its_last_actor_is_gone(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    tmp_path: Path,
) -> None:
    attempts.start()
    attempts.lose(1, ONCE)
    cleaner = Cleaner(job_store, cluster, bucket, Settings(data_dir=tmp_path))
    assert cleaner.due(limit=10) == []
    at_once = Settings(data_dir=tmp_path, cleanup_grace_seconds=0)
    eager = Cleaner(job_store, cluster, bucket, at_once)
    assert [job.id for job in eager.due(limit=10)] == [attempts.job.id]


def test_a_cluster_that_goes_away_meanwhile_is_trouble_and_the_job_due_again(
    attempts: Attempts,
    cluster: FakeCluster,
    clean: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts.start()
    failed = attempts.lose(1, ONCE)
    assert failed.state is JobState.FAILED

    def away(job_id: str, attempt: int) -> None:
        raise ClusterUnavailable(f"{job_id} {attempt}")

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "forget", away)
        with pytest.raises(ClusterUnavailable):
            clean(failed)
    clean(failed)
    assert cluster.known == []


def test_nothing_stays_of_a_deleted_job(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    clean: Callable[..., None],
) -> None:
    artifact = attempts.publish(attempts.start())
    attempts.checkpoint(1)
    job_store.attempts.published(attempts.job.id, 1, 0, artifact)
    job_store.attempts.succeed(attempts.job.id, 1, {})
    cluster.end(attempts.job.id, 1)
    job_store.users(DEFAULT_TENANT).delete(attempts.job.id)
    cluster.down = True
    clean(job_store.claims.head(attempts.job.id))
    assert bucket.objects == {}
    assert job_store.claims.head(attempts.job.id).deleted  # until Ray has forgotten it, too
    cluster.down = False
    deleted = job_store.claims.head(attempts.job.id)
    clean(deleted)
    assert cluster.known == []
    with pytest.raises(JobNotFound):
        job_store.claims.head(attempts.job.id)
    clean(deleted)  # as another cleaner may


def test_a_deleted_failed_job_keeps_no_checkpoints(
    attempts: Attempts, job_store: Store, bucket: MemoryStorage, clean: Callable[..., None]
) -> None:
    attempts.start()
    attempts.checkpoint(1)
    failed = attempts.lose(1, ONCE)
    job_store.users(DEFAULT_TENANT).delete(failed.id)
    with pytest.raises(AttemptStale):
        clean(failed, retention=3600)  # by a cleaner that read it before
    clean(job_store.claims.head(failed.id), retention=3600)
    assert bucket.objects == {}


def kept(bucket: MemoryStorage, job: JobHead, attempt: int) -> bytes:
    return bucket.objects[log_key(job.id, attempt, "driver")]


def test_the_logs_of_all_attempts_stay_until_the_job_is_deleted(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    clean: Callable[..., None],
) -> None:
    for attempt in (1, 2):
        attempts.start()
        cluster.end(attempts.job.id, attempt, printed=f"of attempt {attempt}")
        job_store.attempts.fail(attempts.job.id, attempt, LOST, TWICE)
    failed = job_store.claims.head(attempts.job.id)
    clean(failed, retention=3600)
    assert cluster.known == [f"{failed.id}-1", f"{failed.id}-2"]
    for attempt in (1, 2):
        assert kept(bucket, failed, attempt).startswith(f"of attempt {attempt}\n".encode())
    clean(failed, retention=0)
    assert cluster.known == []
    assert kept(bucket, failed, 2)
    job_store.users(DEFAULT_TENANT).delete(failed.id)
    clean(job_store.claims.head(failed.id))
    assert bucket.objects == {}


def test_ray_keeps_an_attempt_whose_logs_cannot_be_kept_for_an_hour(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    clean: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts.start()
    attempts.checkpoint(1)
    failed = attempts.lose(1, ONCE)
    bucket.trouble, bucket.refused = StorageFull(), logs_prefix(failed.id)
    clean(failed)
    assert bucket.objects == {}  # the rest is cleaned
    assert cluster.known == [f"{failed.id}-1"]
    assert "its logs were not kept" in caplog.text
    age(job_store, failed.id, LOGS_PATIENCE.total_seconds() + 1)
    clean(job_store.claims.head(failed.id))
    assert cluster.known == []


def test_logs_with_credentials_that_cannot_be_masked_are_not_kept(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    clean: Callable[..., None],
    tmp_path: Path,
) -> None:
    settings = Settings(data_dir=tmp_path, credentials_key=SecretStr(new_key()))
    token = HubToken(attempts.job.tenant, "hub", "https://hub.test", SecretStr("canary-token"))
    job_store.credentials.put(token, seal(token, settings))
    attempts.start()
    cluster.end(attempts.job.id, 1, printed="it is canary-token")
    job_store.attempts.fail(attempts.job.id, 1, LOST, ONCE)
    failed = job_store.claims.head(attempts.job.id)
    clean(failed)  # without the key
    assert bucket.objects == {}
    assert cluster.known == [f"{failed.id}-1"]
    Cleaner(job_store, cluster, bucket, settings).clean(failed)
    assert kept(bucket, failed, 1).startswith(b"it is ************")


def test_the_end_of_a_lost_drivers_log_is_masked(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    tmp_path: Path,
) -> None:
    key = SecretStr(new_key())
    settings = Settings(data_dir=tmp_path, credentials_key=key, max_attempts=1)
    token = HubToken(attempts.job.tenant, "hub", "https://hub.test", SecretStr("canary-token"))
    job_store.credentials.put(token, seal(token, settings))
    attempts.start()
    job_store.attempts.renew(attempts.job.id, 1, 60)
    cluster.end(attempts.job.id, 1, printed="it is canary-token")
    dispatcher = Dispatcher(job_store, cluster, bucket, settings)
    dispatcher.tick()
    dispatcher.close()
    lost = job_store.records.get(attempts.job.id)
    assert lost.failure is not None
    assert "it is ************" in lost.failure.detail
    events = job_store.records.events(lost.id)
    assert "canary" not in f"{events} {lost}"


def test_a_cleaner_keeps_no_log_of_a_job_that_another_has_removed(
    attempts: Attempts,
    job_store: Store,
    bucket: MemoryStorage,
    clean: Callable[..., None],
    cluster: FakeCluster,
    tmp_path: Path,
) -> None:
    attempts.start()
    failed = attempts.lose(1, ONCE)
    job_store.users(DEFAULT_TENANT).delete(failed.id)
    deleted = job_store.claims.head(failed.id)
    end = cluster._logs[f"{failed.id}-1"]
    clean(deleted)
    cluster.end(failed.id, 1, printed=end)  # as a suspended cleaner may still see it
    clean(failed)
    assert bucket.objects == {}
    cleaner = Cleaner(job_store, cluster, bucket, Settings(data_dir=tmp_path))
    cleaner.keep_log(failed.id, 1)
    assert bucket.objects == {}


def test_the_log_of_a_lost_attempt_is_kept_when_the_next_one_begins(
    attempts: Attempts,
    job_store: Store,
    cluster: FakeCluster,
    bucket: MemoryStorage,
    tmp_path: Path,
) -> None:
    attempts.start()
    cluster.end(attempts.job.id, 1, printed="of attempt 1")
    job_store.attempts.fail(attempts.job.id, 1, LOST, TWICE)
    dispatcher = Dispatcher(job_store, cluster, bucket, Settings(data_dir=tmp_path))
    dispatcher.tick()
    dispatcher.close()
    job = job_store.claims.head(attempts.job.id)
    assert (job.state, job.attempt) == (JobState.RUNNING, 2)
    assert kept(bucket, job, 1).startswith(b"of attempt 1")
