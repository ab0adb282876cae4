"""What a tenant's users do with the jobs database: submit, read, change, cancel, delete, retry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select, update

from service.domain.datasets import datasets_of
from service.domain.job import EventType, Job, Submitter, new_job_id
from service.domain.labels import merged
from service.domain.patch import JobPatch
from service.domain.spec.job import JobSpec
from service.domain.spec.stored import read_stored_limits
from service.domain.states import TERMINAL, JobState
from service.domain.tenant import Places
from service.errors import IdempotencyKeyReused, JobConflict
from service.store import tables
from service.store.credentials import SealedCredential, sealed_of
from service.store.database import Database, clock, insert_if_absent
from service.store.datasets import Datasets, hold_again, hold_datasets
from service.store.listing import index_labels
from service.store.records import Records
from service.store.rows import read_job, read_jobs
from service.store.tenants import places_of, refuse_beyond_limits
from service.store.transitions import (
    after,
    append,
    mark_deleted,
    transition,
)
from service.tracing import origin

jobs = tables.jobs


@dataclass(frozen=True)
class Reach:
    """What a tenant's jobs read."""

    places: Places  # within what the installation allows
    sealed: Sequence[SealedCredential]  # for private models and texts; see `service.credentials`


class Users(Records):
    """The reads and writes of one tenant's users. Threads may share it."""

    def __init__(self, database: Database, tenant: str, submitter: Submitter | None = None) -> None:
        super().__init__(database, tenant)
        self._tenant: str = tenant
        self._submitter = submitter

    @property
    def datasets(self) -> Datasets:
        """The tenant's datasets."""
        return Datasets(self._database, self._tenant)

    def reach(self) -> Reach:
        """What the tenant's jobs may read, and what they read it with."""
        with self._database.reading() as connection:
            return Reach(places_of(connection, self._tenant), sealed_of(connection, self._tenant))

    def create(self, spec: JobSpec) -> Job:
        """Accept a job; it is durable once this returns.

        Raises DataNotFound for a dataset that the tenant does not have, as all that create jobs do.
        """
        with self._database.writing() as connection:
            return self._create(connection, spec, new_job_id())

    def create_once(self, spec: JobSpec, key: str) -> tuple[Job, bool]:
        """The job of the tenant's idempotency key, and whether this call created it.

        Raises IdempotencyKeyReused if the key's job has another specification.
        """
        with self._database.writing() as connection:
            job_id = new_job_id()
            row = {
                "tenant": self._tenant,
                "key": key,
                "body_sha256": _body_sha256(spec),
                "job_id": job_id,
                "created_at": clock(connection),
            }
            while not insert_if_absent(connection, tables.idempotency_keys, row):
                known = connection.execute(_key_query(key, self._tenant)).one_or_none()
                if known is not None:  # else its job was deleted between the two statements
                    return _same_job(connection, known, spec), False
            return self._create(connection, spec, job_id), True

    def find_once(self, spec: JobSpec, key: str) -> Job | None:
        """The job of the tenant's idempotency key; None if the key is unused.

        Raises IdempotencyKeyReused as `create_once` does.
        """
        with self._database.reading() as connection:
            known = connection.execute(_key_query(key, self._tenant)).one_or_none()
            return None if known is None else _same_job(connection, known, spec)

    def _create(self, connection: Connection, spec: JobSpec, job_id: str) -> Job:
        refuse_beyond_limits(connection, self._tenant)
        now = clock(connection)
        row = {
            "id": job_id,
            "state": JobState.QUEUED,
            "spec": spec.model_dump_json(),
            "attempt": 0,
            "created_at": now,
            "tenant": self._tenant,
            "rank": -spec.priority,
            "deadline": after(now, spec.limits.queue_seconds),
            "name": spec.name,
            "method": spec.method,
        }
        if self._submitter is not None:
            row |= asdict(self._submitter)
        created = connection.execute(insert(jobs).values(row).returning(jobs)).one()
        if spec.labels:
            index_labels(connection, job_id, self._tenant, spec.labels)
        hold_datasets(connection, self._tenant, job_id, datasets_of(spec))
        message = "The job waits for a dispatcher."
        append(connection, job_id, None, EventType.QUEUED, message, origin())
        return read_jobs(connection, [created])[0]

    def change(self, job_id: str, patch: JobPatch) -> Job:
        """Change the priority of a queued job, or the labels of any job.

        The stored specification has the new values from then on. A patch that changes nothing is
        allowed in every state. Raises JobConflict for a priority if the job is not queued, and
        InvalidParameter if it would have too many labels.
        """
        with self._database.writing() as connection:
            row = self._visible(connection, job_id, lock=True)
            spec: dict[str, Any] = json.loads(row.spec)  # also of a version that is not known here
            changes = dict(_changes(spec, patch))
            if not changes:
                return read_job(connection, job_id)
            if "priority" in changes and row.state != JobState.QUEUED:
                raise JobConflict(
                    f"Job {job_id} is {row.state}; only the priority of a queued one can be "
                    "changed.",
                    param="priority",
                )
            values: dict[str, Any] = {"spec": json.dumps(spec | changes)}
            if "priority" in changes:
                values["rank"] = -changes["priority"]
            if "labels" in changes:
                index_labels(connection, job_id, self._tenant, changes["labels"])
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
            message = f"The user changed: {', '.join(changes)}."
            append(connection, job_id, None, EventType.CHANGED, message, changes)
            return read_job(connection, job_id)

    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job at once, or a running one as soon as its attempt has stopped.

        A repeated call changes nothing. Raises JobConflict if the job has succeeded or failed.
        """
        with self._database.writing() as connection:
            row = self._visible(connection, job_id, lock=True)
            match JobState(row.state):
                case JobState.QUEUED:
                    cancelled = "The user cancelled the job before it ran."
                    transition(connection, row, JobState.CANCELLED, EventType.CANCELLED, cancelled)
                case JobState.RUNNING:
                    asked = "The user cancelled the job; its attempt is being stopped."
                    transition(connection, row, JobState.CANCELLING, EventType.CANCELLING, asked)
                case JobState.SUCCEEDED | JobState.FAILED as ended:
                    raise JobConflict(f"Job {job_id} has already {ended}; it cannot be cancelled.")
            return read_job(connection, job_id)

    def delete(self, job_id: str) -> None:
        """Delete an ended job: users no longer see it, and a dispatcher removes its data.

        Raises JobConflict while it waits or runs, and JobNotFound if it was already deleted.
        """
        with self._database.writing() as connection:
            row = self._visible(connection, job_id, lock=True)
            if row.state not in TERMINAL:
                raise JobConflict(
                    f"Job {job_id} is {row.state}; cancel it, and delete it once it has ended."
                )
            mark_deleted(connection, [job_id])

    def retry(self, job_id: str) -> Job:
        """Queue a failed job again, with as many attempts as a new one.

        The next attempt resumes from the job's checkpoints. A repeated call changes nothing.
        Raises JobConflict unless the job has failed, QuotaExceeded if the tenant may not submit
        another one, DataNotFound if a dataset that it names has been deleted, and
        SpecificationUnknown if its limits cannot be read.
        """
        with self._database.writing() as connection:
            row = self._visible(connection, job_id, lock=True)
            retried = row.attempt == row.attempts_before and row.failure is not None
            if row.state == JobState.QUEUED and retried:
                return read_job(connection, job_id)
            if row.state != JobState.FAILED:
                raise JobConflict(f"Job {job_id} is {row.state}; only a failed one can be retried.")
            limits = read_stored_limits(row.id, row.spec)
            refuse_beyond_limits(connection, self._tenant)
            hold_again(connection, row.tenant, job_id)
            transition(
                connection,
                row,
                JobState.QUEUED,
                EventType.REQUEUED,
                "The user retried the job; it waits for a dispatcher.",
                data=origin(),
                finished_at=None,
                clean_after=None,
                available_at=None,
                attempts_before=row.attempt,
                ran_seconds=0.0,
                deadline=after(clock(connection), limits.queue_seconds),
            )
            return read_job(connection, job_id)


def _changes(spec: Mapping[str, Any], patch: JobPatch) -> Iterator[tuple[str, Any]]:
    """The fields of the specification that the patch changes, with their new values."""
    if "priority" in patch.model_fields_set and (patch.priority or 0) != spec.get("priority", 0):
        yield "priority", patch.priority or 0
    if "labels" in patch.model_fields_set:
        before = spec.get("labels", {})
        after = {} if patch.labels is None else merged(before, patch.labels)
        if after != before:
            yield "labels", after


def _body_sha256(spec: JobSpec) -> str:
    # Defaults are left out, so the hash stays the same when a later version adds fields.
    return hashlib.sha256(spec.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def _key_query(key: str, tenant: str) -> Select[Any]:
    return select(tables.idempotency_keys).filter_by(tenant=tenant, key=key)


def _same_job(connection: Connection, known: Row[Any], spec: JobSpec) -> Job:
    if known.body_sha256 != _body_sha256(spec):
        raise IdempotencyKeyReused(param="Idempotency-Key")
    return read_job(connection, known.job_id)
