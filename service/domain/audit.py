"""The audit log: who changed what, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class AuditRecord:
    """One change that a request has made."""

    id: int
    at: datetime
    tenant: str
    key_id: str
    action: str
    """The operation of the API, such as ``submit``."""
    subject: str
    """The path of what it made or changed."""
    address: str | None
    """The client's, as the server sees it; a proxy may stand between."""
