"""Keys, limits of tenants, the audit log, and the size of each artifact."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from service.store.tables import AnyText, UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _limits() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("created_at", UtcDateTime, comment="Null if an earlier version made it."),
        sa.Column("max_running_jobs", sa.Integer, comment="Null: the installation's limit."),
        sa.Column("max_queued_jobs", sa.Integer, comment="Null: no limit."),
        sa.Column(
            "max_stored_bytes", sa.BigInteger, comment="Of artifacts and datasets; null: no limit."
        ),
        sa.Column("allowed_roots", sa.JSON, comment="Null: the installation's."),
        sa.Column("allowed_s3_prefixes", sa.JSON, comment="Null: the installation's."),
    )


def upgrade() -> None:
    for column in _limits():
        op.add_column("tenants", column)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("tenant", sa.String(64), sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("name", sa.String(63)),
        sa.Column("sha256", sa.String(64), nullable=False, comment="Of the whole key."),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("expires_at", UtcDateTime),
        sa.Column("revoked_at", UtcDateTime),
        sa.Column("last_used_at", UtcDateTime),
    )
    op.create_index("ix_api_keys_tenant_created_at", "api_keys", ["tenant", "created_at"])
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(12), nullable=False),
        sa.Column("action", sa.String(64), nullable=False, comment="The operation of the API."),
        sa.Column(
            "subject", AnyText, nullable=False, comment="The path of what it made or changed."
        ),
        sa.Column(
            "address", sa.String(64), comment="The client's; null if the server cannot tell."
        ),
        sqlite_autoincrement=True,
    )
    op.add_column(
        "artifacts",
        sa.Column(
            "bytes", sa.BigInteger, nullable=False, server_default="0", comment="Of its files."
        ),
    )
    _measure_artifacts()


def _measure_artifacts() -> None:
    connection = op.get_bind()
    artifacts = sa.table(
        "artifacts",
        sa.column("job_id", sa.String),
        sa.column("position", sa.Integer),
        sa.column("files", sa.JSON),
        sa.column("bytes", sa.BigInteger),
    )
    for row in connection.execute(sa.select(artifacts)).all():
        files = json.loads(row.files) if isinstance(row.files, str) else row.files
        connection.execute(
            sa.update(artifacts)
            .where(artifacts.c.job_id == row.job_id, artifacts.c.position == row.position)
            .values(bytes=sum(file["size"] for file in files))
        )


def downgrade() -> None:
    op.drop_column("artifacts", "bytes")
    op.drop_table("audit")
    op.drop_index("ix_api_keys_tenant_created_at", "api_keys")
    op.drop_table("api_keys")
    for column in _limits():
        op.drop_column("tenants", column.name)
