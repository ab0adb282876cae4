"""Jobs are listed by name, method, label and time of creation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BATCH = 500
MAX_CHARACTERS = 64

_INDEXES = {
    "ix_jobs_tenant_id_state_method_created_at": ["tenant", "id", "state", "method", "created_at"],
    "ix_jobs_tenant_name_id": ["tenant", "name", "id"],
}


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "name",
            sa.String(MAX_CHARACTERS),
            comment="The specification's, to filter by, as is the method.",
        ),
    )
    op.add_column("jobs", sa.Column("method", sa.String(MAX_CHARACTERS)))
    op.create_table(
        "job_labels",
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("value", sa.String(63), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False, comment="The job's, for the index."),
        comment="The labels of the specifications, to filter by.",
    )
    _fill()
    op.create_index(
        "ix_job_labels_tenant_name_value_job_id",
        "job_labels",
        ["tenant", "name", "value", "job_id"],
    )
    for name, columns in _INDEXES.items():
        op.create_index(name, "jobs", columns)


def downgrade() -> None:
    for name in _INDEXES:
        op.drop_index(name, "jobs")
    op.drop_table("job_labels")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("method")
        batch.drop_column("name")


def _fill() -> None:
    """Set the new columns from the specifications, whatever version wrote them.

    No version before this one had labels.
    """
    jobs = sa.table("jobs", *map(sa.column, ("id", "spec", "name", "method")))
    connection = op.get_bind()
    page = sa.select(jobs.c.id, jobs.c.spec).order_by(jobs.c.id).limit(BATCH)
    change = (
        sa.update(jobs)
        .where(jobs.c.id == sa.bindparam("job_id"))
        .values(name=sa.bindparam("its_name"), method=sa.bindparam("its_method"))
    )
    last = ""
    while rows := connection.execute(page.where(jobs.c.id > last)).all():
        connection.execute(change, [_values(row.id, json.loads(row.spec)) for row in rows])
        last = rows[-1].id


def _values(job_id: str, spec: Mapping[str, Any]) -> dict[str, str | None]:
    return {
        "job_id": job_id,
        "its_name": _short(spec.get("name")),
        "its_method": _short(spec.get("method")),
    }


def _short(value: object) -> str | None:
    """The value, if it is text that fits; a newer version may have allowed others."""
    return value if isinstance(value, str) and len(value) <= MAX_CHARACTERS else None
