"""The credentials of tenants."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.store.tables import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "credentials",
        sa.Column("tenant", sa.String(64), sa.ForeignKey("tenants.name"), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("endpoint", sa.Text, comment="Of the hub or of the S3 server; null: ours."),
        sa.Column("prefixes", sa.JSON, comment="The places in S3 that it is for."),
        sa.Column("region", sa.String(64)),
        sa.Column("key_id_end", sa.String(4), comment="The end of the access key id."),
        sa.Column("sealed", sa.Text, nullable=False, comment="Encrypted: all of it."),
        sa.Column("created_at", UtcDateTime, nullable=False),
        comment="With which a tenant's jobs read models and texts.",
    )


def downgrade() -> None:
    op.drop_table("credentials")
