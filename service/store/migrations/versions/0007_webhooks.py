"""Webhooks and their deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.store.tables import AnyText, UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_INDEXES = {
    "ix_webhooks_tenant_id": ("webhooks", ["tenant", "id"]),
    "ix_deliveries_webhook_id_id": ("deliveries", ["webhook_id", "id"]),
    "ix_deliveries_webhook_id_due_at": ("deliveries", ["webhook_id", "due_at"]),
    "ix_deliveries_job_id": ("deliveries", ["job_id"]),
    "ix_deliveries_finished_at": ("deliveries", ["finished_at"]),
}


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(32), primary_key=True, comment="Sorts by time of creation."),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("description", AnyText),
        sa.Column("events", sa.JSON, nullable=False, comment="The types that it sends."),
        sa.Column("secret", sa.Text, nullable=False, comment="Encrypted."),
        sa.Column("old_secret", sa.Text, comment="Encrypted; signs, too, for a while."),
        sa.Column("old_secret_until", UtcDateTime),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("disabled", sa.String(16), comment="Why it sends nothing; null if it does."),
        sa.Column("failing_since", UtcDateTime, comment="First failure since the last success."),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(32), primary_key=True, comment="Sorts by time of creation."),
        sa.Column(
            "webhook_id",
            sa.String(32),
            sa.ForeignKey("webhooks.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.id"), comment="Null of a test."),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column(
            "due_at",
            UtcDateTime,
            comment="When it may be claimed: a claim puts it off for as long as its lease lasts.",
        ),
        sa.Column("status_code", sa.Integer, comment="Of the last attempt's answer."),
        sa.Column("error", AnyText, comment="Of the last attempt."),
        sa.Column("finished_at", UtcDateTime),
    )
    for name, (table, columns) in _INDEXES.items():
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, (table, _) in _INDEXES.items():
        op.drop_index(name, table)
    op.drop_table("deliveries")
    op.drop_table("webhooks")
