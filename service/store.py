"""The jobs database: the only truth about what state a job is in.

Every transition is one compare-and-set, ``UPDATE jobs ... WHERE id AND state AND attempt``, in a
transaction that also appends an event; whoever comes second changes nothing and is told so. Every
write by an attempt carries its number and is refused (`AttemptStale`) unless the job is running
with that very attempt. The API, the dispatcher and the drivers share the database.

All methods raise DatabaseUnavailable when the database cannot be used, and those that take a job
id raise JobNotFound when there is no such job.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Select, delete, insert, select, update

from service import records, tables
from service.database import Database
from service.errors import Failure, JobConflict
from service.jobs import Artifact, Event, EventType, Job, new_job_id
from service.policy import Decision, decide
from service.records import job_row, read_job, read_jobs
from service.spec import JobSpec
from service.states import JobState, Step
from service.transitions import append, fence, set_progress, transition, utc_now

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

    # Users: create, read, cancel.

    def create(self, spec: JobSpec) -> Job:
        """Accept a job; it is durable once this returns."""
        job_id = new_job_id()
        row = {
            "id": job_id,
            "state": JobState.QUEUED,
            "spec": spec.model_dump_json(),
            "attempt": 0,
            "created_at": utc_now(),
        }
        with self._database.writing() as connection:
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

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """At most `limit` events with an id above `after`, in the order they happened."""
        events = tables.events
        query = (
            select(events)
            .where(events.c.job_id == job_id, events.c.id > after)
            .order_by(events.c.id)
            .limit(limit)
        )
        with self._database.reading() as connection:
            job_row(connection, job_id)
            return [records.event(row) for row in connection.execute(query)]

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """What the job published; empty until it has succeeded."""
        artifacts = tables.artifacts
        query = select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.position)
        with self._database.reading() as connection:
            job_row(connection, job_id)
            return tuple(records.artifact(row) for row in connection.execute(query))

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

    # The dispatcher.

    def claim(self) -> Job | None:
        """Take the oldest waiting job and number its next attempt; None when none waits."""
        oldest = (
            select(jobs)
            .where(jobs.c.state == JobState.QUEUED)
            .order_by(jobs.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)  # said to PostgreSQL; SQLite has one writer anyway
        )
        with self._database.writing() as connection:
            row = connection.execute(oldest).one_or_none()
            if row is None:
                return None
            attempt = row.attempt + 1
            message = f"Attempt {attempt} is handed to the cluster."
            transition(
                connection, row, JobState.RUNNING, EventType.CLAIMED, message, attempt=attempt
            )
            return read_job(connection, row.id)

    def submitted(self, job_id: str, attempt: int) -> None:
        """Note that the cluster has taken the attempt. Raises AttemptStale."""
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            if row.submitted_at is None:
                connection.execute(
                    update(jobs).where(jobs.c.id == job_id).values(submitted_at=utc_now())
                )
                append(connection, job_id, attempt, EventType.SUBMITTED, "Runs on the cluster.")

    def release(self, job_id: str, attempt: int, reason: str) -> None:
        """Put back a job that the cluster could not take; its attempt's number is used again.

        The number must be: should the submission have reached the cluster after all, then the
        next one is refused as a duplicate instead of running beside it. Raises AttemptStale.
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            steps = tables.steps.c
            connection.execute(
                delete(tables.steps).where(steps.job_id == job_id, steps.attempt == attempt)
            )
            transition(
                connection, row, JobState.QUEUED, EventType.RELEASED, reason, attempt=attempt - 1
            )

    def in_flight(self) -> list[Job]:
        """Jobs with an attempt under way, running or cancelling, oldest first."""
        states = (JobState.RUNNING, JobState.CANCELLING)
        return self._list(select(jobs).where(jobs.c.state.in_(states)).order_by(jobs.c.id))

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

    def uncleaned(self) -> list[Job]:
        """Failed and cancelled jobs that may still have objects in the bucket, oldest first."""
        query = select(jobs).where(
            jobs.c.state.in_((JobState.FAILED, JobState.CANCELLED)),
            jobs.c.attempt > 0,  # a job that never ran wrote nothing
            jobs.c.cleaned_at.is_(None),
        )
        return self._list(query.order_by(jobs.c.id))

    def mark_cleaned(self, job_id: str) -> None:
        """The job's objects have left the bucket. Raises JobConflict unless it has ended badly."""
        with self._database.writing() as connection:
            row = job_row(connection, job_id, lock=True)
            if row.state not in (JobState.FAILED, JobState.CANCELLED):
                raise JobConflict(f"Job {job_id} is {row.state}; its objects must stay.")
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(cleaned_at=utc_now()))

    # An attempt.

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

    def fail(self, job_id: str, attempt: int, failure: Failure, max_attempts: int) -> JobState:
        """End the attempt: the job fails, or waits for another one, as `service.policy` decides.

        Returns the job's new state. Raises AttemptStale.
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            if decide(failure, attempt, max_attempts) is Decision.RETRY:
                target, event, kept = JobState.QUEUED, EventType.RETRIED, None
            else:
                target, event, kept = JobState.FAILED, EventType.FAILED, asdict(failure)
            transition(
                connection, row, target, event, failure.detail, data=asdict(failure), failure=kept
            )
            return target

    def succeed(
        self, job_id: str, attempt: int, artifacts: Sequence[Artifact], report: Mapping[str, Any]
    ) -> None:
        """End the job well, with what it published. Raises AttemptStale."""
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            names = ", ".join(artifact.name for artifact in artifacts)
            transition(
                connection, row, JobState.SUCCEEDED, EventType.SUCCEEDED, f"Published {names}."
            )
            connection.execute(insert(tables.reports).values(job_id=job_id, content=dict(report)))
            for position, artifact in enumerate(artifacts):
                values = asdict(artifact) | {"job_id": job_id, "position": position}
                connection.execute(insert(tables.artifacts).values(values))

    def _list(self, query: Select[Any]) -> list[Job]:
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            return read_jobs(connection, rows)
