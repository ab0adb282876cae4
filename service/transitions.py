"""The writes that the store is made of: the fence, the compare-and-set, the event, the step.

Each works inside a transaction that its caller has begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from service import tables
from service.errors import AttemptStale, JobConflict
from service.jobs import EventType
from service.records import job_row
from service.states import TERMINAL, JobState, Step, may_become


def utc_now() -> datetime:
    return datetime.now(UTC)


def fence(
    connection: Connection, job_id: str, attempt: int, state: JobState = JobState.RUNNING
) -> Row[Any]:
    """The job's row, locked, if it is in `state` with this very attempt.

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
) -> None:
    """Move the job of `row` to `target`, set `values` with it, and append the event.

    Raises JobConflict if the job is no longer as `row` has it, and ValueError for a transition
    that the table of `service.states` does not have.
    """
    if not may_become(JobState(row.state), target):
        raise ValueError(f"no job goes from {row.state} to {target}")
    jobs = tables.jobs
    changed = connection.execute(
        update(jobs)
        .where(jobs.c.id == row.id, jobs.c.state == row.state, jobs.c.attempt == row.attempt)
        .values({"state": target} | _times(target) | values)
    )
    if changed.rowcount != 1:
        raise JobConflict(f"Job {row.id} changed at the same moment.")
    # The attempt concerned: the one just numbered by a claim, or given back by a release.
    attempt = max(row.attempt, values.get("attempt", 0)) or None
    append(connection, row.id, attempt, event, message, data)


def append(
    connection: Connection,
    job_id: str,
    attempt: int | None,
    type: str,  # noqa: A002  (the event's own word)
    message: str,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Append an event to the job's history."""
    row = {
        "job_id": job_id,
        "attempt": attempt,
        "at": utc_now(),
        "type": type,
        "message": message,
        "data": dict(data or {}),
    }
    connection.execute(insert(tables.events).values(row))


def set_progress(
    connection: Connection, job_id: str, attempt: int, step: Step, done: int, total: int, unit: str
) -> None:
    """Insert or update the step's row; events mark its start and its end, once each."""
    now, about = utc_now(), {"step": step, "total": total, "unit": unit}
    key = {"job_id": job_id, "attempt": attempt, "step": step}
    query = select(tables.steps).filter_by(**key)
    # The caller holds the job's row, so nobody else can insert between this and the write.
    known = connection.execute(query).one_or_none()
    finished_at = None if done < total else (known and known.finished_at) or now
    values = {"done": done, "total": total, "unit": unit, "finished_at": finished_at}
    if known is None:
        connection.execute(insert(tables.steps).values(key | values | {"started_at": now}))
        append(connection, job_id, attempt, EventType.STEP_STARTED, f"{step} started", about)
    else:
        connection.execute(update(tables.steps).filter_by(**key).values(values))
    if finished_at == now:
        append(connection, job_id, attempt, EventType.STEP_FINISHED, f"{step} finished", about)


def _times(target: JobState) -> dict[str, datetime | None]:
    if target is JobState.RUNNING:
        return {"started_at": utc_now(), "submitted_at": None}
    if target is JobState.QUEUED:
        return {"started_at": None, "submitted_at": None}
    if target in TERMINAL:
        return {"finished_at": utc_now()}
    return {}
