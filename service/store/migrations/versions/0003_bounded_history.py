"""Heartbeats are no events."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DELETE FROM events WHERE type = 'attempt.renewed'")


def downgrade() -> None:
    """The heartbeats are gone; nobody needs them."""
