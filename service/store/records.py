"""Reads the jobs database: jobs with their events, artifacts and reports."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select

from service.domain.job import Artifact, Event, Job
from service.domain.states import JobState
from service.errors import JobNotFound
from service.printable import shortened
from service.store import rows, tables
from service.store.database import Database
from service.store.listing import ALL, JobFilter, page
from service.store.rows import QUEUEING, job_row, read_jobs

jobs = tables.jobs


class Records:
    """The jobs that have not been deleted. Threads may share it.

    With a tenant they are this tenant's: a job of another one does not exist. Without one they are
    everyone's, for dispatchers and drivers.
    """

    def __init__(self, database: Database, tenant: str | None = None) -> None:
        self._database = database
        self._tenant = tenant

    def get(self, job_id: str) -> Job:
        with self._database.reading() as connection:
            return read_jobs(connection, [self._visible(connection, job_id)])[0]

    def list_jobs(
        self, wanted: JobFilter = ALL, *, limit: int, before: str | None = None
    ) -> list[Job]:
        """At most `limit` of the `wanted` jobs, newest first, older than the job `before`."""
        query = page(self._tenant, wanted, before=before, limit=limit)
        with self._database.reading() as connection:
            return read_jobs(connection, connection.execute(query).all())

    def count(self, states: Collection[JobState]) -> int:
        """How many jobs are in one of these states."""
        query = select(func.count()).select_from(jobs)
        query = query.where(self._all_visible(), jobs.c.state.in_(states))
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

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
            self._visible(connection, job_id)
            return [rows.event(row) for row in connection.execute(query)]

    def recent_events(
        self, job_id: str, *, before: int | None = None, limit: int = 1000
    ) -> list[Event]:
        """At most `limit` events with an id below `before`, the latest first."""
        events = tables.events
        query = select(events).where(events.c.job_id == job_id)
        if before is not None:
            query = query.where(events.c.id < before)
        query = query.order_by(events.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            self._visible(connection, job_id)
            return [rows.event(row) for row in connection.execute(query)]

    def last_event(self, job_id: str, type: str) -> Event | None:  # noqa: A002
        """The latest event of this type; None if there is none."""
        events = tables.events
        query = (
            select(events)
            .where(events.c.job_id == job_id, events.c.type == type)
            .order_by(events.c.id.desc())
            .limit(1)
        )
        with self._database.reading() as connection:
            self._visible(connection, job_id)
            row = connection.execute(query).one_or_none()
            return None if row is None else rows.event(row)

    def origin(self, job_id: str) -> Mapping[str, Any]:
        """The request that last put the job into the queue: see `service.tracing.origin`."""
        events = tables.events
        query = (
            select(events.c.data)
            .where(events.c.job_id == job_id, events.c.type.in_(QUEUEING))
            .order_by(events.c.id.desc())
            .limit(1)
        )
        with self._database.reading() as connection:
            data: Mapping[str, Any] = connection.execute(query).scalar_one_or_none() or {}
            return data

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """The artifacts published so far; they are final once the job has succeeded."""
        artifacts = tables.artifacts
        query = select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.position)
        with self._database.reading() as connection:
            self._visible(connection, job_id)
            return tuple(rows.artifact(row) for row in connection.execute(query))

    def report(self, job_id: str) -> dict[str, Any] | None:
        """The job's report.json; None until it has succeeded."""
        query = select(tables.reports.c.content).where(tables.reports.c.job_id == job_id)
        with self._database.reading() as connection:
            self._visible(connection, job_id)
            return connection.execute(query).scalar_one_or_none()

    def _visible(self, connection: Connection, job_id: str, *, lock: bool = False) -> Row[Any]:
        """The job's row, as from `job_row`. Raises JobNotFound also for a deleted job, and for
        another tenant's.
        """
        row = job_row(connection, job_id, lock=lock)
        if row.deleted_at is not None or self._tenant not in (None, row.tenant):
            raise JobNotFound(f"There is no job {shortened(job_id)}.")
        return row

    def _all_visible(self) -> ColumnElement[bool]:
        """The condition on a row of `jobs` under which `_visible` finds it."""
        kept = jobs.c.deleted_at.is_(None)
        return kept if self._tenant is None else kept & (jobs.c.tenant == self._tenant)
