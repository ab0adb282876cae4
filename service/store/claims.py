"""The dispatchers' side of the jobs database: claims, takeovers, deadlines and cleanup."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select, update

from service.domain.job import EventType, Job, JobHead
from service.domain.spec.stored import read_stored_limits
from service.domain.states import IN_FLIGHT, TERMINAL, JobState
from service.errors import (
    AttemptStale,
    QueueTimeExceeded,
    RunTimeExceeded,
    SpecificationUnknown,
    UserError,
)
from service.store import tables
from service.store.database import Database, clock, try_lock
from service.store.queue import next_waiting
from service.store.rows import job_row, queued_at, read_heads, read_job, read_jobs
from service.store.transitions import (
    after,
    append,
    end_failed,
    extend_lease,
    fence,
    mark_deleted,
    note_submitted,
    transition,
)

CLAIM_SECONDS = 30.0
"""The time that a dispatcher has to submit an attempt that it claimed."""

START_SECONDS = 300.0
"""The default for the time from a driver's submission to its first heartbeat."""

jobs = tables.jobs

_HEAD = [column for column in jobs.c if column is not jobs.c.spec]


class Claims:
    """The reads and writes of dispatchers. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(
        self,
        *,
        owner: str = "",
        lease_seconds: float = CLAIM_SECONDS,
        max_running: int | None = None,
        max_running_per_tenant: int | None = None,
    ) -> Job | None:
        """Claim a waiting job and number its next attempt; None if no job may run now.

        Among the tenants with a waiting job, the one with the fewest jobs in flight comes first,
        then the one that was served longest ago. Among a tenant's jobs, the one with the highest
        priority comes first, then the oldest. `owner` must submit the attempt within the lease.
        The limits hold across all dispatchers: if one is given, only one dispatcher claims at a
        time, and the others get None meanwhile.

        Only the limits of the specification are read; the job's driver checks whether it knows the
        rest. A job with limits that this version does not know fails, because it would run without
        them.
        """
        limited = max_running is not None or max_running_per_tenant is not None
        with self._database.writing() as connection:
            if limited and not try_lock(connection, "claim"):
                return None
            while (
                row := next_waiting(connection, max_running, max_running_per_tenant)
            ) is not None:
                try:
                    left = read_stored_limits(row.id, row.spec).run_seconds
                except SpecificationUnknown as error:
                    end_failed(connection, row, error.failure())
                else:
                    break
            if row is None:
                return None
            now, attempt = clock(connection), row.attempt + 1
            _note_served(connection, row.tenant, now)
            claimed = transition(
                connection,
                row,
                JobState.RUNNING,
                EventType.CLAIMED,
                f"A dispatcher claimed the job for attempt {attempt}.",
                data={"owner": owner, "lease_seconds": lease_seconds},
                attempt=attempt,
                lease_until=after(now, lease_seconds),
                deadline=None if left is None else after(now, left - row.ran_seconds),
            )
            return read_jobs(connection, [claimed])[0]

    def take_over(self, job_id: str, attempt: int, owner: str, lease_seconds: float) -> Job:
        """Take over the submission of an attempt after the claimer's lease expired.

        Raises AttemptStale if the attempt was submitted, its lease is valid, or another dispatcher
        was quicker.
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            now = clock(connection)
            if row.submitted_at is not None or row.lease_until is None or row.lease_until > now:
                raise AttemptStale(f"Attempt {attempt} of {job_id} belongs to another dispatcher.")
            until = extend_lease(connection, job_id, lease_seconds)
            message = f"The lease expires at {until}."
            data = {"owner": owner, "lease_seconds": lease_seconds}
            append(connection, job_id, attempt, EventType.TAKEN_OVER, message, data)
            return read_job(connection, job_id)

    def submitted(self, job_id: str, attempt: int, lease_seconds: float = START_SECONDS) -> None:
        """Record that the cluster accepted it; the first heartbeat is due within the lease.

        Raises AttemptStale.
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            if row.submitted_at is None:
                note_submitted(connection, job_id, attempt, lease_seconds)

    def release(self, job_id: str, attempt: int, reason: str) -> None:
        """Return a job to the queue if the cluster did not accept it; reuse the attempt's number.

        If the submission reached the cluster after all, the same number makes Ray refuse the next
        one as a duplicate. Raises AttemptStale, also if another dispatcher has taken the attempt
        over and submitted it, and SpecificationUnknown if its limits cannot be read.
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            if row.submitted_at is not None:
                raise AttemptStale(
                    f"Another dispatcher has submitted attempt {attempt} of {job_id}."
                )
            steps = tables.steps.c
            connection.execute(
                delete(tables.steps).where(steps.job_id == job_id, steps.attempt == attempt)
            )
            limits = read_stored_limits(row.id, row.spec)
            never_ran = attempt - 1 == row.attempts_before
            transition(
                connection,
                row,
                JobState.QUEUED,
                EventType.RELEASED,
                reason,
                attempt=attempt - 1,
                ran_seconds=row.ran_seconds,
                deadline=(
                    after(queued_at(connection, job_id), limits.queue_seconds)
                    if never_ran
                    else None
                ),
            )

    def head(self, job_id: str) -> JobHead:
        """The current state of the job. Raises JobNotFound."""
        with self._database.reading() as connection:
            return read_heads(connection, [job_row(connection, job_id)])[0]

    def in_flight(self) -> list[JobHead]:
        """Jobs with an attempt under way, running or cancelling, oldest first."""
        query = select(*_HEAD).where(jobs.c.state.in_(IN_FLIGHT)).order_by(jobs.c.id)
        with self._database.reading() as connection:
            return read_heads(connection, connection.execute(query).all())

    def end_overdue(self, *, limit: int = 100) -> list[JobHead]:
        """Fail at most `limit` jobs that have waited or run for longer than their limits allow.

        A job that another transaction has locked is left for the next call.
        """
        ended = []
        with self._database.writing() as connection:
            overdue = (
                select(jobs)
                .where(
                    jobs.c.state.in_(_LIMITS),
                    jobs.c.deadline <= clock(connection),
                )
                .order_by(jobs.c.deadline)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            for row in connection.execute(overdue).all():
                param, error = _LIMITS[JobState(row.state)]
                failure = error(param=param).failure()
                end_failed(connection, row, failure)
                ended.append(job_row(connection, row.id))
            return read_heads(connection, ended)

    def end_cancelled(self, job_id: str, attempt: int) -> None:
        """End a cancelled job after its attempt has stopped. Raises AttemptStale."""
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt, JobState.CANCELLING)
            transition(
                connection,
                row,
                JobState.CANCELLED,
                EventType.CANCELLED,
                "The attempt was stopped after its user cancelled the job.",
            )

    def to_clean(self, *, grace_seconds: float = 0, limit: int = 100) -> list[JobHead]:
        """Ended jobs that are due for cleanup, the longest due first.

        A job is listed `grace_seconds` after it became due, because an attempt's actors may
        outlive its job.
        """
        with self._database.reading() as connection:
            due = clock(connection) - timedelta(seconds=grace_seconds)
            query = (
                select(*_HEAD)
                .where(jobs.c.state.in_(TERMINAL), jobs.c.clean_after <= due)
                .order_by(jobs.c.clean_after)
                .limit(limit)
            )
            return read_heads(connection, connection.execute(query).all())

    def cleaned(
        self,
        job_id: str,
        attempt: int,
        again_after: timedelta | None = None,
        *,
        deleted: bool = False,
    ) -> None:
        """Record a cleanup after the job; the next one is due after `again_after`, or never.

        Raises AttemptStale if the job has been retried meanwhile, or deleted without the cleaner's
        knowledge (`deleted`).
        """
        with self._database.writing() as connection:
            row = job_row(connection, job_id, lock=True)
            if row.state not in TERMINAL or row.attempt != attempt:
                raise AttemptStale(f"Job {job_id} has been retried.")
            if row.deleted_at is not None and not deleted:
                raise AttemptStale(f"Job {job_id} has been deleted.")
            due = None if again_after is None else clock(connection) + again_after
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(clean_after=due))

    def delete_old(self, seconds: float, *, limit: int = 100) -> int:
        """Delete jobs that ended at least `seconds` ago, and return their number.

        It deletes at most `limit` jobs, those that ended first. A job that another transaction has
        locked, such as the user's retry, is left for the next call.
        """
        with self._database.writing() as connection:
            old = (
                select(jobs.c.id)
                .where(
                    jobs.c.deleted_at.is_(None),
                    jobs.c.finished_at <= clock(connection) - timedelta(seconds=seconds),
                )
                # This is the order of the index; PostgreSQL does not infer that deleted_at is
                # constant.
                .order_by(jobs.c.deleted_at, jobs.c.finished_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            job_ids = connection.execute(old).scalars().all()
            return len(mark_deleted(connection, job_ids)) if job_ids else 0

    def remove(self, job_id: str) -> None:
        """Remove a deleted job and all its rows. Raises ValueError unless it was deleted."""
        with self._database.writing() as connection:
            if job_row(connection, job_id, lock=True).deleted_at is None:
                raise ValueError(f"job {job_id} has not been deleted")
            for table in _OF_ONE_JOB:
                connection.execute(delete(table).where(table.c.job_id == job_id))
            connection.execute(delete(jobs).where(jobs.c.id == job_id))


_OF_ONE_JOB = (
    tables.deliveries,
    tables.steps,
    tables.events,
    tables.artifacts,
    tables.reports,
    tables.job_labels,
    tables.job_datasets,
)
"""The tables whose rows go with their job."""

_LIMITS: dict[JobState, tuple[str, type[UserError]]] = {
    JobState.QUEUED: ("limits.queue_seconds", QueueTimeExceeded),
    JobState.RUNNING: ("limits.run_seconds", RunTimeExceeded),
}
"""The limit that a job in this state has exceeded after its deadline, and the error for it."""


def _note_served(connection: Connection, tenant: str, now: datetime) -> None:
    tenants = tables.tenants
    # If several claims serve a tenant at once, one update is enough; none waits for another.
    free = select(tenants.c.name).where(tenants.c.name == tenant).with_for_update(skip_locked=True)
    connection.execute(
        update(tenants).where(tenants.c.name == free.scalar_subquery()).values(served_at=now)
    )
