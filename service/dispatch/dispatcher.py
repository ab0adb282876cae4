"""The dispatcher: submits queued jobs to Ray and watches each attempt until it ends.

Several may run at once. A dispatcher keeps no essential state in memory: its next action follows
from the job's row and from Ray's status of the attempt. Any dispatcher may take this action, and a
repeated one (a submission, a stop, a deletion) changes nothing. So if a dispatcher is killed at any
point, the others or a new one replace it. If a suspended dispatcher continues, the database refuses
its outdated writes.

An attempt is lost if Ray reports that it has ended, or does not know it, while its row is still
`running`; or if its driver has not renewed its lease. While Ray does not answer, no attempt is
lost. During an outage of the database, or while the machine sleeps, no driver can renew its lease.
So a dispatcher judges leases only after it has been awake, and has reached the database, for one
whole lease. It stops the driver only after that judgement is committed.

Calls to Ray and the bucket run in threads, so a hanging server delays only the jobs that need it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from service.cluster.diagnosis import explain
from service.cluster.ray_jobs import Active, AttemptStatus, Cluster, RayCluster, submission_id
from service.datasets.removal import remove_dataset
from service.dispatch.cleanup import Cleaner
from service.dispatch.keyed_executor import KeyedExecutor
from service.dispatch.lease_watch import LeaseWatch, LoggedErrors, Pause
from service.domain.job import Job, JobHead
from service.domain.states import JobState
from service.errors import (
    AttemptStale,
    ClusterUnavailable,
    DatabaseUnavailable,
    EigenpressError,
    EncryptionKeyMissing,
    EncryptionKeyWrong,
    SubmissionRefused,
)
from service.log_lines import bound, configure_logging
from service.logs.mask import Mask
from service.settings import Settings
from service.signals import StopRequest, stop_on_signals
from service.storage.s3 import ObjectStorage
from service.store.claims import CLAIM_SECONDS
from service.store.store import Store
from service.tracing import span, start_tracing
from service.webhooks.deliverer import delivering

log = logging.getLogger("service.dispatch.dispatcher")  # not `__main__`

PAUSE_TICKS = 10
"""How many passes claim nothing after the cluster answered but accepted no submission."""

CALL_WAIT_SECONDS = 1.0
"""How long a pass waits for the calls of each executor; it does not wait for one that hangs."""

ATTENDING_THREADS = 8
SUBMITTING_THREADS = 4
CLEANING_THREADS = 4

CLEANED_PER_PASS = 2 * CLEANING_THREADS


_Job = TypeVar("_Job", Job, JobHead)


class Dispatcher:
    """Runs jobs on the cluster, at most `max_running_jobs` at a time over all dispatchers."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        storage: ObjectStorage,
        settings: Settings,
    ) -> None:
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._store = store
        self._cluster = cluster
        self._storage = storage
        self._mask = Mask.of(settings, store=store)
        self._cleaner = Cleaner(store, cluster, storage, settings)
        self._settings = settings
        self._attending = KeyedExecutor(ATTENDING_THREADS)
        self._submitting = KeyedExecutor(SUBMITTING_THREADS)
        self._cleaning = KeyedExecutor(CLEANING_THREADS)
        self._pause = Pause()
        self._watch = LeaseWatch(settings.lease_seconds)
        self._logged_errors = LoggedErrors()

    def run(self, stop: StopRequest) -> None:
        """Make one pass after another until a stop is requested."""
        heartbeat = self._settings.dispatcher_heartbeat
        while not stop.requested:
            self.tick()
            if heartbeat:
                self._try("The heartbeat", heartbeat.touch)
            stop.wait(self._settings.poll_seconds)
        self.close()

    def close(self) -> None:
        """Wait for the calls that are under way."""
        for executor in (self._attending, self._submitting, self._cleaning):
            executor.close()

    def tick(self) -> None:
        """Make one pass. Never raises; it logs an error when it begins and when it ends."""
        self._try("The dispatcher", self._pass)

    def _pass(self) -> None:
        overdue = self._store.claims.end_overdue()
        for job in overdue:
            with bound(job=job.id, attempt=job.attempt or None):
                log.warning("%s", job.failure and job.failure.detail)
        reachable = self._try("The Ray cluster", self._cluster.check)
        for job in overdue if reachable else ():
            self._start(self._attending, job, self._stop)
        attend = self._attend if reachable else self._attend_without_ray
        for job in self._store.claims.in_flight():
            self._start(self._attending, job, attend)
        self._attending.wait(CALL_WAIT_SECONDS)
        if reachable:
            self._fill()
        self._clean_up()
        self._submitting.wait(CALL_WAIT_SECONDS)
        self._cleaning.wait(CALL_WAIT_SECONDS)

    # Attempts under way.

    def _attend(self, job: JobHead) -> None:
        """Take the next action for an attempt under way, if one is due."""
        if job.state is JobState.RUNNING and job.submitted_at is None:
            if job.lapsed:
                mine = self._store.claims.take_over(job.id, job.attempt, self.owner, CLAIM_SECONDS)
                log.warning("Attempt %d taken over", job.attempt)
                self._submit(mine)
            return
        status = self._cluster.status(job.id, job.attempt)
        if job.state is JobState.CANCELLING:
            self._attend_cancelled(job, status)
        elif not isinstance(status, Active) or job.lapsed:
            self._attend_silent(job, status)

    def _attend_without_ray(self, job: JobHead) -> None:
        """While Ray does not answer, end only cancelled jobs."""
        if job.state is JobState.CANCELLING and self._may_judge(job):
            self._end_cancelled(job)

    def _attend_cancelled(self, job: JobHead, status: AttemptStatus) -> None:
        if not isinstance(status, Active):
            self._end_cancelled(job)
        elif self._may_judge(job):
            self._stop_if_possible(job)
            self._end_cancelled(job)
        else:
            self._stop(job)

    def _end_cancelled(self, job: JobHead) -> None:
        self._store.claims.end_cancelled(job.id, job.attempt)
        log.info("Cancelled")

    def _attend_silent(self, job: JobHead, status: AttemptStatus) -> None:
        """End the attempt of a lost or silent driver, unless the driver has ended it itself."""
        now = self._store.claims.head(job.id)
        if (now.state, now.attempt) != (JobState.RUNNING, job.attempt):
            return
        active = isinstance(status, Active)
        if active and not self._may_judge(now):
            return
        error = explain(status, self._log_tail(job))
        state = self._store.attempts.fail(
            job.id,
            job.attempt,
            error.failure(),
            self._settings.retry_policy,
            only_if_lapsed=active,
        )
        log.warning("Attempt %d was lost (%s); the job is %s", job.attempt, error.code, state)
        if active:
            # This follows the commit: while commits fail, renewals fail, too, and the driver may
            # be alive.
            self._stop_if_possible(job)

    def _stop(self, job: JobHead) -> None:
        self._cluster.stop(job.id, job.attempt)

    def _stop_if_possible(self, job: JobHead) -> None:
        # The submission of the next attempt stops it, too, and so does the cleanup.
        with suppress(ClusterUnavailable):
            self._stop(job)

    def _log_tail(self, job: JobHead) -> str | None:
        """The end of the driver's log, masked; None if it cannot be read."""
        try:
            tail = self._cluster.log_tail(job.id, job.attempt)
            return self._mask(tail.encode(errors="replace")).decode()
        except (ClusterUnavailable, EncryptionKeyMissing, EncryptionKeyWrong):
            return None

    # Waiting jobs.

    def _fill(self) -> None:
        """Claim and submit jobs while the limits allow it and a thread is free."""
        if self._pause.skip_one():
            return
        for _ in range(self._settings.max_running_jobs):
            if self._pause.under_way or not self._submitting.has_room(CALL_WAIT_SECONDS):
                return
            job = self._store.claims.claim(
                owner=self.owner,
                lease_seconds=CLAIM_SECONDS,
                max_running=self._settings.max_running_jobs,
                max_running_per_tenant=self._settings.max_running_jobs_per_tenant,
            )
            if job is None:
                return
            self._start(self._submitting, job, self._submit)
            if (before := job.attempt - 1) > 0:
                name = submission_id(job.id, before)
                self._cleaning.start(name, self._try, name, self._cleaner.keep_log, job.id, before)

    def _submit(self, job: Job) -> None:
        origin = self._store.records.origin(job.id)
        about = {"eigenpress.job": job.id, "eigenpress.attempt": job.attempt}
        with bound(request_id=origin.get("request_id")), span("dispatch", origin, about):
            self._submit_for(job)

    def _submit_for(self, job: Job) -> None:
        try:
            if job.attempt > 1:
                # The driver of a failed attempt may still run, and hold devices.
                self._cluster.stop(job.id, job.attempt - 1)
            self._cluster.submit(job.id, job.attempt, job.name)
        except SubmissionRefused as error:
            policy = self._settings.retry_policy
            self._store.attempts.fail(job.id, job.attempt, error.failure(), policy)
            log.warning("%s", error)
        except ClusterUnavailable as error:
            self._pause.begin(PAUSE_TICKS)
            self._store.claims.release(job.id, job.attempt, error.detail)
            raise
        else:
            self._store.claims.submitted(job.id, job.attempt, self._settings.start_seconds)
            log.info("Attempt %d submitted", job.attempt)

    def _may_judge(self, job: JobHead) -> bool:
        """Whether the job's lease expired while its driver could have renewed it."""
        return self._watch.may_judge() and job.lapsed

    # Ended jobs and deleted datasets.

    def _clean_up(self) -> None:
        """Remove deleted datasets; clean up after ended jobs, and delete the old ones."""
        for dataset_id in self._store.stored_datasets.to_remove(limit=CLEANED_PER_PASS):
            remove = partial(remove_dataset, dataset_id, self._store.stored_datasets, self._storage)
            self._cleaning.start(dataset_id, self._try, dataset_id, remove)
        due = self._cleaner.due(limit=CLEANED_PER_PASS)
        for job in due:
            self._start(self._cleaning, job, self._cleaner.clean)
        if len(due) < CLEANED_PER_PASS:
            # Otherwise newly ended jobs would wait until all old ones are removed.
            self._delete_old()

    def _delete_old(self) -> None:
        retention = self._settings.job_retention_seconds
        if retention is not None and (count := self._store.claims.delete_old(retention)):
            log.info("Deleted ended jobs older than %.0f seconds: %d", retention, count)

    # Errors.

    def _start(self, executor: KeyedExecutor, job: _Job, act: Callable[[_Job], None]) -> None:
        executor.start(submission_id(job.id, job.attempt), self._try_for, job, act)

    def _try_for(self, job: _Job, act: Callable[[_Job], None]) -> None:
        with bound(job=job.id, attempt=job.attempt or None):
            self._try(job.id, act, job)

    def _try(self, subject: str, act: Callable[..., None], *args: object) -> bool:
        """Return whether the call succeeded; logs the first of repeated errors and their end."""
        try:
            act(*args)
        except AttemptStale as error:
            # Its driver, its user or another dispatcher was quicker than this write.
            log.debug("%s: %s", subject, error)
        except Exception as error:
            if isinstance(error, DatabaseUnavailable):
                self._watch.restart()
            self._log_error(subject, error)
            return False
        if self._logged_errors.remove(subject):
            log.info("%s: works again", subject)
        return True

    def _log_error(self, subject: str, error: Exception) -> None:
        if self._logged_errors.add(subject, error):
            defect = None if isinstance(error, EigenpressError) else error
            log.warning("%s: %s", subject, error, exc_info=defect)


def main() -> None:
    """Run a dispatcher until SIGTERM or Ctrl-C."""
    settings = Settings()
    configure_logging(settings.log_format, actor="dispatcher")
    start_tracing("eigenpress-dispatcher")
    store = Store(settings.database)
    try:
        store.migrate()
        storage = ObjectStorage.from_settings(settings)
        cluster = RayCluster(settings.ray_address, settings.driver_command)
        with cluster, stop_on_signals() as stop, delivering(store, settings):
            Dispatcher(store, cluster, storage, settings).run(stop)
    except EigenpressError as error:
        log.critical("The dispatcher cannot start: %s", error)
        sys.exit(1)
    finally:
        store.close()


if __name__ == "__main__":
    main()
