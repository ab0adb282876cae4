"""Reads what is new in many jobs at once, for those who follow them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import BigInteger, String, column, func, select, values

from service.domain.job import Event
from service.domain.states import JobState
from service.store import rows, tables
from service.store.database import Database


@dataclass(frozen=True)
class NewEvents:
    """The events of one look at the database, and the states of the jobs at the same moment."""

    events: Sequence[Event]
    """In the order of their ids."""
    states: Mapping[str, JobState]
    """Those of the jobs that have not been deleted."""
    complete: bool
    """Whether there were no more."""


class Progress(NamedTuple):
    """A job's state and how far it has come; both differ after whatever its list shows."""

    state: JobState
    attempt: int
    done: int
    """Units of the attempt's steps, and these steps' beginnings and ends."""


@dataclass(frozen=True)
class Standing:
    """How jobs stand at one moment, by their ids; without those that have been deleted."""

    progress: Mapping[str, Progress]
    newest: Mapping[str, str]
    """Of each tenant, the id of its newest job, also of one that has been deleted since."""


class News:
    """The events of everybody's jobs. Threads may share it.

    The events of one job commit in the order of their ids: whoever appends one has locked the job's
    row. Those of different jobs do not, so a reader needs a cursor for each job.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def after(self, cursors: Mapping[str, int], *, limit: int = 1000) -> NewEvents:
        """At most `limit` events of these jobs, each job's above the id that is its cursor."""
        jobs, events = tables.jobs, tables.events
        followed = (
            values(column("job_id", String), column("after", BigInteger), name="given")
            .data(list(cursors.items()))
            .cte("followed")
        )
        new = (
            select(events)
            .join(
                followed,
                (events.c.job_id == followed.c.job_id) & (events.c.id > followed.c.after),
            )
            .order_by(events.c.id)
            .limit(limit)
        )
        kept = select(jobs.c.id, jobs.c.state).where(
            jobs.c.id.in_(list(cursors)), jobs.c.deleted_at.is_(None)
        )
        with self._database.reading() as connection:  # one snapshot for both
            found = [rows.event(row) for row in connection.execute(new)]
            states = {row.id: JobState(row.state) for row in connection.execute(kept)}
        return NewEvents(found, states, complete=len(found) < limit)

    def standing(self, job_ids: Collection[str], tenants: Collection[str]) -> Standing:
        """How these jobs stand, and the newest jobs of these tenants."""
        jobs, steps = tables.jobs, tables.steps
        done = func.coalesce(func.sum(steps.c.done), 0)
        moments = func.count(steps.c.step) + func.count(steps.c.finished_at)
        current = (steps.c.job_id == jobs.c.id) & (steps.c.attempt == jobs.c.attempt)
        stand = (
            select(jobs.c.id, jobs.c.state, jobs.c.attempt, (done + moments).label("done"))
            .join(steps, current, isouter=True)
            .where(jobs.c.id.in_(job_ids), jobs.c.deleted_at.is_(None))
            .group_by(jobs.c.id, jobs.c.state, jobs.c.attempt)
        )
        given = values(column("name", String), name="given").data([(each,) for each in tenants])
        asked = given.cte("asked")
        latest = select(func.max(jobs.c.id)).where(jobs.c.tenant == asked.c.name)
        newest = select(asked.c.name, latest.scalar_subquery().label("id"))
        with self._database.reading() as connection:
            progress = {
                row.id: Progress(JobState(row.state), row.attempt, int(row.done))
                for row in connection.execute(stand)
            }
            ids = {row.name: row.id for row in connection.execute(newest) if row.id}
        return Standing(progress, ids)
