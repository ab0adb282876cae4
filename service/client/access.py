"""The operations on keys, tenants and the audit log, for `Client.send` and `AsyncClient.send`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

from service.client.answers import (
    AuditPage,
    CreatedKey,
    CurrentKey,
    Key,
    KeyPage,
    Tenant,
    TenantPage,
    Usage,
)
from service.client.calls import Call, as_object, sending


def create_key(
    scope: Literal["reader", "submitter", "admin"] | str,
    *,
    tenant: str | None = None,
    name: str | None = None,
    expires_in_seconds: int | None = None,
) -> Call[CreatedKey]:
    """A new key; its answer alone has the key's text."""
    body = {
        "scope": scope,
        "tenant": tenant,
        "name": name,
        "expires_in_seconds": expires_in_seconds,
    }
    return sending("POST", "/v1/keys", _given(body))


def keys(limit: int, cursor: str | None = None, tenant: str | None = None) -> Call[KeyPage]:
    query = {"limit": limit, "cursor": cursor, "tenant": tenant}
    return Call("GET", "/v1/keys", as_object, _given(query))


def revoke_key(key_id: str) -> Call[Key]:
    return Call("DELETE", f"/v1/keys/{_quoted(key_id)}", as_object)


def current_key() -> Call[CurrentKey]:
    """Whose key this is, and what it allows."""
    return Call("GET", "/v1/keys/current", as_object)


def create_tenant(name: str, settings: Mapping[str, Any]) -> Call[Tenant]:
    return sending("POST", "/v1/tenants", {"name": name, **settings})


def tenants(limit: int, cursor: str | None = None) -> Call[TenantPage]:
    return Call("GET", "/v1/tenants", as_object, _given({"limit": limit, "cursor": cursor}))


def tenant(name: str) -> Call[Tenant]:
    return Call("GET", f"/v1/tenants/{_quoted(name)}", as_object)


def tenant_usage(name: str) -> Call[Usage]:
    return Call("GET", f"/v1/tenants/{_quoted(name)}/usage", as_object)


def change_tenant(name: str, settings: Mapping[str, Any]) -> Call[Tenant]:
    """Replace all of its settings."""
    return sending("PUT", f"/v1/tenants/{_quoted(name)}", settings)


def audit(limit: int, cursor: str | None = None, tenant: str | None = None) -> Call[AuditPage]:
    """One page of the audit log, newest first."""
    query = {"limit": limit, "cursor": cursor, "tenant": tenant}
    return Call("GET", "/v1/audit", as_object, _given(query))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _quoted(part: str) -> str:
    return quote(part, safe="", errors="replace")
