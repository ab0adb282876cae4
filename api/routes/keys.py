"""Make, list and revoke API keys."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from api.access import AdminDep, ReaderDep
from api.cursors import decode_cursor, encode_cursor
from api.routes import guarded, makes, problems
from api.schemas.keys import KEY_ID_EXAMPLE, CreatedKey, CurrentKey, Key, KeyPage, NewKey
from api.services import ServicesDep
from service.domain.keys import KEY_ID_PATTERN
from service.domain.spec.fields import NAME_PATTERN

router = APIRouter(prefix="/v1/keys", tags=["access"], responses=guarded())

MAX_KEYS = 200

KeyId = Annotated[
    str, Path(description="The key's id.", openapi_examples={"a key": {"value": KEY_ID_EXAMPLE}})
]
EXAMPLES = {
    "submitter": {
        "summary": "A key for a laptop, for 90 days",
        "value": {"scope": "submitter", "name": "laptop", "expires_in_seconds": 7_776_000},
    },
    "reader": {
        "summary": "A key of another tenant that only reads",
        "value": {"scope": "reader", "tenant": "team-a"},
    },
}


@router.post(
    "",
    status_code=201,
    summary="Make a key",
    responses=problems(400, 404, 408, 413, 415) | makes("key_id", "revoke_key"),
)
def create_key(
    new: Annotated[NewKey, Body(openapi_examples=EXAMPLES)],
    services: ServicesDep,
    caller: AdminDep,  # noqa: ARG001
) -> CreatedKey:
    """The answer shows the key, once: the server keeps only its hash."""
    seconds = new.expires_in_seconds
    lifetime = None if seconds is None else timedelta(seconds=seconds)
    created, text = services.store.keys.create(
        new.tenant, new.scope, name=new.name, lifetime=lifetime
    )
    return CreatedKey(**Key.model_validate(created).model_dump(), key=text)


@router.get("", summary="List keys")
def list_keys(
    services: ServicesDep,
    caller: AdminDep,  # noqa: ARG001
    limit: Annotated[int, Query(ge=1, le=MAX_KEYS)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    tenant: Annotated[
        str | None, Query(pattern=NAME_PATTERN, description="Only keys of this tenant.")
    ] = None,
) -> KeyPage:
    """Those of all tenants, revoked and expired ones too."""
    found = services.store.keys.list_keys(
        tenant=tenant, limit=limit + 1, after=decode_cursor(cursor, KEY_ID_PATTERN)
    )
    page = found[:limit]
    return KeyPage(
        keys=[Key.model_validate(key) for key in page],
        next_cursor=encode_cursor(page[-1].id) if len(found) > limit else None,
    )


@router.get("/current", summary="Show the key of the request")
def current_key(caller: ReaderDep) -> CurrentKey:
    """Whose key it is, and what it allows."""
    who = caller.principal
    return CurrentKey(id=who.key_id, tenant=who.tenant, scope=who.scope)


@router.delete("/{key_id}", summary="Revoke a key", responses=problems(404))
def revoke_key(key_id: KeyId, services: ServicesDep, caller: AdminDep) -> Key:  # noqa: ARG001
    """From now on it is refused. It stays in the list; repeating the request changes nothing."""
    return Key.model_validate(services.store.keys.revoke(key_id))
