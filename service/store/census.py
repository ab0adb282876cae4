"""Reads numbers about everybody's jobs, for metrics: no query returns a row for each job."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from service.domain.job import DEFAULT_TENANT, Event
from service.domain.states import JobState
from service.store import rows, tables
from service.store.database import Database, clock

jobs, events = tables.jobs, tables.events


@dataclass(frozen=True)
class Waiting:
    """The queued jobs of the default tenant, or of all others together."""

    jobs: int
    oldest_seconds: float
    """Since the first one could have begun, or begun again; 0 if there is none."""


@dataclass(frozen=True)
class Census:
    """Numbers of one moment."""

    jobs: Mapping[tuple[JobState, str], int]
    """By state and method, without the deleted ones."""
    waiting: Mapping[bool, Waiting]
    """By whether they are the default tenant's."""


class Statistics:
    """The numbers behind the metrics. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def census(self) -> Census:
        """Counts all jobs, in two queries."""
        kept = (
            select(jobs.c.state, jobs.c.method, func.count().label("number"))
            .where(jobs.c.deleted_at.is_(None))
            .group_by(jobs.c.state, jobs.c.method)
        )
        is_default = jobs.c.tenant == DEFAULT_TENANT
        queued = (
            select(
                is_default.label("is_default"),
                func.count().label("number"),
                func.min(func.coalesce(jobs.c.available_at, jobs.c.created_at)).label("oldest"),
            )
            .where(jobs.c.state == JobState.QUEUED)
            .group_by(is_default)
        )
        with self._database.reading() as connection:
            now = clock(connection)
            found = {
                (JobState(row.state), row.method or "unknown"): int(row.number)
                for row in connection.execute(kept)
            }
            waiting = {
                bool(row.is_default): Waiting(int(row.number), _age(row.oldest, now))
                for row in connection.execute(queued)
            }
        return Census(found, waiting)

    def now(self) -> datetime:
        """The time by the database's clock, as events have it."""
        with self._database.reading() as connection:
            return clock(connection)

    def last_event(self) -> int:
        """The largest id of an event; 0 if there is none."""
        with self._database.reading() as connection:
            return int(connection.execute(select(func.max(events.c.id))).scalar() or 0)

    def events_after(self, event_id: int, *, limit: int) -> Sequence[Event]:
        """At most `limit` events with a greater id, of all jobs, in the order of their ids."""
        query = select(events).where(events.c.id > event_id).order_by(events.c.id).limit(limit)
        with self._database.reading() as connection:
            return [rows.event(row) for row in connection.execute(query)]

    def last_of_type(self, job_ids: Collection[str], type: str) -> Mapping[str, Event]:  # noqa: A002
        """The latest event of this type of each of these jobs that has one."""
        latest = (
            select(func.max(events.c.id))
            .where(events.c.job_id.in_(job_ids), events.c.type == type)
            .group_by(events.c.job_id)
        )
        query = select(events).where(events.c.id.in_(latest))
        with self._database.reading() as connection:
            return {row.job_id: rows.event(row) for row in connection.execute(query)}


def _age(start: datetime, now: datetime) -> float:
    return max(0.0, (now - start).total_seconds())
