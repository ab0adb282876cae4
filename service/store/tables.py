"""The tables of the jobs database, for both SQLite and PostgreSQL.

A change of a table needs a migration in `service.store.migrations`; a test compares them.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

from service.printable import printable

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: takes timezone-aware values and returns UTC, although SQLite stores no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no timezone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class AnyText(TypeDecorator[str]):
    """Arbitrary text, made printable: PostgreSQL refuses NULs and surrogates, users the others."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else printable(value)


jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True, comment="Sorts by time of creation."),
    Column("state", String(16), nullable=False),
    Column("spec", Text, nullable=False, comment="The JobSpec as JSON."),
    Column("attempt", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, comment="When the current attempt was claimed."),
    Column("finished_at", UtcDateTime),
    Column("submitted_at", UtcDateTime, comment="When the cluster accepted the attempt."),
    Column("failure", JSON(none_as_null=True)),
    Column("tenant", String(64), nullable=False, server_default="default"),
    Column("rank", Integer, nullable=False, server_default="0", comment="The negated priority."),
    Column("available_at", UtcDateTime, comment="No dispatcher claims the job before."),
    Column("lease_until", UtcDateTime, comment="When the attempt's lease expires."),
    Column("deadline", UtcDateTime, comment="When the job fails if it still waits or runs."),
    Column(
        "ran_seconds",
        Float,
        nullable=False,
        server_default="0",
        comment="How long its ended attempts ran.",
    ),
    Column(
        "attempts_before",
        Integer,
        nullable=False,
        server_default="0",
        comment="Attempts before the user's last retry, which do not count.",
    ),
    Column("clean_after", UtcDateTime, comment="When cleanup is due; null if all is clean."),
    Column("deleted_at", UtcDateTime, comment="When a user or the retention deleted it."),
    Column("name", String(64), comment="The specification's, to filter by, as is the method."),
    Column("method", String(64)),
    Column("warnings", JSON(none_as_null=True), comment="[{type, message}] of its attempt."),
    Column("key_id", String(12), comment="Of the key that submitted it; null: without one."),
    Column("key_name", String(63)),
    Index(None, "state", "id"),
    Index(None, "state", "tenant", "rank", "id"),
    Index(None, "clean_after"),
    Index(None, "deadline"),
    Index(None, "deleted_at", "finished_at"),
    # A tenant's list reads this one alone for the jobs that a filter leaves out.
    Index(None, "tenant", "id", "state", "method", "created_at"),
    Index(None, "tenant", "name", "id"),
)

