"""Users upload datasets; an attempt's warnings stand beside its job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.store.tables import AnyText, UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(32), primary_key=True, comment="Sorts by time of creation."),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64)),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("text_field", AnyText, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column(
            "lease_until", UtcDateTime, comment="When its upload is dead; null once complete."
        ),
        sa.Column(
            "deleted_at", UtcDateTime, comment="When it was deleted, or its upload given up."
        ),
        sa.Column(
            "bytes",
            sa.BigInteger,
            comment="Null until the upload is complete, as those that follow.",
        ),
        sa.Column("documents", sa.BigInteger),
        sa.Column("empty_rows", sa.BigInteger, comment="Null also where nobody has counted them."),
        sa.Column("sha256", sa.String(64)),
        sa.Column("tokens", sa.BigInteger, comment="Null until a job has counted them."),
    )
    op.create_index("ix_datasets_tenant_id", "datasets", ["tenant", "id"])
    op.create_index("ix_datasets_lease_until", "datasets", ["lease_until"])
    op.create_index("ix_datasets_deleted_at", "datasets", ["deleted_at"])
    op.create_table(
        "job_datasets",
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column(
            "param",
            sa.String(64),
            primary_key=True,
            comment="The field that names the dataset.",
        ),
        sa.Column(
            "dataset_id", sa.String(32), nullable=False, comment="It may be gone after the job."
        ),
    )
    op.create_index("ix_job_datasets_dataset_id", "job_datasets", ["dataset_id"])
    op.add_column(
        "jobs",
        sa.Column(
            "warnings", sa.JSON(none_as_null=True), comment="[{type, message}] of its attempt."
        ),
    )


def downgrade() -> None:
    op.drop_column("jobs", "warnings")
    op.drop_table("job_datasets")
    op.drop_table("datasets")
