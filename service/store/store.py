"""The jobs database: the only truth about what state a job is in.

Every transition is one compare-and-set, ``UPDATE jobs ... WHERE id AND state AND attempt``, in a
transaction that also appends an event; whoever comes second changes nothing and is told so. Every
write by an attempt carries its number and is refused (`AttemptStale`) unless the job is running
with that very attempt. An attempt shows that it lives by renewing its lease;
all times are those of the database. The API, the dispatchers and the drivers share it.

All methods raise DatabaseUnavailable when the database cannot be used, and those that take a job
id raise JobNotFound when there is no such job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, insert, select, update

from service.domain.job import DEFAULT_TENANT, Artifact, Event, EventType, Job, new_job_id
from service.domain.retry_policy import Fail, Retry, RetryPolicy, decide
from service.domain.spec import JobSpec
from service.domain.states import IN_FLIGHT, TERMINAL, JobState, Step
from service.errors import (
    ArtifactConflict,
    AttemptStale,
    Failure,
    IdempotencyKeyReused,
    JobConflict,
    QueueTimeExceeded,
    RunTimeExceeded,
    UserError,
)
from service.store import rows, tables
from service.store.database import Database, clock, hold, insert_if_absent
from service.store.queue import next_waiting
from service.store.rows import job_row, queued_at, read_job, read_jobs
from service.store.transitions import append, fence, set_progress, transition

CLAIM_SECONDS = 30.0
"""What a dispatcher has to submit an attempt that it has claimed."""

START_SECONDS = 300.0
"""What a driver has from its submission to its first sign of life, if nothing else is said."""

jobs = tables.jobs


class Store:
    """The jobs of one installation. Threads may share it."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    def migrate(self) -> None:
        """Create the database, or bring its schema up to date."""
        self._database.migrate()

    def check(self) -> None:
        """Raise DatabaseUnavailable unless the database answers and has its tables."""
        with self._database.reading() as connection:
            connection.execute(select(jobs.c.id).limit(1)).all()

    def close(self) -> None:
        self._database.close()

    # Users: create, read, cancel, retry.

    def create(self, spec: JobSpec, *, tenant: str = DEFAULT_TENANT) -> Job:
        """Accept a job; it is durable once this returns."""
        with self._database.writing() as connection:
            return self._create(connection, spec, tenant)

    def create_once(
        self, spec: JobSpec, key: str, *, tenant: str = DEFAULT_TENANT
    ) -> tuple[Job, bool]:
        """The job that the tenant's `key` stands for, and whether this call made it.

        Raises IdempotencyKeyReused if the key stands for a job of another specification.
        """
        with self._database.writing() as connection:
            job_id = new_job_id()
            row = {
                "tenant": tenant,
                "key": key,
                "body_sha256": _body_sha256(spec),
                "job_id": job_id,
                "created_at": clock(connection),
            }
            if insert_if_absent(connection, tables.idempotency_keys, row):
                return self._create(connection, spec, tenant, job_id), True
            known = connection.execute(_of_key(key, tenant)).one()
            return _same_job(connection, known, spec), False

    def find_once(self, spec: JobSpec, key: str, *, tenant: str = DEFAULT_TENANT) -> Job | None:
        """The job that the tenant's `key` stands for already, if it does.

        Raises IdempotencyKeyReused as `create_once` does.
        """
        with self._database.reading() as connection:
            known = connection.execute(_of_key(key, tenant)).one_or_none()
            return None if known is None else _same_job(connection, known, spec)

    def _create(
        self, connection: Connection, spec: JobSpec, tenant: str, job_id: str | None = None
    ) -> Job:
        now, job_id = clock(connection), job_id or new_job_id()
        row = {
            "id": job_id,
            "state": JobState.QUEUED,
            "spec": spec.model_dump_json(),
            "attempt": 0,
            "created_at": now,
            "tenant": tenant,
            "rank": -spec.priority,
            "deadline": _after(now, spec.limits.queue_seconds),
        }
        insert_if_absent(connection, tables.tenants, {"name": tenant, "served_at": now})
        connection.execute(insert(jobs).values(row))
        append(connection, job_id, None, EventType.QUEUED, "Waits for a dispatcher.")
        return read_job(connection, job_id)

    def get(self, job_id: str) -> Job:
        with self._database.reading() as connection:
            return read_job(connection, job_id)

    def list_jobs(
        self, *, limit: int, before: str | None = None, states: Collection[JobState] = ()
    ) -> list[Job]:
        """At most `limit` jobs, newest first, older than the job `before`, in any of `states`."""
        query = select(jobs).order_by(jobs.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(jobs.c.id < before)
        if states:
            query = query.where(jobs.c.state.in_(states))
        return self._list(query)

    def events(
        self, job_id: str, *, after: int = 0, limit: int = 1000, heartbeats: bool = False
    ) -> list[Event]:
        """At most `limit` events with an id above `after`, in the order they happened.

        The renewals of leases are left out unless `heartbeats` are asked for.
        """
        events = tables.events
        query = (
            select(events)
            .where(events.c.job_id == job_id, events.c.id > after)
            .order_by(events.c.id)
            .limit(limit)
        )
        if not heartbeats:
            query = query.where(events.c.type != EventType.RENEWED)
        with self._database.reading() as connection:
            job_row(connection, job_id)
            return [rows.event(row) for row in connection.execute(query)]

    def last_event(self, job_id: str, type: str) -> Event | None:  # noqa: A002
        """The latest event of this type; None where there is none."""
        events = tables.events
        query = (
            select(events)
            .where(events.c.job_id == job_id, events.c.type == type)
            .order_by(events.c.id.desc())
            .limit(1)
        )
        with self._database.reading() as connection:
            job_row(connection, job_id)
            row = connection.execute(query).one_or_none()
            return None if row is None else rows.event(row)

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """What the job has published so far; it counts once the job has succeeded."""
        artifacts = tables.artifacts
        query = select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.position)
        with self._database.reading() as connection:
            job_row(connection, job_id)
            return tuple(rows.artifact(row) for row in connection.execute(query))

    def report(self, job_id: str) -> dict[str, Any] | None:
        """The job's report.json; None until it has succeeded."""
        query = select(tables.reports.c.content).where(tables.reports.c.job_id == job_id)
        with self._database.reading() as connection:
            job_row(connection, job_id)
            return connection.execute(query).scalar_one_or_none()

    def cancel(self, job_id: str) -> Job:
        """End a waiting job, or ask for a running one to be stopped; again is no different.

        Raises JobConflict when the job has succeeded or failed.
        """
        with self._database.writing() as connection:
            row = job_row(connection, job_id, lock=True)
            match JobState(row.state):
                case JobState.QUEUED:
                    cancelled = "Cancelled before it ran."
                    transition(connection, row, JobState.CANCELLED, EventType.CANCELLED, cancelled)
                case JobState.RUNNING:
                    asked = "Cancellation asked for; the attempt is being stopped."
                    transition(connection, row, JobState.CANCELLING, EventType.CANCELLING, asked)
                case JobState.SUCCEEDED | JobState.FAILED as ended:
                    raise JobConflict(f"Job {job_id} has already {ended}; it cannot be cancelled.")
            return read_job(connection, job_id)

    def retry(self, job_id: str) -> Job:
        """Queue a failed job again, as its user wishes, with as many attempts as a new one.

        What its attempts have left to resume from is used; again is no different. Raises
        JobConflict unless it has failed.
        """
        with self._database.writing() as connection:
            row = job_row(connection, job_id, lock=True)
            again = row.attempt == row.attempts_before and row.failure is not None
            if row.state == JobState.QUEUED and again:
                return read_job(connection, job_id)
            if row.state != JobState.FAILED:
                raise JobConflict(f"Job {job_id} is {row.state}; only a failed one can be retried.")
            limits = rows.specification(row).limits
            transition(
                connection,
                row,
                JobState.QUEUED,
                EventType.REQUEUED,
                "To be tried again, as its user asks.",
                finished_at=None,
                clean_after=None,
                available_at=None,
                attempts_before=row.attempt,
                ran_seconds=0.0,
                deadline=_after(clock(connection), limits.queue_seconds),
            )
            return read_job(connection, job_id)

    # The dispatchers.

    def claim(
        self,
        *,
        owner: str = "",
        lease_seconds: float = CLAIM_SECONDS,
        max_running: int | None = None,
        max_running_per_tenant: int | None = None,
    ) -> Job | None:
        """Take a waiting job and number its next attempt; None when none may run now.

        Of the tenants that have a job to run, the one with the fewest in flight is served, and of
        those the one not served for longest; of its jobs the one with the highest priority, and of
        those the oldest. `owner` has to submit the attempt within the lease. Where limits are
        given they hold across all dispatchers, of which one claims at a time: another one is told
        None.
        """
        limited = max_running is not None or max_running_per_tenant is not None
        with self._database.writing() as connection:
            if limited and not hold(connection, "claim"):
                return None
            row = next_waiting(connection, max_running, max_running_per_tenant)
            if row is None:
                return None
            now, attempt = clock(connection), row.attempt + 1
            left = rows.specification(row).limits.run_seconds
            _note_served(connection, row.tenant, now)
            claimed = transition(
                connection,
                row,
                JobState.RUNNING,
                EventType.CLAIMED,
                f"Attempt {attempt} is handed to the cluster.",
                data={"owner": owner, "lease_seconds": lease_seconds},
                attempt=attempt,
                lease_until=_after(now, lease_seconds),
                deadline=None if left is None else _after(now, left - row.ran_seconds),
            )
            return read_jobs(connection, [claimed])[0]

    def take_over(self, job_id: str, attempt: int, owner: str, lease_seconds: float) -> None:
        """Become the one who has to submit an attempt, once who claimed it has been too slow.

        Raises AttemptStale if it was submitted, is not due, or another dispatcher was quicker.
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            now = clock(connection)
            if row.submitted_at is not None or row.lease_until is None or row.lease_until > now:
                raise AttemptStale(f"Attempt {attempt} of {job_id} is another dispatcher's.")
            self._extend(connection, job_id, attempt, lease_seconds, EventType.TAKEN_OVER, owner)

    def submitted(self, job_id: str, attempt: int, lease_seconds: float = START_SECONDS) -> None:
        """Note that the cluster has taken the attempt, which is to be heard within the lease.

        Raises AttemptStale.
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            if row.submitted_at is None:
                self._note_submitted(connection, job_id, attempt, lease_seconds)

    def _note_submitted(
        self, connection: Connection, job_id: str, attempt: int, lease_seconds: float
    ) -> None:
        now = clock(connection)
        values = {"submitted_at": now, "lease_until": _after(now, lease_seconds)}
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
        append(connection, job_id, attempt, EventType.SUBMITTED, "Runs on the cluster.")

    def release(self, job_id: str, attempt: int, reason: str) -> None:
        """Put back a job that the cluster could not take; its attempt's number is used again.

        The number must be: should the submission have reached the cluster after all, then the
        next one is refused as a duplicate instead of running beside it. Raises AttemptStale, also
        if the attempt has been submitted (by a dispatcher that took it over).
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            if row.submitted_at is not None:
                raise AttemptStale(f"Attempt {attempt} of {job_id} runs: another submitted it.")
            steps = tables.steps.c
            connection.execute(
                delete(tables.steps).where(steps.job_id == job_id, steps.attempt == attempt)
            )
            limits = rows.specification(row).limits
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
                    _after(queued_at(connection, job_id), limits.queue_seconds)
                    if never_ran
                    else None
                ),
            )

    def in_flight(self) -> list[Job]:
        """Jobs with an attempt under way, running or cancelling, oldest first."""
        return self._list(select(jobs).where(jobs.c.state.in_(IN_FLIGHT)).order_by(jobs.c.id))

    def end_overdue(self, *, limit: int = 100) -> list[Job]:
        """Fail jobs that have waited, or run, for longer than their limits allow; how many at most.

        A job that somebody else is writing to is left for the next time.
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
                _end_failed(connection, row, failure)
                ended.append(read_job(connection, row.id))
        return ended

    def end_cancelled(self, job_id: str, attempt: int) -> None:
        """The attempt has stopped as its user wished. Raises AttemptStale."""
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt, JobState.CANCELLING)
            transition(
                connection,
                row,
                JobState.CANCELLED,
                EventType.CANCELLED,
                "Stopped, as asked.",
            )

    def to_clean(self, *, grace_seconds: float = 0, limit: int = 100) -> list[Job]:
        """Ended jobs whose objects in the bucket are to be looked through, those due longest first.

        None before `grace_seconds` after it was due: an attempt's actors end after their job does.
        """
        with self._database.reading() as connection:
            due = clock(connection) - timedelta(seconds=grace_seconds)
            query = (
                select(jobs)
                .where(jobs.c.state.in_(TERMINAL), jobs.c.clean_after <= due)
                .order_by(jobs.c.clean_after)
                .limit(limit)
            )
            return read_jobs(connection, connection.execute(query).all())

    def cleaned(self, job_id: str, attempt: int, again_after: timedelta | None = None) -> None:
        """The bucket has been cleaned after the job; look again later, or never.

        Raises AttemptStale if the job has been taken up again meanwhile.
        """
        with self._database.writing() as connection:
            row = job_row(connection, job_id, lock=True)
            if row.state not in TERMINAL or row.attempt != attempt:
                raise AttemptStale(f"Job {job_id} has been taken up again.")
            due = None if again_after is None else clock(connection) + again_after
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(clean_after=due))

    # An attempt.

    def renew(self, job_id: str, attempt: int, lease_seconds: float) -> None:
        """A sign of life, which lasts for the lease. Raises AttemptStale.

        Also allowed when the lease was over, as long as nobody has ended the attempt for it. It
        says that the attempt was submitted, should whoever did that not have heard the answer.
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            if row.submitted_at is None:
                self._note_submitted(connection, job_id, attempt, lease_seconds)
            self._extend(connection, job_id, attempt, lease_seconds, EventType.RENEWED)

    def _extend(
        self,
        connection: Connection,
        job_id: str,
        attempt: int,
        lease_seconds: float,
        event: EventType,
        owner: str | None = None,
    ) -> None:
        until = _after(clock(connection), lease_seconds)
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(lease_until=until))
        data = {"lease_seconds": lease_seconds} | ({} if owner is None else {"owner": owner})
        append(connection, job_id, attempt, event, f"May be silent until {until}.", data)

    def progress(
        self, job_id: str, attempt: int, step: Step, done: int, total: int, unit: str
    ) -> None:
        """Say how far a step has come; `done == total` finishes it. Raises AttemptStale."""
        if not 0 <= done <= total:
            raise ValueError(f"{done} of {total} {unit} cannot be done")
        with self._database.writing() as connection:
            fence(connection, job_id, attempt)
            set_progress(connection, job_id, attempt, step, done, total, unit)

    def record(
        self,
        job_id: str,
        attempt: int,
        type: str,  # noqa: A002  (the event's own word)
        message: str,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an event of the attempt's own. Raises AttemptStale."""
        with self._database.writing() as connection:
            fence(connection, job_id, attempt)
            append(connection, job_id, attempt, type, message, data)

    def published(self, job_id: str, attempt: int, position: int, artifact: Artifact) -> None:
        """An artifact stands in the bucket; `position` is that of its target. Raises AttemptStale.

        Saying so again changes nothing. Raises ArtifactConflict if another one is known there.
        """
        artifacts = tables.artifacts
        with self._database.writing() as connection:
            fence(connection, job_id, attempt)
            row = asdict(artifact) | {"job_id": job_id, "position": position}
            if insert_if_absent(connection, artifacts, row):
                data = {"name": artifact.name, "prefix": artifact.prefix}
                message = f"{artifact.name} is in the bucket."
                append(connection, job_id, attempt, EventType.PUBLISHED, message, data)
                return
            query = select(artifacts).filter_by(job_id=job_id, position=position)
            known = rows.artifact(connection.execute(query).one())
            if known != artifact:
                raise ArtifactConflict(
                    f"{known.prefix} is already the artifact {position} of {job_id}; "
                    f"{artifact.prefix} cannot be."
                )

    def withdraw(self, job_id: str, attempt: int, reason: str) -> None:
        """What earlier attempts have published counts no more. Raises AttemptStale.

        For an attempt that publishes all artifacts itself. Saying so again changes nothing.
        """
        artifacts = tables.artifacts
        with self._database.writing() as connection:
            fence(connection, job_id, attempt)
            mine = artifacts.c.job_id == job_id
            names = connection.execute(select(artifacts.c.name).where(mine)).scalars().all()
            if names:
                connection.execute(delete(artifacts).where(mine))
                data = {"names": list(names)}
                append(connection, job_id, attempt, EventType.WITHDRAWN, reason, data)

    def fail(
        self,
        job_id: str,
        attempt: int,
        failure: Failure,
        policy: RetryPolicy,
        *,
        only_if_lapsed: bool = False,
    ) -> JobState:
        """End the attempt: the job fails, or waits for another one, as the policy decides.

        Returns the job's new state; failing again an attempt that has ended so changes nothing.
        Raises AttemptStale, also for one whose lease is not over, where that is the condition.
        """
        with self._database.writing() as connection:
            row = job_row(connection, job_id, lock=True)
            if row.attempt == attempt and row.state in (JobState.QUEUED, JobState.FAILED):
                return JobState(row.state)
            fence(connection, job_id, attempt)
            lease = row.lease_until
            if only_if_lapsed and lease is not None and lease > clock(connection):
                raise AttemptStale(f"Attempt {attempt} of {job_id} has been heard of again.")
            match decide(failure, attempt - row.attempts_before, policy):
                case Retry(after_seconds):
                    transition(
                        connection,
                        row,
                        JobState.QUEUED,
                        EventType.RETRIED,
                        failure.detail,
                        data=asdict(failure) | {"after_seconds": after_seconds},
                        failure=asdict(failure),
                        available_at=_after(clock(connection), after_seconds),
                    )
                    return JobState.QUEUED
                case Fail():
                    _end_failed(connection, row, failure)
                    return JobState.FAILED

    def succeed(self, job_id: str, attempt: int, report: Mapping[str, Any]) -> None:
        """End the job well, with what it has published. Raises AttemptStale.

        Saying so again changes nothing.
        """
        with self._database.writing() as connection:
            row = job_row(connection, job_id, lock=True)
            if row.attempt == attempt and row.state == JobState.SUCCEEDED:
                return
            fence(connection, job_id, attempt)
            named = select(tables.artifacts.c.name).where(tables.artifacts.c.job_id == job_id)
            names = connection.execute(named.order_by(tables.artifacts.c.position)).scalars()
            message = f"Published {', '.join(names)}."
            transition(connection, row, JobState.SUCCEEDED, EventType.SUCCEEDED, message)
            connection.execute(insert(tables.reports).values(job_id=job_id, content=dict(report)))

    def _list(self, query: Select[Any]) -> list[Job]:
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            return read_jobs(connection, rows)


