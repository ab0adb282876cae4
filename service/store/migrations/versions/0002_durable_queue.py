"""Tenants, priorities, leases, deadlines, retries and idempotency keys."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from service.store.tables import UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_INDEXES = {
    "ix_jobs_state_tenant_rank_id": ["state", "tenant", "rank", "id"],
    "ix_jobs_clean_after": ["clean_after"],
    "ix_jobs_deadline": ["deadline"],
}


def _new_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("tenant", sa.String(64), nullable=False, server_default="default"),
        sa.Column(
            "rank", sa.Integer, nullable=False, server_default="0", comment="The negated priority."
        ),
        sa.Column("available_at", UtcDateTime, comment="No dispatcher claims the job before."),
        sa.Column("lease_until", UtcDateTime, comment="When the attempt's lease expires."),
        sa.Column("deadline", UtcDateTime, comment="When the job fails if it still waits or runs."),
        sa.Column(
            "ran_seconds",
            sa.Float,
            nullable=False,
            server_default="0",
            comment="How long its ended attempts ran.",
        ),
        sa.Column(
            "attempts_before",
            sa.Integer,
            nullable=False,
            server_default="0",
            comment="Attempts before the user's last retry, which do not count.",
        ),
        sa.Column("clean_after", UtcDateTime, comment="When cleanup is due; null if all is clean."),
    )


def upgrade() -> None:
    for column in _new_columns():
        op.add_column("jobs", column)
    op.execute(
        "UPDATE jobs SET clean_after = finished_at "
        "WHERE state IN ('failed', 'cancelled') AND attempt > 0 AND cleaned_at IS NULL"
    )
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("cleaned_at")
    for name, columns in _INDEXES.items():
        op.create_index(name, "jobs", columns)
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column(
            "served_at", UtcDateTime, nullable=False, comment="When its last job was claimed."
        ),
    )
    op.execute(
        "INSERT INTO tenants (name, served_at) SELECT tenant, MIN(created_at) FROM jobs GROUP BY 1"
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("idempotency_keys")
    op.drop_table("tenants")
    for name in _INDEXES:
        op.drop_index(name, "jobs")
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(
            sa.Column("cleaned_at", UtcDateTime, comment="When its objects were removed.")
        )
        for column in _new_columns():
            batch.drop_column(column.name)
