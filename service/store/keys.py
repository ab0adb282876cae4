"""The API keys in the jobs database."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, insert, or_, select, update

from service.domain.keys import KEY_ID_PATTERN, ApiKey, key_id, key_sha256, new_key
from service.domain.principal import Principal, Scope
from service.errors import KeyInvalid, KeyNotFound
from service.printable import shortened
from service.store import tables
from service.store.database import Database, clock
from service.store.tenants import require_tenant

USE_IS_NOTED_EVERY = timedelta(minutes=1)
"""A key's last use is written this often at most, so that reading costs no write."""

_NO_SHA256 = "0" * 64

keys = tables.api_keys


class Keys:
    """Makes, checks and revokes keys. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        tenant: str,
        scope: Scope,
        *,
        name: str | None = None,
        lifetime: timedelta | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key, and its text, which is not kept. Raises TenantNotFound."""
        text = new_key()
        with self._database.writing() as connection:
            require_tenant(connection, tenant)
            now = clock(connection)
            row = {
                "id": key_id(text),
                "tenant": tenant,
                "scope": scope,
                "name": name,
                "sha256": key_sha256(text),
                "created_at": now,
                "expires_at": None if lifetime is None else now + lifetime,
            }
            created = connection.execute(insert(keys).values(row).returning(keys)).one()
            return _key(created), text

    def authenticate(self, text: str) -> Principal:
        """Whose key this is; notes its use.

        Raises KeyInvalid for a text that is no key, and for an unknown, revoked or expired key.
        The answer takes as long for a wrong secret as for an unknown id.
        """
        with self._database.reading() as connection:
            row = connection.execute(
                select(keys).where(keys.c.id == (key_id(text) or ""))
            ).one_or_none()
            now = clock(connection)
        kept = _NO_SHA256 if row is None else row.sha256
        same = hmac.compare_digest(kept, key_sha256(text))
        if row is None or not same or not _key(row).is_valid(now):
            raise KeyInvalid
        if row.last_used_at is None or now - row.last_used_at >= USE_IS_NOTED_EVERY:
            self._note_use(row.id, now)
        return Principal(row.id, row.tenant, Scope(row.scope), row.name)

    def valid(self, ids: Collection[str]) -> set[str]:
        """Those of these keys' ids whose keys are neither revoked nor expired."""
        with self._database.reading() as connection:
            now = clock(connection)
            found = connection.execute(select(keys).where(keys.c.id.in_(ids)))
            return {row.id for row in found if _key(row).is_valid(now)}

    def _note_use(self, id_: str, now: datetime) -> None:
        stale = or_(keys.c.last_used_at.is_(None), keys.c.last_used_at < now)
        with self._database.writing() as connection:
            connection.execute(update(keys).where(keys.c.id == id_, stale).values(last_used_at=now))

    def list_keys(
        self, *, tenant: str | None = None, limit: int, after: str | None = None
    ) -> list[ApiKey]:
        """At most `limit` keys with an id above `after`, of one tenant or of all, by id."""
        query = select(keys).order_by(keys.c.id).limit(limit)
        if tenant is not None:
            query = query.where(keys.c.tenant == tenant)
        if after is not None:
            query = query.where(keys.c.id > after)
        with self._database.reading() as connection:
            return [_key(row) for row in connection.execute(query)]

    def revoke(self, id_: str) -> ApiKey:
        """Revoke the key at once; a repeated call changes nothing. Raises KeyNotFound."""
        if not re.fullmatch(KEY_ID_PATTERN, id_):  # PostgreSQL refuses NULs in a query
            raise _not_found(id_)
        with self._database.writing() as connection:
            connection.execute(
                update(keys)
                .where(keys.c.id == id_, keys.c.revoked_at.is_(None))
                .values(revoked_at=clock(connection))
            )
            row = connection.execute(select(keys).where(keys.c.id == id_)).one_or_none()
            if row is None:
                raise _not_found(id_)
            return _key(row)


def _not_found(id_: str) -> KeyNotFound:
    return KeyNotFound(f"There is no key {shortened(id_)}.")


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        tenant=row.tenant,
        scope=Scope(row.scope),
        name=row.name,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