job_labels = Table(
    "job_labels",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("value", String(63), nullable=False),
    Column("tenant", String(64), nullable=False, comment="The job's, for the index."),
    Index(None, "tenant", "name", "value", "job_id"),
    comment="The labels of the specifications, to filter by.",
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("served_at", UtcDateTime, nullable=False, comment="When its last job was claimed."),
    Column("created_at", UtcDateTime, comment="Null if an earlier version made it."),
    Column("max_running_jobs", Integer, comment="Null: the installation's limit."),
    Column("max_queued_jobs", Integer, comment="Null: no limit."),
    Column("max_stored_bytes", BigInteger, comment="Of artifacts and datasets; null: no limit."),
    Column("allowed_roots", JSON(none_as_null=True), comment="Null: the installation's."),
    Column("allowed_s3_prefixes", JSON(none_as_null=True), comment="Null: the installation's."),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("tenant", ForeignKey(tenants.c.name), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("name", String(63)),
    Column("sha256", String(64), nullable=False, comment="Of the whole key."),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Index(None, "tenant", "created_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("key_id", String(12), nullable=False),
    Column("action", String(64), nullable=False, comment="The operation of the API."),
    Column("subject", AnyText, nullable=False, comment="The path of what it made or changed."),
    Column("address", String(64), comment="The client's; null if the server cannot tell."),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("job_id", String(32), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index(None, "job_id"),
)

steps = Table(
    "steps",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("step", String(16), primary_key=True),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("unit", String(64), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
)

events = Table(
    "events",
    metadata,
    # SQLite generates ids only if the type of the key is exactly INTEGER.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("job_id", ForeignKey(jobs.c.id), nullable=False),
    Column("attempt", Integer),
    Column("at", UtcDateTime, nullable=False),
    Column("type", String(64), nullable=False),
    Column("message", AnyText, nullable=False),
    Column("data", JSON, nullable=False),
    Index(None, "job_id", "id"),
    sqlite_autoincrement=True,
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", String(128), nullable=False),
    Column("prefix", Text, nullable=False),
    Column("files", JSON, nullable=False, comment="[{path, size, sha256}]"),
    Column("bytes", BigInteger, nullable=False, server_default="0", comment="Of its files."),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", String(32), primary_key=True, comment="Sorts by time of creation."),
    Column("tenant", String(64), nullable=False),
    Column("name", String(64)),
    Column("format", String(16), nullable=False),
    Column("text_field", AnyText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("lease_until", UtcDateTime, comment="When its upload is dead; null once complete."),
    Column("deleted_at", UtcDateTime, comment="When it was deleted, or its upload given up."),
    Column("received", BigInteger, comment="Bytes that its upload had at its last renewal."),
    Column("bytes", BigInteger, comment="Null until the upload is complete, as those that follow."),
    Column("documents", BigInteger),
    Column("empty_rows", BigInteger, comment="Null also where nobody has counted them."),
    Column("sha256", String(64)),
    Column("tokens", BigInteger, comment="Null until a job has counted them."),
    Index(None, "tenant", "id"),
    Index(None, "lease_until"),
    Index(None, "deleted_at"),
)

job_datasets = Table(
    "job_datasets",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id), primary_key=True),
    Column("param", String(64), primary_key=True, comment="The field that names the dataset."),
    Column("dataset_id", String(32), nullable=False, comment="It may be gone after the job."),
    Index(None, "dataset_id"),
)

reports = Table(
    "reports",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id), primary_key=True),
    Column("content", JSON, nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(32), primary_key=True, comment="Sorts by time of creation."),
    Column("tenant", String(64), nullable=False),
    Column("url", Text, nullable=False),
    Column("description", AnyText),
    Column("events", JSON, nullable=False, comment="The types that it sends."),
    Column("secret", Text, nullable=False, comment="Encrypted."),
    Column("old_secret", Text, comment="Encrypted; signs, too, for a while."),
    Column("old_secret_until", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("disabled", String(16), comment="Why it sends nothing; null if it does."),
    Column("failing_since", UtcDateTime, comment="First failure since the last success."),
    Index(None, "tenant", "id"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(32), primary_key=True, comment="Sorts by time of creation."),
    Column("webhook_id", ForeignKey(webhooks.c.id, ondelete="CASCADE"), nullable=False),
    Column("job_id", ForeignKey(jobs.c.id), comment="Null of a test."),
    Column("type", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column(
        "due_at",
        UtcDateTime,
        comment="When it may be claimed: a claim puts it off for as long as its lease lasts.",
    ),
    Column("status_code", Integer, comment="Of the last attempt's answer."),
    Column("error", AnyText, comment="Of the last attempt."),
    Column("finished_at", UtcDateTime),
    Index(None, "webhook_id", "id"),
    Index(None, "webhook_id", "due_at"),
    Index(None, "job_id"),
    Index(None, "finished_at"),
)

credentials = Table(
    "credentials",
    metadata,
    Column("tenant", ForeignKey(tenants.c.name), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("endpoint", Text, comment="Of the hub or of the S3 server; null: ours."),
    Column("prefixes", JSON(none_as_null=True), comment="The places in S3 that it is for."),
    Column("region", String(64)),
    Column("key_id_end", String(4), comment="The end of the access key id."),
    Column("sealed", Text, nullable=False, comment="Encrypted: all of it."),
    Column("created_at", UtcDateTime, nullable=False),
    comment="With which a tenant's jobs read models and texts.",
)
