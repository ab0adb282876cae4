"""What uploads under way have received."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "datasets",
        sa.Column(
            "received", sa.BigInteger, comment="Bytes that its upload had at its last renewal."
        ),
    )


def downgrade() -> None:
    op.drop_column("datasets", "received")
