"""The dispatcher: takes jobs from the database to Ray and sees each attempt to its end.

It keeps nothing in memory that matters. What to do follows from the job's row and from whether the
cluster still runs the attempt, so a dispatcher that was killed anywhere is replaced by starting
another, and what it repeats (a submission, a stop, a deletion) changes nothing the second time.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

from service.cluster import Cluster, RayCluster
from service.errors import (
    AttemptLost,
    AttemptStale,
    ClusterUnavailable,
    EigenpressError,
    SubmissionRefused,
)
from service.jobs import Job
from service.settings import Settings
from service.states import JobState
from service.stopping import StopRequest, stop_on_signals
from service.storage import ObjectStorage
from service.store import Store

log = logging.getLogger(__name__)

PAUSE_TICKS = 10
"""For how many passes nothing is claimed after the cluster answered but took no submission, and
nothing cleaned after that failed."""

CLEANING_GRACE_SECONDS = 20
"""How long an ended job is left alone before it is cleaned up after: Ray ends the actors of an
attempt that it calls stopped a little later, and one of them may be uploading."""


class Bucket(Protocol):
    """What the dispatcher needs of the object storage."""

    def delete_prefix(self, prefix: str) -> int:
        """Delete all below; returns how many objects. Raises StorageUnavailable and its kin."""


class Dispatcher:
    """Jobs from queue to cluster, `max_running_jobs` at a time."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        storage: Bucket,
        settings: Settings,
        *,
        cleaning_grace: float = CLEANING_GRACE_SECONDS,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._storage = storage
        self._settings = settings
        self._cleaning_grace = cleaning_grace
        self._pause = self._cleaning_pause = 0
        self._cleanings: Counter[str] = Counter()
        self._complaints: dict[str, type[Exception]] = {}

    def run(self, stop: StopRequest) -> None:
        """Pass after pass until a stop is requested."""
        heartbeat = self._settings.dispatcher_heartbeat
        while not stop.requested:
            self.tick()
            if heartbeat:
                self._try("The heartbeat", heartbeat.touch)
            stop.wait(self._settings.poll_seconds)

    def tick(self) -> None:
        """One pass. Never raises: what goes wrong is logged when it begins and when it ends."""
        self._try("The dispatcher", self._pass)

    def _pass(self) -> None:
        if not self._try("The Ray cluster", self._cluster.check):
            return
        self._each(self._store.in_flight(), self._attend)
        self._fill()
        self._clean_one()

    def _attend(self, job: Job) -> None:
        """Bring an attempt under way one step nearer to its end, if that is for us to do."""
        if job.state is JobState.RUNNING and job.submitted_at is None:
            self._submit(job)
        elif self._cluster.is_active(job.id, job.attempt):
            if job.state is JobState.CANCELLING:
                self._cluster.stop(job.id, job.attempt)
        elif job.state is JobState.CANCELLING:
            self._store.end_cancelled(job.id, job.attempt)
            log.info("%s: cancelled", job.id)
        else:
            self._end_lost(job)

    def _end_lost(self, job: Job) -> None:
        """The driver is gone and the row still says `running`: it ended without saying how."""
        printed = self._log_tail(job)
        detail = f"The driver of attempt {job.attempt} ended without saying how. {printed}"
        failure = AttemptLost(detail).failure()
        state = self._store.fail(job.id, job.attempt, failure, self._settings.retry_policy)
        log.warning("%s: attempt %d was lost; the job is %s", job.id, job.attempt, state)

    def _log_tail(self, job: Job) -> str:
        try:
            printed = self._cluster.log_tail(job.id, job.attempt)
        except ClusterUnavailable:
            # The log lies on the driver's node, which may be what was lost.
            return "Its log cannot be read."
        return f"It last printed:\n{printed}" if printed else "It printed nothing."

    def _fill(self) -> None:
        """Claim and submit while there is room."""
        if self._pause:
            self._pause -= 1
            return
        room = self._settings.max_running_jobs - len(self._store.in_flight())
        for _ in range(room):
            job = self._store.claim()
            if job is None:
                return
            if not self._try(job.id, self._submit, job):
                self._pause = PAUSE_TICKS
                return

    def _submit(self, job: Job) -> None:
        if job.attempt > 1:
            # A failed attempt tells the store before its driver ends; its devices are wanted now.
            self._cluster.stop(job.id, job.attempt - 1)
        try:
            self._cluster.submit(job.id, job.attempt, job.name)
        except SubmissionRefused as error:
            self._store.fail(job.id, job.attempt, error.failure(), self._settings.retry_policy)
            log.warning("%s: %s", job.id, error)
        except ClusterUnavailable as error:
            self._store.release(job.id, job.attempt, error.detail)
            raise
        else:
            self._store.submitted(job.id, job.attempt)
            log.info("%s: attempt %d submitted", job.id, job.attempt)

    def _clean_one(self) -> None:
        """Clean up after one job at most: a server that hangs must not hold up the other jobs."""
        if self._cleaning_pause:
            self._cleaning_pause -= 1
            return
        if settled := self._store.to_clean(grace_seconds=self._cleaning_grace):
            # The least tried one, so that a job that cannot be cleaned up after stops no other.
            job = min(settled, key=lambda job: self._cleanings[job.id])
            self._cleanings[job.id] += 1
            if not self._try(job.id, self._clean, job):
                self._cleaning_pause = PAUSE_TICKS

    def _clean(self, job: Job) -> None:
        """Remove what a failed or cancelled job left in the bucket, once nothing writes there."""
        if job.state is JobState.SUCCEEDED:
            self._store.cleaned(job.id, job.attempt)
        elif not self._cluster.is_active(job.id, job.attempt):
            deleted = self._storage.delete_prefix(f"jobs/{job.id}/")
            self._store.cleaned(job.id, job.attempt)
            del self._cleanings[job.id]
            log.info("%s: %d objects deleted", job.id, deleted)

    def _each(self, jobs: Iterable[Job], act: Callable[[Job], None]) -> None:
        for job in jobs:
            self._try(job.id, act, job)

    def _try(self, subject: str, act: Callable[..., None], *args: Job) -> bool:
        """Act, and say whether it went well; of a trouble only its start and end are logged."""
        try:
            act(*args)
        except AttemptStale as error:
            # Its driver or its user was quicker, between our reading of the row and this write.
            log.debug("%s: %s", subject, error)
        except Exception as error:
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
