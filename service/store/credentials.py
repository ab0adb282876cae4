"""The tenants' credentials in the jobs database: what they are for, and their secrets, sealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Delete, Row, Select, delete, insert, select

from service.domain.credentials import (
    MAX_CREDENTIALS,
    Credential,
    CredentialKind,
    HubToken,
    StoredCredential,
)
from service.errors import CredentialConflict, CredentialNotFound
from service.store import tables
from service.store.database import Database, clock
from service.store.tenants import require_tenant

credentials, tenants = tables.credentials, tables.tenants

SHOWN_CHARACTERS = 4
"""Of an access key id."""


@dataclass(frozen=True)
class SealedCredential:
    """A credential as it is kept; `service.credentials` opens it."""

    tenant: str
    name: str
    sealed: str


class StoredCredentials:
    """Keeps and lists the credentials of all tenants. Threads may share it.

    Methods that take the name of a tenant raise TenantNotFound.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, credential: Credential, sealed: str) -> StoredCredential:
        """Keep a credential in the place of the tenant's one of this name, if there is one.

        Raises CredentialConflict if another one of the tenant is for the same place, or the tenant
        has as many as it may have.
        """
        with self._database.writing() as connection:
            require_tenant(connection, credential.tenant)
            # Of two that come at once, the second one sees the first.
            lock = select(tenants).where(tenants.c.name == credential.tenant).with_for_update()
            connection.execute(lock)
            others = _of(credential.tenant).where(credentials.c.name != credential.name)
            _refuse(credential, [_stored(row) for row in connection.execute(others)])
            connection.execute(_deleted(credential.tenant, credential.name))
            row = _row(credential) | {"sealed": sealed, "created_at": clock(connection)}
            made = insert(credentials).values(row).returning(credentials)
            return _stored(connection.execute(made).one())

    def list_credentials(self, tenant: str) -> list[StoredCredential]:
        """By name."""
        with self._database.reading() as connection:
            require_tenant(connection, tenant)
            return [_stored(row) for row in connection.execute(_of(tenant))]

    def get(self, tenant: str, name: str) -> StoredCredential:
        """Raises CredentialNotFound."""
        with self._database.reading() as connection:
            require_tenant(connection, tenant)
            query = _of(tenant).where(credentials.c.name == name)
            row = connection.execute(query).one_or_none()
            if row is None:
                raise _not_found(tenant, name)
            return _stored(row)

    def delete(self, tenant: str, name: str) -> None:
        """Raises CredentialNotFound."""
        with self._database.writing() as connection:
            require_tenant(connection, tenant)
            if not connection.execute(_deleted(tenant, name)).rowcount:
                raise _not_found(tenant, name)

    def sealed(self) -> list[SealedCredential]:
        """Those of all tenants."""
        with self._database.reading() as connection:
            return [_sealed(row) for row in connection.execute(select(credentials))]


def sealed_of(connection: Connection, tenant: str) -> list[SealedCredential]:
    """Those of a tenant, by name."""
    return [_sealed(row) for row in connection.execute(_of(tenant))]


def _of(tenant: str) -> Select[Any]:
    return select(credentials).where(credentials.c.tenant == tenant).order_by(credentials.c.name)


def _deleted(tenant: str, name: str) -> Delete:
    return delete(credentials).where(credentials.c.tenant == tenant, credentials.c.name == name)


def _refuse(credential: Credential, others: Sequence[StoredCredential]) -> None:
    if len(others) >= MAX_CREDENTIALS:
        raise CredentialConflict(
            f"The tenant {credential.tenant} has {MAX_CREDENTIALS} credentials, which is the most: "
            "delete one first."
        )
    for other in others:
        shared = set(other.places) & set(credential.places)
        if other.kind is credential.kind and shared:
            raise CredentialConflict(
                f"The credential '{other.name}' of the tenant {credential.tenant} is for "
                f"{min(shared)} already: change that one, or delete it first.",
                param="endpoint" if credential.kind is CredentialKind.HUB else "prefixes",
            )


def _row(credential: Credential) -> dict[str, Any]:
    row: dict[str, Any] = {
        "tenant": credential.tenant,
        "name": credential.name,
        "kind": credential.kind,
        "endpoint": credential.endpoint,
    }
    if isinstance(credential, HubToken):
        return row
    return row | {
        "prefixes": list(credential.prefixes),
        "region": credential.region,
        "key_id_end": credential.access_key_id.get_secret_value()[-SHOWN_CHARACTERS:],
    }


def _stored(row: Row[Any]) -> StoredCredential:
    return StoredCredential(
        name=row.name,
        kind=CredentialKind(row.kind),
        endpoint=row.endpoint,
        prefixes=tuple(row.prefixes or ()),
        region=row.region,
        key_id_end=row.key_id_end,
        created_at=row.created_at,
    )


def _sealed(row: Row[Any]) -> SealedCredential:
    return SealedCredential(row.tenant, row.name, row.sealed)


def _not_found(tenant: str, name: str) -> CredentialNotFound:
    return CredentialNotFound(f"The tenant {tenant} has no credential {name}.")