_LIMITS: dict[JobState, tuple[str, type[UserError]]] = {
    JobState.QUEUED: ("limits.queue_seconds", QueueTimeExceeded),
    JobState.RUNNING: ("limits.run_seconds", RunTimeExceeded),
}
"""What a job in such a state has exceeded once its deadline is over."""


def _end_failed(connection: Connection, row: Row[Any], failure: Failure) -> None:
    kept = asdict(failure)
    transition(
        connection,
        row,
        JobState.FAILED,
        EventType.FAILED,
        failure.detail,
        data=kept,
        failure=kept,
    )


def _note_served(connection: Connection, tenant: str, now: datetime) -> None:
    tenants = tables.tenants
    # Of several claims for a tenant at once one is enough, and none waits for the others.
    free = select(tenants.c.name).where(tenants.c.name == tenant).with_for_update(skip_locked=True)
    connection.execute(
        update(tenants).where(tenants.c.name == free.scalar_subquery()).values(served_at=now)
    )


def _body_sha256(spec: JobSpec) -> str:
    # Without the defaults, so that a version that knows more fields finds the same.
    return hashlib.sha256(spec.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def _of_key(key: str, tenant: str) -> Select[Any]:
    return select(tables.idempotency_keys).filter_by(tenant=tenant, key=key)


def _same_job(connection: Connection, known: Row[Any], spec: JobSpec) -> Job:
    if known.body_sha256 != _body_sha256(spec):
        raise IdempotencyKeyReused(param="Idempotency-Key")
    return read_job(connection, known.job_id)


def _after(start: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else start + timedelta(seconds=seconds)
