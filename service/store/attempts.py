"""An attempt's side of the jobs database. Every write is fenced by the attempt's number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, insert, select, update

from service.domain.job import Artifact, EventType, JobWarning
from service.domain.retry_policy import Fail, Retry, RetryPolicy, decide
from service.domain.states import JobState, Step
from service.errors import (
    ArtifactConflict,
    AttemptStale,
    Failure,
)
from service.printable import printable
from service.store import rows, tables
from service.store.database import Database, clock, insert_if_absent
from service.store.rows import job_row
from service.store.transitions import (
    after,
    append,
    end_failed,
    extend_lease,
    fence,
    note_submitted,
    set_progress,
    transition,
)

jobs = tables.jobs


class Attempts:
    """The writes of a running attempt. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def renew(self, job_id: str, attempt: int, lease_seconds: float) -> None:
        """Renew the lease. Raises AttemptStale.

        An expired lease can be renewed, too, until somebody ends the attempt. A renewal also proves
        that the attempt was submitted, in case the submitter lost Ray's answer. It appends no
        event of its own, so the history does not grow with an attempt's running time.
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            if row.submitted_at is None:
                note_submitted(connection, job_id, attempt, lease_seconds)
            extend_lease(connection, job_id, lease_seconds)

    def progress(
        self, job_id: str, attempt: int, step: Step, done: int, total: int, unit: str
    ) -> None:
        """Record the progress of a step; `done == total` finishes it. Raises AttemptStale."""
        if not 0 <= done <= total:
            raise ValueError(f"{done} of {total} {unit} cannot be done")
        with self._database.writing() as connection:
            fence(connection, job_id, attempt)
            set_progress(connection, job_id, attempt, step, done, total, unit)

    def record(
        self,
        job_id: str,
        attempt: int,
        type: str,  # noqa: A002  (the column's name)
        message: str,
        data: Mapping[str, Any] | None = None,
        *,
        is_warning: bool = False,
    ) -> None:
        """Append an event that the attempt reports. Raises AttemptStale.

        A warning also stands among the job's `warnings` until its next attempt begins.
        """
        with self._database.writing() as connection:
            row = fence(connection, job_id, attempt)
            append(connection, job_id, attempt, type, message, data)
            if is_warning:
                warning = asdict(JobWarning(type, printable(message)))
                mine = update(jobs).where(jobs.c.id == job_id)
                connection.execute(mine.values(warnings=[*(row.warnings or ()), warning]))

    def published(self, job_id: str, attempt: int, position: int, artifact: Artifact) -> None:
        """Record a published artifact of the target at `position`. Raises AttemptStale.

        A repeated call changes nothing. Raises ArtifactConflict if another artifact is recorded.
        """
        artifacts = tables.artifacts
        with self._database.writing() as connection:
            fence(connection, job_id, attempt)
            row = asdict(artifact) | {
                "job_id": job_id,
                "position": position,
                "bytes": sum(file.size for file in artifact.files),
            }
            if insert_if_absent(connection, artifacts, row):
                data = {
                    "name": artifact.name,
                    "prefix": artifact.prefix,
                    "bytes": row["bytes"],
                }
                message = f"{artifact.name} is in the bucket."
                append(connection, job_id, attempt, EventType.PUBLISHED, message, data)
                return
            query = select(artifacts).filter_by(job_id=job_id, position=position)
            known = rows.artifact(connection.execute(query).one())
            if known != artifact:
                raise ArtifactConflict(
                    f"Artifact {position} of {job_id} is already {known.prefix}; "
                    f"{artifact.prefix} cannot replace it."
                )

    def withdraw(self, job_id: str, attempt: int, reason: str) -> None:
        """Withdraw the artifacts that earlier attempts published. Raises AttemptStale.

        An attempt calls this if it publishes all artifacts itself. A repeated call changes nothing.
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
        """End the attempt; the policy decides whether the job fails or waits for another one.

        Returns the job's new state. A repeated call changes nothing. Raises AttemptStale. With
        `only_if_lapsed`, it is also raised while the lease is valid, and the event records when the
        lease expired, as `lease_until`.
        """
        with self._database.writing() as connection:
            row = job_row(connection, job_id, lock=True)
            if row.attempt == attempt and row.state in (JobState.QUEUED, JobState.FAILED):
                return JobState(row.state)
            fence(connection, job_id, attempt)
            lease = row.lease_until
            lapse = {}
            if only_if_lapsed and lease is not None:
                if lease > clock(connection):
                    raise AttemptStale(f"Attempt {attempt} of {job_id} has renewed its lease.")
                lapse = {"lease_until": lease.isoformat()}
            match decide(failure, attempt - row.attempts_before, policy):
                case Retry(after_seconds):
                    transition(
                        connection,
                        row,
                        JobState.QUEUED,
                        EventType.RETRIED,
                        failure.detail,
                        data=asdict(failure) | lapse | {"after_seconds": after_seconds},
                        failure=asdict(failure),
                        available_at=after(clock(connection), after_seconds),
                    )
                    return JobState.QUEUED
                case Fail():
                    end_failed(connection, row, failure, lapse)
                    return JobState.FAILED

    def succeed(self, job_id: str, attempt: int, report: Mapping[str, Any]) -> None:
        """End the job successfully, with the artifacts published so far. Raises AttemptStale.

        A repeated call changes nothing.
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
