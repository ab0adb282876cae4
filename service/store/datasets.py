"""Datasets in the jobs database.

    begin      an upload holds a lease and renews it; nobody sees the dataset yet
    complete   users see it, and jobs may name it
    delete     nobody sees it any more; a cleaner removes its objects, and then its row

An upload whose lease has expired counts as deleted once a cleaner has marked it. A job that names a
dataset is created in one transaction with its lock on the dataset's row, and so is a retry. So no
dataset is deleted under a job that waits or runs, and no job is created with a deleted one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, insert, select, update

from service.domain.datasets import Dataset, Format
from service.domain.job import new_id
from service.domain.spec.sources import DATASET_ID_PATTERN
from service.domain.states import TERMINAL
from service.errors import DataNotFound, DatasetInUse, DatasetNotFound, UploadAbandoned
from service.printable import shortened
from service.store import tables
from service.store.database import Database, clock
from service.store.tenants import refuse_bytes

datasets, job_datasets, jobs = tables.datasets, tables.job_datasets, tables.jobs

JOBS_NAMED = 3
"""How many of the jobs that use a dataset an error names."""

_COMPLETE = and_(datasets.c.bytes.is_not(None), datasets.c.deleted_at.is_(None))


@dataclass(frozen=True)
class Contents:
    """What the upload of a dataset has found; see `service.domain.datasets.Dataset`."""

    bytes: int
    documents: int
    empty_rows: int | None
    sha256: str


class Datasets:
    """The datasets of one tenant. Threads may share it.

    Another tenant's dataset does not exist, nor does one whose upload is not complete.
    """

    def __init__(self, database: Database, tenant: str) -> None:
        self._database = database
        self._tenant = tenant

    def get(self, dataset_id: str) -> Dataset:
        """Raises DatasetNotFound."""
        with self._database.reading() as connection:
            return _dataset(self._visible(connection, dataset_id))

    def require(self, dataset_id: str, param: str) -> None:
        """Raise DataNotFound, about `param`, unless the tenant has this dataset."""
        with self._database.reading() as connection:
            _require(connection, self._tenant, {param: dataset_id})

    def page(self, *, limit: int, before: str | None = None) -> Sequence[Dataset]:
        """At most `limit` datasets, newest first, older than the dataset `before`."""
        query = select(datasets).where(_COMPLETE, datasets.c.tenant == self._tenant)
        if before is not None:
            query = query.where(datasets.c.id < before)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(datasets.c.id.desc()).limit(limit))
            return [_dataset(row) for row in rows]

    def begin(self, name: str | None, kind: Format, text_field: str, lease_seconds: float) -> str:
        """The id of a new dataset that is being uploaded; `complete` makes it visible.

        Raises QuotaExceeded if the tenant has as many bytes as it may have.
        """
        dataset_id = new_id("ds")
        with self._database.writing() as connection:
            refuse_bytes(connection, self._tenant)
            now = clock(connection)
            row = {
                "id": dataset_id,
                "tenant": self._tenant,
                "name": name,
                "format": kind,
                "text_field": text_field,
                "created_at": now,
                "lease_until": now + timedelta(seconds=lease_seconds),
            }
            connection.execute(insert(datasets).values(row))
        return dataset_id

    def renew(self, dataset_id: str, received: int, lease_seconds: float) -> None:
        """Renew the lease of an upload that has so many bytes by now, which count from now on.

        Raises UploadAbandoned once a cleaner has given it up, and QuotaExceeded if the tenant
        would have more bytes than it may have.
        """
        with self._database.writing() as connection:
            refuse_bytes(connection, self._tenant, received, upload=dataset_id)
            until = clock(connection) + timedelta(seconds=lease_seconds)
            values = {"lease_until": until, "received": received}
            self._update_upload(connection, dataset_id, values)

    def complete(self, dataset_id: str, contents: Contents) -> Dataset:
        """Make an uploaded dataset visible.

        Raises what `renew` does.
        """
        values = {
            "lease_until": None,
            "bytes": contents.bytes,
            "documents": contents.documents,
            "empty_rows": contents.empty_rows,
            "sha256": contents.sha256,
        }
        with self._database.writing() as connection:
            refuse_bytes(connection, self._tenant, contents.bytes, upload=dataset_id)
            return _dataset(self._update_upload(connection, dataset_id, values))

    def give_up(self, dataset_id: str) -> None:
        """End an upload that is not complete; a cleaner removes it."""
        with self._database.writing() as connection:
            connection.execute(
                update(datasets)
                .where(datasets.c.id == dataset_id, datasets.c.bytes.is_(None))
                .where(datasets.c.deleted_at.is_(None))
                .values(deleted_at=clock(connection), lease_until=None)
            )

    def delete(self, dataset_id: str) -> None:
        """Delete a dataset; a cleaner removes its objects.

        Raises DatasetNotFound, also if it was already deleted, and DatasetInUse while a job that
        names it waits or runs. A job that has ended does not hold it: a failed one can then not be
        retried.
        """
        with self._database.writing() as connection:
            self._visible(connection, dataset_id, lock=True)
            if using := _jobs_using(connection, dataset_id):
                more = ", and more" if len(using) > JOBS_NAMED else ""
                named = ", ".join(f"{job.id} ({job.state})" for job in using[:JOBS_NAMED])
                raise DatasetInUse(
                    f"Jobs that wait or run use the dataset {dataset_id}: {named}{more}. Wait for "
                    "them or cancel them, then delete it."
                )
            mine = update(datasets).where(datasets.c.id == dataset_id)
            connection.execute(mine.values(deleted_at=clock(connection)))

    def count_tokens(self, dataset_id: str, tokens: int) -> None:
        """Record how many tokens a job has found the dataset to have."""
        with self._database.writing() as connection:
            mine = and_(datasets.c.id == dataset_id, datasets.c.tenant == self._tenant)
            connection.execute(update(datasets).where(mine).values(tokens=tokens))

    def _visible(self, connection: Connection, dataset_id: str, *, lock: bool = False) -> Row[Any]:
        found = _find(connection, self._tenant, [dataset_id], lock=lock)
        if not found:
            raise DatasetNotFound(f"There is no dataset {shortened(dataset_id)}.")
        return found[0]

    def _update_upload(
        self, connection: Connection, dataset_id: str, values: Mapping[str, Any]
    ) -> Row[Any]:
        changed = connection.execute(
            update(datasets)
            .where(datasets.c.id == dataset_id, datasets.c.tenant == self._tenant)
            .where(datasets.c.bytes.is_(None), datasets.c.deleted_at.is_(None))
            .values(values)
            .returning(datasets)
        ).one_or_none()
        if changed is None:
            raise UploadAbandoned
        return changed


class StoredDatasets:
    """The dispatchers' side: which datasets are to be removed. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def to_remove(self, *, limit: int) -> list[str]:
        """The ids of deleted datasets and of uploads that are dead, those due longest first."""
        with self._database.writing() as connection:
            now = clock(connection)
            dead = and_(datasets.c.lease_until <= now, datasets.c.deleted_at.is_(None))
            connection.execute(
                update(datasets).where(dead).values(deleted_at=now, lease_until=None)
            )
            query = select(datasets.c.id).where(datasets.c.deleted_at.is_not(None))
            query = query.order_by(datasets.c.deleted_at, datasets.c.id).limit(limit)
            return list(connection.execute(query).scalars())

    def remove(self, dataset_id: str) -> None:
        """Remove the row of a deleted dataset; a repeated call changes nothing."""
        with self._database.writing() as connection:
            deleted = and_(datasets.c.id == dataset_id, datasets.c.deleted_at.is_not(None))
            connection.execute(delete(datasets).where(deleted))


