"""Converts rows of the jobs database into the plain data of `service.domain.job`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, func, select

from service.domain.job import (
    Artifact,
    Event,
    EventType,
    FileEntry,
    Job,
    JobHead,
    JobWarning,
    StepProgress,
    Submitter,
)
from service.domain.prediction import PREDICTED, Prediction, prediction_of
from service.domain.states import TERMINAL, JobState, Step
from service.errors import Failure, JobNotFound
from service.printable import shortened
from service.store import tables
from service.store.database import clock

QUEUEING = (EventType.QUEUED, EventType.REQUEUED)
"""The events with which a user puts a job into the queue: by submitting it, or by a retry."""

_STEP_ORDER = {step: position for position, step in enumerate(Step)}


def job_row(connection: Connection, job_id: str, *, lock: bool = False) -> Row[Any]:
    """The job's row, locked until the transaction ends if asked. Raises JobNotFound."""
    if "\0" in job_id:  # PostgreSQL refuses NULs in a query
        raise JobNotFound
    query = select(tables.jobs).where(tables.jobs.c.id == job_id)
    # SQLite ignores FOR UPDATE, because its writers lock the whole database.
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise JobNotFound(f"There is no job {shortened(job_id)}.")
    return row


def read_job(connection: Connection, job_id: str) -> Job:
    """The job with the steps of its attempt. Raises JobNotFound."""
    return read_jobs(connection, [job_row(connection, job_id)])[0]


def read_jobs(connection: Connection, rows: Sequence[Row[Any]]) -> list[Job]:
    """The jobs of these rows, each with the steps of its attempt, in one query."""
    steps = _steps(connection, rows)
    now = _clock_for_leases(connection, rows)
    predictions = _predictions(connection, rows)
    return [_job(row, steps.get(row.id, ()), predictions.get(row.id), now) for row in rows]


def _steps(connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, list[StepProgress]]:
    """Those of the attempts of the jobs that have had one."""
    begun = [row.id for row in rows if row.attempt]
    found: dict[str, list[StepProgress]] = {}
    if not begun:
        return found
    jobs, steps = tables.jobs, tables.steps
    current = and_(steps.c.job_id == jobs.c.id, steps.c.attempt == jobs.c.attempt)
    query = select(steps).join(jobs, current).where(jobs.c.id.in_(begun))
    for step in connection.execute(query):
        found.setdefault(step.job_id, []).append(_step(step))
    return found


def _predictions(connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, Prediction | None]:
    """What the attempts of those jobs that run have predicted last."""
    running = [row.id for row in rows if row.state == JobState.RUNNING]
    if not running:
        return {}
    jobs, events = tables.jobs, tables.events
    current = and_(events.c.job_id == jobs.c.id, events.c.attempt == jobs.c.attempt)
    query = (
        select(events.c.job_id, events.c.data)
        .join(jobs, current)
        .where(events.c.job_id.in_(running), events.c.type == PREDICTED)
        .order_by(events.c.id)
    )
    return {each.job_id: prediction_of(each.data) for each in connection.execute(query)}


def read_heads(connection: Connection, rows: Sequence[Row[Any]]) -> list[JobHead]:
    """The dispatchers' view of these rows; it does not parse the specifications."""
    now = _clock_for_leases(connection, rows)
    return [
        JobHead(
            id=row.id,
            tenant=row.tenant,
            state=JobState(row.state),
            attempt=row.attempt,
            submitted_at=row.submitted_at,
            finished_at=row.finished_at,
            failure=None if row.failure is None else Failure(**row.failure),
            lapsed=_lapsed(row, now),
            deleted=row.deleted_at is not None,
        )
        for row in rows
    ]


def _clock_for_leases(connection: Connection, rows: Sequence[Row[Any]]) -> datetime | None:
    return clock(connection) if any(row.lease_until is not None for row in rows) else None


def _lapsed(row: Row[Any], now: datetime | None) -> bool:
    return now is not None and row.lease_until is not None and bool(row.lease_until <= now)


def queued_at(connection: Connection, job_id: str) -> datetime:
    """When the job's user last put it into the queue."""
    events = tables.events
    query = select(func.max(events.c.at)).where(
        events.c.job_id == job_id, events.c.type.in_(QUEUEING)
    )
    at: datetime = connection.execute(query).scalar_one()
    return at


def event(row: Row[Any]) -> Event:
    return Event(row.id, row.job_id, row.attempt, row.at, row.type, row.message, row.data)


def artifact(row: Row[Any]) -> Artifact:
    return Artifact(row.name, row.prefix, tuple(FileEntry(**file) for file in row.files))


def _step(row: Row[Any]) -> StepProgress:
    return StepProgress(
        Step(row.step), row.done, row.total, row.unit, row.started_at, row.finished_at
    )


def _job(
    row: Row[Any],
    steps: Iterable[StepProgress],
    prediction: Prediction | None,
    now: datetime | None,
) -> Job:
    state = JobState(row.state)
    failure = None if row.failure is None else Failure(**row.failure)
    return Job(
        id=row.id,
        name=row.name,
        state=state,
        stored_spec=row.spec,
        attempt=row.attempt,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        submitted_at=row.submitted_at,
        failure=failure if state is JobState.FAILED else None,
        last_failure=None if state in TERMINAL else failure,
        steps=tuple(sorted(steps, key=lambda progress: _STEP_ORDER[progress.step])),
        tenant=row.tenant,
        submitted_by=None if row.key_id is None else Submitter(row.key_id, row.key_name),
        attempts_before=row.attempts_before,
        available_at=row.available_at,
        lease_until=row.lease_until,
        lapsed=_lapsed(row, now),
        warnings=tuple(JobWarning(**warning) for warning in row.warnings or ()),
        prediction=prediction,
        read_at=now if row.lease_until is not None else None,
    )
