"""The writes that make up the store: the fence, the compare-and-set, the event, the step.

Each runs inside a transaction of its caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from service.domain.job import EventType
from service.domain.states import IN_FLIGHT, TERMINAL, JobState, Step, may_become
from service.errors import AttemptStale, Failure, JobConflict
from service.store import tables
from service.store.database import clock, clock_value
from service.store.outbox import enqueue
from service.store.rows import job_row


def fence(
    connection: Connection, job_id: str, attempt: int, state: JobState = JobState.RUNNING
) -> Row[Any]:
    """Lock and return the job's row if the job is in `state` with this attempt.

    Raises AttemptStale if it is not, and JobNotFound.
    """
    row = job_row(connection, job_id, lock=True)
    if row.state != state or row.attempt != attempt:
        raise AttemptStale(
            f"Attempt {attempt} of {job_id} may not write: "
            f"the job is {row.state}, its attempt {row.attempt}."
        )
    return row


def transition(
    connection: Connection,
    row: Row[Any],
    target: JobState,
    event: EventType,
    message: str,
    *,
    data: Mapping[str, Any] | None = None,
    **values: Any,
) -> Row[Any]:
    """Move the job of `row` to `target`, set `values` and append the event; return its new row.

    Also sets the columns that follow from the new state, such as times and the lease, and deletes
    the artifacts of a job that fails or is cancelled. Raises JobConflict if the job has changed
    since `row` was read, and ValueError for a transition that `service.domain.states` lacks.
    """
    if not may_become(JobState(row.state), target):
        raise ValueError(f"no job goes from {row.state} to {target}")
    jobs = tables.jobs
    implied = _implied(row, target, clock(connection))
    changed = connection.execute(
        update(jobs)
        .where(jobs.c.id == row.id, jobs.c.state == row.state, jobs.c.attempt == row.attempt)
        .values({"state": target} | implied | values)
        .returning(jobs)
    ).one_or_none()
    if changed is None:
        raise JobConflict(f"Job {row.id} was changed by another process at the same moment.")
    if target in TERMINAL and target is not JobState.SUCCEEDED:
        connection.execute(delete(tables.artifacts).where(tables.artifacts.c.job_id == row.id))
    # A claim has just numbered this attempt; a release takes its number back.
    attempt = max(row.attempt, values.get("attempt", 0)) or None
    append(connection, row.id, attempt, event, message, data)
    return changed


def append(
    connection: Connection,
    job_id: str,
    attempt: int | None,
    type: str,  # noqa: A002  (the column's name)
    message: str,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Append an event to the job's history, and queue it for the tenant's webhooks."""
    row = {
        "job_id": job_id,
        "attempt": attempt,
        "at": clock_value(connection),
        "type": type,
        "message": message,
        "data": dict(data or {}),
    }
    connection.execute(insert(tables.events).values(row))
    enqueue(connection, job_id, type)


def set_progress(
    connection: Connection, job_id: str, attempt: int, step: Step, done: int, total: int, unit: str
) -> None:
    """Insert or update the step's row; events mark its start and its end, once each."""
    now = clock(connection)
    about: dict[str, Any] = {"step": step, "total": total, "unit": unit}
    key = {"job_id": job_id, "attempt": attempt, "step": step}
    query = select(tables.steps).filter_by(**key)
    # The caller has locked the job's row, so no other transaction can insert in between.
    known = connection.execute(query).one_or_none()
    finished_at = None if done < total else (known and known.finished_at) or now
    values = {"done": done, "total": total, "unit": unit, "finished_at": finished_at}
    if known is None:
        connection.execute(insert(tables.steps).values(key | values | {"started_at": now}))
        append(connection, job_id, attempt, EventType.STEP_STARTED, f"{step} started", about)
    else:
        connection.execute(update(tables.steps).filter_by(**key).values(values))
    if finished_at == now:
        started_at = now if known is None else known.started_at
        about["seconds"] = (now - started_at).total_seconds()
        append(connection, job_id, attempt, EventType.STEP_FINISHED, f"{step} finished", about)


def note_submitted(connection: Connection, job_id: str, attempt: int, lease_seconds: float) -> None:
    """Record that the cluster accepted it; the first heartbeat is due within the lease."""
    now = clock(connection)
    values = {"submitted_at": now, "lease_until": after(now, lease_seconds)}
    connection.execute(update(tables.jobs).where(tables.jobs.c.id == job_id).values(values))
    append(connection, job_id, attempt, EventType.SUBMITTED, "The cluster accepted the attempt.")


def extend_lease(connection: Connection, job_id: str, lease_seconds: float) -> datetime:
    """Extend the lease of the job's attempt; return the time when it expires."""
    until = clock(connection) + timedelta(seconds=lease_seconds)
    connection.execute(
        update(tables.jobs).where(tables.jobs.c.id == job_id).values(lease_until=until)
    )
    return until


def end_failed(
    connection: Connection,
    row: Row[Any],
    failure: Failure,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Fail the job of `row`; the event records the failure and `data`."""
    recorded = asdict(failure)
    transition(
        connection,
        row,
        JobState.FAILED,
        EventType.FAILED,
        failure.detail,
        data=recorded | dict(data or {}),
        failure=recorded,
    )


def mark_deleted(connection: Connection, job_ids: Sequence[str]) -> Sequence[str]:
    """Hide these jobs from users, free their keys, and make them due for cleanup.

    Skips jobs that have not ended; returns the others.
    """
    jobs, keys = tables.jobs, tables.idempotency_keys
    # With a condition on deleted_at, SQLite would use its index and read every job.
    deleted = (
        connection.execute(
            update(jobs)
            .where(jobs.c.id.in_(job_ids), jobs.c.state.in_(TERMINAL))
            .values(deleted_at=clock(connection), clean_after=jobs.c.finished_at)
            .returning(jobs.c.id)
        )
        .scalars()
        .all()
    )
    connection.execute(delete(keys).where(keys.c.job_id.in_(deleted)))
    return deleted


def after(start: datetime, seconds: float | None) -> datetime | None:
    """The time `seconds` after `start`; None if there is no limit."""
    return None if seconds is None else start + timedelta(seconds=seconds)


def _implied(row: Row[Any], target: JobState, now: datetime) -> dict[str, Any]:
    """The values of a job's columns that follow from its new state."""
    if target is JobState.RUNNING:
        return {"started_at": now, "submitted_at": None, "available_at": None, "warnings": None}
    if target is JobState.CANCELLING:
        return {}
    ended: dict[str, Any] = {"lease_until": None, "deadline": None}
    if row.state in IN_FLIGHT:
        ended["ran_seconds"] = row.ran_seconds + (now - row.started_at).total_seconds()
    if target is JobState.QUEUED:
        return ended | {"started_at": None, "submitted_at": None}
    # A job that never ran wrote nothing.
    return ended | {"finished_at": now, "clean_after": now if row.attempt else None}
