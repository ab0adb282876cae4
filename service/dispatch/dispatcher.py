"""The dispatcher: takes jobs from the database to Ray and sees each attempt to its end.

Several may run at once. None keeps anything in memory that matters: what to do follows from the
job's row and from what the cluster says of the attempt, any of them may do it, and what is repeated
(a submission, a stop, a deletion) changes nothing the second time. So a dispatcher that was killed
anywhere is replaced by the others, or by starting another, and one that was suspended and goes on
finds its writes refused where they are no longer true.

An attempt is lost when Ray reports that it has ended, or does not know it, while its row is still
`running`; or when its driver has not renewed its lease. While Ray does not answer, no attempt is
lost. While the database does not answer, or the machine sleeps, no driver can renew; so a lease is
judged only by a dispatcher that has been awake and reached the database for at least the length of
one, and the driver stopped only once that judgement is committed.

What needs Ray or the bucket is done in threads: a server that hangs holds up only what needs it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from service.cluster.diagnosis import explain
from service.cluster.ray_jobs import Active, AttemptStatus, Cluster, RayCluster, submission_id
from service.dispatch.cleanup import Cleaner
from service.dispatch.keyed_executor import KeyedExecutor
from service.dispatch.lease_watch import LeaseWatch, Pause
from service.domain.job import Job, JobHead
from service.domain.states import JobState
from service.errors import (
    AttemptStale,
    ClusterUnavailable,
    DatabaseUnavailable,
    EigenpressError,
    SubmissionRefused,
)
from service.settings import Settings
from service.signals import StopRequest, stop_on_signals
from service.storage.s3 import ObjectStorage
from service.store.claims import CLAIM_SECONDS
from service.store.store import Store

log = logging.getLogger(__name__)

PAUSE_TICKS = 10
"""For how many passes nothing is claimed after the cluster answered but took no submission."""

ERRAND_SECONDS = 1.0
"""How long a pass waits for its executor of a kind; the next ones do not wait for what hangs."""

ATTENDING_THREADS = 8
SUBMITTING_THREADS = 4
CLEANING_THREADS = 4

CLEANED_PER_PASS = 2 * CLEANING_THREADS


_Job = TypeVar("_Job", Job, JobHead)


class Dispatcher:
    """Jobs from queue to cluster, `max_running_jobs` at a time over all dispatchers."""

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
        self._cleaner = Cleaner(store, cluster, storage, settings)
        self._settings = settings
        self._attending = KeyedExecutor(ATTENDING_THREADS)
        self._submitting = KeyedExecutor(SUBMITTING_THREADS)
        self._cleaning = KeyedExecutor(CLEANING_THREADS)
        self._pause = Pause()
        self._watch = LeaseWatch(settings.lease_seconds)
        self._complaints: dict[str, type[Exception]] = {}

    def run(self, stop: StopRequest) -> None:
        """Pass after pass until a stop is requested."""
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
        """One pass. Never raises: what goes wrong is logged when it begins and when it ends."""
        self._try("The dispatcher", self._pass)

    def _pass(self) -> None:
        overdue = self._store.claims.end_overdue()
        for job in overdue:
            log.warning("%s: %s", job.id, job.failure and job.failure.detail)
        reachable = self._try("The Ray cluster", self._cluster.check)
        for job in overdue if reachable else ():
            self._errand(self._attending, job, self._stop)
        for job in self._store.claims.in_flight():
            self._errand(self._attending, job, self._attend if reachable else self._attend_blindly)
        self._attending.wait(ERRAND_SECONDS)
        if reachable:
            self._fill()
        self._clean_up()
        self._submitting.wait(ERRAND_SECONDS)
        self._cleaning.wait(ERRAND_SECONDS)

    # Attempts under way.

    def _attend(self, job: JobHead) -> None:
        """Bring an attempt under way one step nearer to its end, if that is for us to do."""
        if job.state is JobState.RUNNING and job.submitted_at is None:
            if job.lapsed:
                mine = self._store.claims.take_over(job.id, job.attempt, self.owner, CLAIM_SECONDS)
                log.warning("%s: attempt %d taken over", job.id, job.attempt)
                self._submit(mine)
            return
        status = self._cluster.status(job.id, job.attempt)
        if job.state is JobState.CANCELLING:
            self._attend_cancelled(job, status)
        elif not isinstance(status, Active) or job.lapsed:
            self._attend_silent(job, status)

    def _attend_blindly(self, job: JobHead) -> None:
        """While Ray does not answer, only what a user has given up is ended."""
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
        log.info("%s: cancelled", job.id)

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
        log.warning(
            "%s: attempt %d was lost (%s); the job is %s", job.id, job.attempt, error.code, state
        )
        if active:
            # Only now: if no commit succeeds, no renewal does, and the driver may be alive.
            self._stop_if_possible(job)

    def _stop(self, job: JobHead) -> None:
        self._cluster.stop(job.id, job.attempt)

    def _stop_if_possible(self, job: JobHead) -> None:
        # The next attempt's submission stops it, too, and the cleaning after the job.
        with suppress(ClusterUnavailable):
            self._stop(job)

    def _log_tail(self, job: JobHead) -> str | None:
        """The end of the driver's log; None where it cannot be read."""
        try:
            return self._cluster.log_tail(job.id, job.attempt)
        except ClusterUnavailable:
            return None

    # Waiting jobs.

    def _fill(self) -> None:
        """Claim and submit while there is room, and a thread to submit in."""
        if self._pause.leave_out_one():
            return
        for _ in range(self._settings.max_running_jobs):
            if self._pause.under_way or not self._submitting.has_room(ERRAND_SECONDS):
                return
            job = self._store.claims.claim(
                owner=self.owner,
                lease_seconds=CLAIM_SECONDS,
                max_running=self._settings.max_running_jobs,
                max_running_per_tenant=self._settings.max_running_jobs_per_tenant,
            )
            if job is None:
                return
            self._errand(self._submitting, job, self._submit)

    def _submit(self, job: Job) -> None:
        try:
            if job.attempt > 1:
                # A failed attempt tells the store before its driver ends; its devices are wanted.
                self._cluster.stop(job.id, job.attempt - 1)
            self._cluster.submit(job.id, job.attempt, job.name)
        except SubmissionRefused as error:
            policy = self._settings.retry_policy
            self._store.attempts.fail(job.id, job.attempt, error.failure(), policy)
            log.warning("%s: %s", job.id, error)
        except ClusterUnavailable as error:
            self._pause.begin(PAUSE_TICKS)
            self._store.claims.release(job.id, job.attempt, error.detail)
            raise
        else:
            self._store.claims.submitted(job.id, job.attempt, self._settings.start_seconds)
            log.info("%s: attempt %d submitted", job.id, job.attempt)

    def _may_judge(self, job: JobHead) -> bool:
        """Whether the job's lease expired while its driver could have renewed it."""
        return self._watch.may_judge() and job.lapsed

    # Ended jobs.

    def _clean_up(self) -> None:
        """Clean up after ended jobs, and delete those that have been kept for long enough."""
        due = self._cleaner.due(limit=CLEANED_PER_PASS)
        for job in due:
            self._errand(self._cleaning, job, self._cleaner.clean)
        if len(due) < CLEANED_PER_PASS:
            # Else the jobs that end now would wait until all old ones are removed.
            self._delete_old()

    def _delete_old(self) -> None:
        retention = self._settings.job_retention_seconds
        if retention is not None and (count := self._store.claims.delete_old(retention)):
            log.info("Deleted ended jobs older than %.0f seconds: %d", retention, count)

    # Errors.

    def _errand(self, executor: KeyedExecutor, job: _Job, act: Callable[[_Job], None]) -> None:
        executor.start(submission_id(job.id, job.attempt), self._try, job.id, act, job)

    def _try(self, subject: str, act: Callable[..., None], *args: Job | JobHead) -> bool:
        """Return whether the call succeeded; logs the first of repeated errors and their end."""
        try:
            act(*args)
        except AttemptStale as error:
            # Its driver, its user or another dispatcher was quicker than this write.
            log.debug("%s: %s", subject, error)
        except Exception as error:
            if isinstance(error, DatabaseUnavailable):
                self._watch.restart()
            self._complain(subject, error)
            return False
        if self._complaints.pop(subject, None) is not None:
            log.info("%s: works again", subject)
        return True

    def _complain(self, subject: str, error: Exception) -> None:
        # By its kind: how exactly a server fails to answer changes from one second to the next.
        if self._complaints.get(subject) is not type(error):
            self._complaints[subject] = type(error)
            defect = None if isinstance(error, EigenpressError) else error
            log.warning("%s: %s", subject, error, exc_info=defect)


def main() -> None:
    """Run a dispatcher until SIGTERM or Ctrl-C."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    for talkative in ("alembic", "httpx"):  # the latter logs every request
        logging.getLogger(talkative).setLevel(logging.WARNING)
    settings = Settings()
    store = Store(settings.database)
    try:
        store.migrate()
        storage = ObjectStorage.from_settings(settings)
        cluster = RayCluster(settings.ray_address, settings.driver_command)
        with cluster, stop_on_signals() as stop:
            Dispatcher(store, cluster, storage, settings).run(stop)
    except EigenpressError as error:
        sys.exit(f"The dispatcher cannot start: {error}")
    finally:
        store.close()


if __name__ == "__main__":
    main()
