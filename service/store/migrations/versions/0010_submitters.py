"""The key that submitted each job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "key_id", sa.String(12), comment="Of the key that submitted it; null: without one."
        ),
    )
    op.add_column("jobs", sa.Column("key_name", sa.String(63)))


def downgrade() -> None:
    op.drop_column("jobs", "key_name")
    op.drop_column("jobs", "key_id")
