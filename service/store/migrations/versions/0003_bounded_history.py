"""Heartbeats append no events; users can delete jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.store.tables import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DELETE FROM events WHERE type = 'attempt.renewed'")
    op.add_column(
        "jobs",
        sa.Column("deleted_at", UtcDateTime, comment="When a user or the retention deleted it."),
    )
    op.create_index("ix_jobs_deleted_at_finished_at", "jobs", ["deleted_at", "finished_at"])
    op.create_index("ix_idempotency_keys_job_id", "idempotency_keys", ["job_id"])


def downgrade() -> None:
    op.drop_index("ix_idempotency_keys_job_id", "idempotency_keys")
    op.drop_index("ix_jobs_deleted_at_finished_at", "jobs")
    op.drop_column("jobs", "deleted_at")
