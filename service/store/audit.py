"""The audit log in the jobs database; nothing ever changes or removes its rows."""

from __future__ import annotations

from sqlalchemy import insert, select

from service.domain.audit import AuditRecord
from service.domain.principal import Principal
from service.store import tables
from service.store.database import Database, clock_value

audit = tables.audit


class Audit:
    """Writes and reads the audit log. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, who: Principal, action: str, subject: str, address: str | None) -> None:
        with self._database.writing() as connection:
            row = {
                "at": clock_value(connection),
                "tenant": who.tenant,
                "key_id": who.key_id,
                "action": action,
                "subject": subject,
                "address": address,
            }
            connection.execute(insert(audit).values(row))

    def list_records(
        self, *, limit: int, before: int | None = None, tenant: str | None = None
    ) -> list[AuditRecord]:
        """At most `limit` records with an id below `before`, newest first."""
        query = select(audit).order_by(audit.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.id < before)
        if tenant is not None:
            query = query.where(audit.c.tenant == tenant)
        with self._database.reading() as connection:
            return [AuditRecord(**row._mapping) for row in connection.execute(query)]
