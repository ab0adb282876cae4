"""The bodies of the audit log."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from api.schemas.schema import Schema


class AuditRecord(Schema):
    """A change that a request has made."""

    id: int
    at: datetime
    tenant: str = Field(description="Of the key.")
    key_id: str = Field(
        description="`admin`: the key from the server's settings; `none`: keys are not required."
    )
    action: str = Field(description="The operation.", examples=["submit"])
    subject: str = Field(description="The path of what it made or changed.")
    address: str | None = Field(description="The client's.")


class AuditPage(Schema):
    """Changes, newest first."""

    records: list[AuditRecord]
    next_cursor: str | None = Field(
        default=None, description="Pass as `cursor` for the next page; null on the last one."
    )
