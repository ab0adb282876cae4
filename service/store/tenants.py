"""The tenants in the jobs database: their limits, and what they have."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from service.domain.states import IN_FLIGHT, JobState
from service.domain.tenant import Limits, Places, Tenant, Usage
from service.errors import QuotaExceeded, TenantExists, TenantNotFound
from service.store import tables
from service.store.database import Database, clock, clock_value, insert_if_absent

jobs, tenants = tables.jobs, tables.tenants


class Tenants:
    """Makes, changes and reads tenants. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, limits: Limits, places: Places) -> Tenant:
        """Raises TenantExists."""
        with self._database.writing() as connection:
            now = clock(connection)
            row = {"name": name, "served_at": now, "created_at": now} | _columns(limits, places)
            if not insert_if_absent(connection, tenants, row):
                raise TenantExists(f"There is a tenant {name} already.", param="name")
            return _tenant(_row(connection, name))

    def change(self, name: str, limits: Limits, places: Places) -> Tenant:
        """Replace its limits and places; jobs that run go on. Raises TenantNotFound."""
        with self._database.writing() as connection:
            connection.execute(
                update(tenants).where(tenants.c.name == name).values(_columns(limits, places))
            )
            return _tenant(_row(connection, name))

    def get(self, name: str) -> Tenant:
        """Raises TenantNotFound."""
        with self._database.reading() as connection:
            return _tenant(_row(connection, name))

    def usage(self, name: str) -> Usage:
        """What the tenant has at the moment. Raises TenantNotFound."""
        with self._database.reading() as connection:
            require_tenant(connection, name)
            counted = connection.execute(
                select(jobs.c.state, func.count().label("jobs"))
                .where(jobs.c.tenant == name, jobs.c.deleted_at.is_(None))
                .group_by(jobs.c.state)
            )
            states = {row.state: row.jobs for row in counted}
            return Usage(
                running_jobs=sum(states.get(state, 0) for state in IN_FLIGHT),
                queued_jobs=states.get(JobState.QUEUED, 0),
                stored_bytes=stored_bytes(connection, name),
            )

    def list_tenants(self, *, limit: int, after: str | None = None) -> list[Tenant]:
        """At most `limit` tenants with a name above `after`, by name."""
        query = select(tenants).order_by(tenants.c.name).limit(limit)
        if after is not None:
            query = query.where(tenants.c.name > after)
        with self._database.reading() as connection:
            return [_tenant(row) for row in connection.execute(query)]


def require_tenant(connection: Connection, name: str) -> None:
    """Raise TenantNotFound unless there is this tenant."""
    _row(connection, name)


def places_of(connection: Connection, name: str) -> Places:
    """The tenant's own places; those of the installation if it has submitted nothing yet."""
    row = connection.execute(select(tenants).where(tenants.c.name == name)).one_or_none()
    return Places() if row is None else _tenant(row).places


def ensure_tenant(connection: Connection, name: str) -> None:
    """Make the tenant, without limits, if there is none."""
    now = clock_value(connection)
    insert_if_absent(connection, tenants, {"name": name, "served_at": now, "created_at": now})


def refuse_beyond_limits(connection: Connection, name: str) -> None:
    """Raise QuotaExceeded if the tenant may not submit another job; make it if it is new."""
    row = _counted(connection, name)
    if row is None:
        ensure_tenant(connection, name)
        return
    if (most := row.max_queued_jobs) is not None:
        queued = connection.execute(
            select(func.count())
            .select_from(jobs)
            .where(jobs.c.tenant == name, jobs.c.state == JobState.QUEUED)
        ).scalar_one()
        if queued >= most:
            raise QuotaExceeded(
                f"{queued} jobs of the tenant are queued, and it may have {most}. Try again "
                "when one has begun, or cancel one."
            )
    _refuse_bytes(connection, row, 0)


def refuse_bytes(
    connection: Connection, name: str, more: int = 0, *, upload: str | None = None
) -> None:
    """Raise QuotaExceeded if the tenant has as many bytes as it may, or would with `more`.

    These are all the bytes of the dataset `upload`, if it is given.
    """
    row = _counted(connection, name)
    if row is not None:
        _refuse_bytes(connection, row, more, upload)


def _counted(connection: Connection, name: str) -> Row[Any] | None:
    """The tenant's row, if there is one. If it has limits of what is submitted, it is locked, so
    that what is submitted at once is counted.
    """
    query = select(tenants).where(tenants.c.name == name)
    row = connection.execute(query).one_or_none()
    if row is None or row.max_queued_jobs is row.max_stored_bytes is None:
        return row
    return connection.execute(query.with_for_update()).one()


def _refuse_bytes(
    connection: Connection, row: Row[Any], more: int, upload: str | None = None
) -> None:
    if row.max_stored_bytes is None:
        return
    taken = stored_bytes(connection, row.name, besides=upload)
    if taken + max(more, 1) > row.max_stored_bytes:
        raise QuotaExceeded(
            f"Artifacts, datasets and uploads of the tenant take {taken} bytes, and it may have "
            f"{row.max_stored_bytes}. Delete jobs or datasets that are no longer needed."
        )


def stored_bytes(connection: Connection, name: str, *, besides: str | None = None) -> int:
    """What the tenant's artifacts and datasets take in the bucket, but for the dataset `besides`.

    Of a dataset whose upload is under way, that is what had arrived at its last renewal.
    """
    artifacts, datasets = tables.artifacts, tables.datasets
    of_artifacts = (
        select(func.coalesce(func.sum(artifacts.c.bytes), 0))
        .join(jobs, jobs.c.id == artifacts.c.job_id)
        .where(jobs.c.tenant == name, jobs.c.deleted_at.is_(None))
    )
    arrived = func.coalesce(datasets.c.bytes, datasets.c.received)
    of_datasets = select(func.coalesce(func.sum(arrived), 0)).where(
        datasets.c.tenant == name, datasets.c.deleted_at.is_(None)
    )
    if besides is not None:
        of_datasets = of_datasets.where(datasets.c.id != besides)
    return sum(int(connection.execute(each).scalar_one()) for each in (of_artifacts, of_datasets))


def _row(connection: Connection, name: str) -> Row[Any]:
    row = connection.execute(select(tenants).where(tenants.c.name == name)).one_or_none()
    if row is None:
        raise TenantNotFound(f"There is no tenant {name}.")
    return row


def _columns(limits: Limits, places: Places) -> dict[str, Any]:
    lists = {
        field: None if value is None else list(value) for field, value in asdict(places).items()
    }
    return asdict(limits) | lists


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        name=row.name,
        created_at=row.created_at,
        limits=Limits(row.max_running_jobs, row.max_queued_jobs, row.max_stored_bytes),
        places=Places(_listed(row.allowed_roots), _listed(row.allowed_s3_prefixes)),
    )


def _listed(value: list[str] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)
