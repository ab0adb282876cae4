"""Chooses the next waiting job: fairly between tenants, by priority and age within one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select

from service.domain.states import IN_FLIGHT, JobState
from service.store import tables
from service.store.database import clock

jobs = tables.jobs


def next_waiting(
    connection: Connection, max_running: int | None, max_running_per_tenant: int | None
) -> Row[Any] | None:
    """Lock and return the row of the next job; None if no job waits or a limit is reached.

    Rows that another transaction has locked are skipped.
    """
    running = _in_flight(connection)
    if max_running is not None and sum(running.values()) >= max_running:
        return None
    now = clock(connection)
    for tenant, own_limit in _waiting_tenants(connection, now, running):
        limit = max_running_per_tenant if own_limit is None else own_limit
        if limit is None or running.get(tenant, 0) < limit:
            query = (
                select(jobs)
                .where(_may_run(now), jobs.c.tenant == tenant)
                .order_by(jobs.c.rank, jobs.c.id)
                .limit(1)
                .with_for_update(skip_locked=True)  # SQLite has one writer anyway
            )
            if (row := connection.execute(query).one_or_none()) is not None:
                return row
    return None


def _in_flight(connection: Connection) -> dict[str, int]:
    """How many jobs of each tenant have an attempt under way."""
    query = (
        select(jobs.c.tenant, func.count().label("running"))
        .where(jobs.c.state.in_(IN_FLIGHT))
        .group_by(jobs.c.tenant)
    )
    return {row.tenant: row.running for row in connection.execute(query)}


def _waiting_tenants(
    connection: Connection, now: datetime, running: dict[str, int]
) -> list[tuple[str, int | None]]:
    """The tenants with a job to run, and their own limits of running jobs.

    The one with the fewest jobs in flight comes first, then the one served longest ago.
    """
    tenants = tables.tenants
    first_job = (
        select(jobs.c.id)
        .where(_may_run(now), jobs.c.tenant == tenants.c.name)
        .order_by(jobs.c.rank, jobs.c.id)
        .limit(1)
        .scalar_subquery()
    )
    # With EXISTS, PostgreSQL may read every waiting job.
    query = select(tenants.c.name, tenants.c.max_running_jobs).where(first_job.is_not(None))
    waiting = connection.execute(query.order_by(tenants.c.served_at, tenants.c.name))
    found = [(row.name, row.max_running_jobs) for row in waiting]
    return sorted(found, key=lambda tenant: running.get(tenant[0], 0))


def _may_run(now: datetime) -> ColumnElement[bool]:
    return and_(
        jobs.c.state == JobState.QUEUED,
        or_(jobs.c.available_at.is_(None), jobs.c.available_at <= now),
    )
