"""Finds a tenant's jobs by state, method, name, labels and time, newest first.

The ids of a page are found in indexes: the jobs that a filter leaves out cost an entry each, and
their specifications are not read. A filter by a label follows the label's own index.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, exists, insert, select

from service.domain.states import JobState
from service.store import tables

jobs, labels = tables.jobs, tables.job_labels


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list: all conditions must hold; one that is empty always does."""

    states: Collection[JobState] = ()
    """Any of these."""
    methods: Collection[str] = ()
    """Any of these."""
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    """At this time or later."""
    created_before: datetime | None = None


ALL = JobFilter()


def page(
    tenant: str | None, wanted: JobFilter, *, before: str | None, limit: int
) -> Select[tuple[Any, ...]]:
    """The query for at most `limit` of these jobs older than the job `before`, newest first.

    Deleted jobs are left out. Without a tenant it finds everybody's jobs.
    """
    query = select(jobs).where(jobs.c.deleted_at.is_(None), *_conditions(wanted))
    if tenant is not None:
        query = query.where(jobs.c.tenant == tenant)
    order = jobs.c.id
    for number, (name, value) in enumerate(wanted.labels.items()):
        each = labels.alias(f"label_{number}")
        mine = [each.c.job_id == jobs.c.id, each.c.name == name, each.c.value == value]
        if number:
            query = query.where(exists().where(*mine))
        else:  # the index of this one is in the order of the page
            query = query.join(each, each.c.job_id == jobs.c.id).where(*mine[1:])
            query = query.where(each.c.tenant == tenant) if tenant is not None else query
            order = each.c.job_id
    if before is not None:
        query = query.where(order < before)
    return query.order_by(order.desc()).limit(limit)


def _conditions(wanted: JobFilter) -> Iterable[ColumnElement[bool]]:
    if wanted.states:
        yield jobs.c.state.in_(wanted.states)
    if wanted.methods:
        yield jobs.c.method.in_(wanted.methods)
    if wanted.name is not None:
        yield jobs.c.name == wanted.name
    if wanted.created_after is not None:
        yield jobs.c.created_at >= wanted.created_after
    if wanted.created_before is not None:
        yield jobs.c.created_at < wanted.created_before


def index_labels(
    connection: Connection, job_id: str, tenant: str, wanted: Mapping[str, str]
) -> None:
    """Make these the labels by which the job is found."""
    connection.execute(delete(labels).where(labels.c.job_id == job_id))
    if wanted:
        rows = [
            {"job_id": job_id, "tenant": tenant, "name": name, "value": value}
            for name, value in wanted.items()
        ]
        connection.execute(insert(labels).values(rows))
