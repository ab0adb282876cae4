"""Cleans up after ended jobs: drivers on Ray, objects in the bucket, Ray's records.

    succeeded   remove its checkpoints, and all publications but the final ones
    cancelled   remove everything
    failed      remove its publications; keep its checkpoints for a while, for a retry
    deleted     remove everything, and then the job itself from the database

The ends of all attempts' logs are kept, before Ray forgets the attempts, until the job is deleted.

A cleanup may run twice, and on several dispatchers at once. It removes nothing that a later attempt
has written, even if the cleaner was suspended for a long time: publications carry their attempt's
number, and it deletes only those checkpoints that existed before it checked again that the job had
ended.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from service.cluster.ray_jobs import Active, Cluster
from service.domain.job import JobHead
from service.domain.manifest import checkpoints_prefix, logs_prefix
from service.domain.states import JobState
from service.errors import (
    AttemptStale,
    ClusterUnavailable,
    EncryptionKeyMissing,
    EncryptionKeyWrong,
    JobNotFound,
    StorageFull,
)
from service.logs.attempt_logs import AttemptLogs
from service.logs.mask import Mask
from service.settings import Settings
from service.storage.publication import remove_publications
from service.storage.s3 import ObjectStorage
from service.store.store import Store

log = logging.getLogger(__name__)

AGAIN_SECONDS = 10.0
"""How long after an incomplete cleanup the next one is due; the grace is added."""
LOGS_KEPT_LATER = (ClusterUnavailable, StorageFull, EncryptionKeyMissing, EncryptionKeyWrong)
"""Why logs cannot be kept now: without the key, the credentials in them would not be masked."""
LOGS_PATIENCE = timedelta(hours=1)
"""How long after a job's end a cleanup still waits for logs that cannot be kept."""


class Cleaner:
    """Cleans up after ended jobs. Threads may share it."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        storage: ObjectStorage,
        settings: Settings,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._storage = storage
        self._logs = AttemptLogs(cluster, storage, Mask.of(settings, store=store))
        self._retention = timedelta(seconds=settings.checkpoint_retention_seconds)
        self._grace_seconds = settings.cleanup_grace_seconds

    def due(self, limit: int) -> list[JobHead]:
        """The jobs to clean up after now, those due longest first."""
        return self._store.claims.to_clean(grace_seconds=self._grace_seconds, limit=limit)

    def clean(self, job: JobHead) -> None:
        """Clean up after the job as far as possible; an incomplete cleanup is due again later.

        Raises AttemptStale if the job has been retried or deleted since it was read, and the
        storage's errors.
        """
        again: timedelta | None = timedelta(seconds=AGAIN_SECONDS)
        try:
            try:
                again = self._clean(job)
            finally:
                if job.deleted and again is None:
                    self._store.claims.remove(job.id)
                else:
                    # A job whose cleanup fails must not delay the others.
                    self._store.claims.cleaned(job.id, job.attempt, again, deleted=job.deleted)
        except JobNotFound:  # another cleaner has removed the job
            self._remove_logs(job.id)

    def keep_log(self, job_id: str, attempt: int) -> None:
        """Keep the logs of an attempt that has ended before its job has.

        Raises ClusterUnavailable and the storage's errors; the cleanup will try again.
        """
        self._logs.keep(job_id, attempt)
        try:
            self._store.claims.head(job_id)
        except JobNotFound:  # a cleaner has removed the job meanwhile
            self._remove_logs(job_id)

    def _clean(self, job: JobHead) -> timedelta | None:
        """Clean up; return the time until the next cleanup, or None if all is clean."""
        quiet = self._is_quiet(job)
        self._remove_publications(job)
        if job.deleted:
            self._remove_logs(job.id)
        elif quiet:
            quiet = self._keep_logs(job)
        if left := self._retention_left(job):
            return left if quiet else timedelta(seconds=AGAIN_SECONDS)
        self._remove_checkpoints(job)
        if not quiet:
            return timedelta(seconds=AGAIN_SECONDS)
        for attempt in _attempts(job):
            self._cluster.forget(job.id, attempt)
        log.info("%s: cleaned up", job.id)
        return None

    def _is_quiet(self, job: JobHead) -> bool:
        """Stop the job's drivers that still run; return whether there were none."""
        try:
            running = [attempt for attempt in _attempts(job) if self._runs(job, attempt)]
            for attempt in running:
                self._cluster.stop(job.id, attempt)
        except ClusterUnavailable as error:
            log.debug("%s: %s", job.id, error)
            return False
        return not running

    def _runs(self, job: JobHead, attempt: int) -> bool:
        return isinstance(self._cluster.status(job.id, attempt), Active)

    def _keep_logs(self, job: JobHead) -> bool:
        """Keep the logs of the job's attempts; return whether that is done, or given up."""
        try:
            for attempt in _attempts(job):
                self._logs.keep(job.id, attempt)
        except LOGS_KEPT_LATER as error:
            log.warning("%s: its logs were not kept: %s", job.id, error)
            ended = job.finished_at
            return ended is not None and datetime.now(UTC) - ended > LOGS_PATIENCE
        return True

    def _remove_logs(self, job_id: str) -> None:
        kept = self._storage.list_objects(logs_prefix(job_id))
        self._storage.delete([stored.key for stored in kept])

    def _remove_publications(self, job: JobHead) -> None:
        keep: set[str] = set()
        if job.state is JobState.SUCCEEDED and not job.deleted:
            keep = {artifact.prefix for artifact in self._store.records.artifacts(job.id)}
        remove_publications(self._storage, job.id, through=job.attempt, keep=keep)

    def _retention_left(self, job: JobHead) -> timedelta | None:
        """How much longer the checkpoints are kept; None if not at all."""
        if job.deleted or job.state is not JobState.FAILED or job.finished_at is None:
            return None
        left = job.finished_at + self._retention - datetime.now(UTC)
        return left if left > timedelta(0) else None

    def _remove_checkpoints(self, job: JobHead) -> None:
        keys = [stored.key for stored in self._storage.list_objects(checkpoints_prefix(job.id))]
        now = self._store.claims.head(job.id)
        if (now.state, now.attempt, now.finished_at) != (job.state, job.attempt, job.finished_at):
            raise AttemptStale(f"Job {job.id} has been retried.")
        self._storage.delete(keys)


def _attempts(job: JobHead) -> range:
    return range(1, job.attempt + 1)
