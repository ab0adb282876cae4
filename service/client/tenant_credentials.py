"""The operations on tenants' credentials, for `Client.send` and `AsyncClient.send`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from service.client.answers import Credential, CredentialList
from service.client.calls import Call, as_object, sending


def put_hub(tenant: str, name: str, token: str, *, endpoint: str | None = None) -> Call[Credential]:
    """Keep a token of the hub, of the server's own one unless `endpoint` names another."""
    return _put(tenant, name, {"kind": "hub", "token": token, "endpoint": endpoint})


def put_s3(
    tenant: str,
    name: str,
    prefixes: Sequence[str],
    access_key_id: str,
    secret_access_key: str,
    *,
    session_token: str | None = None,
    endpoint: str | None = None,
    region: str | None = None,
) -> Call[Credential]:
    """Keep the keys of places in S3, on the server's own one unless `endpoint` names another."""
    body = {
        "kind": "s3",
        "prefixes": list(prefixes),
        "access_key_id": access_key_id,
        "secret_access_key": secret_access_key,
        "session_token": session_token,
        "endpoint": endpoint,
        "region": region,
    }
    return _put(tenant, name, body)


def credentials(tenant: str) -> Call[CredentialList]:
    """All of a tenant's, without their secrets."""
    return Call("GET", _path(tenant), as_object)


def credential(tenant: str, name: str) -> Call[Credential]:
    return Call("GET", _path(tenant, name), as_object)


def delete(tenant: str, name: str) -> Call[None]:
    return Call("DELETE", _path(tenant, name), lambda _reply: None)


def _put(tenant: str, name: str, body: dict[str, Any]) -> Call[Credential]:
    return sending("PUT", _path(tenant, name), body)


def _path(tenant: str, *name: str) -> str:
    tenant, *rest = (quote(each, safe="", errors="replace") for each in (tenant, *name))
    return "/".join(["/v1/tenants", tenant, "credentials", *rest])