def hold_datasets(
    connection: Connection, tenant: str, job_id: str, named: Mapping[str, str]
) -> None:
    """Keep the datasets that a new job names, by their fields, from being deleted under it.

    Raises DataNotFound.
    """
    if named:
        _require(connection, tenant, named, lock=True)
        rows = [
            {"job_id": job_id, "param": param, "dataset_id": dataset_id}
            for param, dataset_id in named.items()
        ]
        connection.execute(insert(job_datasets), rows)


def hold_again(connection: Connection, tenant: str, job_id: str) -> None:
    """Keep the datasets of a job that has ended, which is to run again. Raises DataNotFound."""
    query = select(job_datasets).where(job_datasets.c.job_id == job_id)
    named = {row.param: row.dataset_id for row in connection.execute(query)}
    _require(connection, tenant, named, lock=True)


def _require(
    connection: Connection, tenant: str, named: Mapping[str, str], *, lock: bool = False
) -> None:
    found = {row.id for row in _find(connection, tenant, [*named.values()], lock=lock)}
    for param, dataset_id in named.items():
        if dataset_id not in found:
            raise DataNotFound(f"There is no dataset {shortened(dataset_id)}.", param=param)


def _find(
    connection: Connection, tenant: str, ids: Sequence[str], *, lock: bool
) -> Sequence[Row[Any]]:
    # PostgreSQL refuses a query with NULs or halves of characters.
    known = [each for each in ids if re.fullmatch(DATASET_ID_PATTERN, each)]
    if not known:
        return []
    mine: ColumnElement[bool] = and_(_COMPLETE, datasets.c.tenant == tenant)
    query = select(datasets).where(mine, datasets.c.id.in_(known)).order_by(datasets.c.id)
    return connection.execute(query.with_for_update() if lock else query).all()


def _jobs_using(connection: Connection, dataset_id: str) -> Sequence[Row[str, str]]:
    query = (
        select(jobs.c.id, jobs.c.state)
        .join(job_datasets, job_datasets.c.job_id == jobs.c.id)
        .where(job_datasets.c.dataset_id == dataset_id, jobs.c.state.not_in(TERMINAL))
        .distinct()
        .order_by(jobs.c.id)
        .limit(JOBS_NAMED + 1)
    )
    return connection.execute(query).all()


def _dataset(row: Row[Any]) -> Dataset:
    return Dataset(
        id=row.id,
        name=row.name,
        format=row.format,
        text_field=row.text_field,
        bytes=row.bytes,
        documents=row.documents,
        empty_rows=row.empty_rows,
        sha256=row.sha256,
        created_at=row.created_at,
        tokens=row.tokens,
    )
