"""Make, change and list tenants."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from api.access import AdminDep
from api.cursors import decode_cursor, encode_cursor
from api.routes import guarded, makes, problems
from api.schemas.tenants import NewTenant, Tenant, TenantPage, TenantSettings, Usage
from api.services import ServicesDep
from service.domain.spec.fields import NAME_PATTERN

router = APIRouter(prefix="/v1/tenants", tags=["access"], responses=guarded())

MAX_TENANTS = 200

TenantName = Annotated[str, Path(pattern=NAME_PATTERN, description="The tenant's name.")]

SETTINGS = {
    "max_queued_jobs": 20,
    "max_stored_bytes": 10**12,
    "allowed_roots": ["/data/team-a"],
    "allowed_s3_prefixes": ["s3://team-a/"],
}
NEW_EXAMPLES = {
    "limited": {"summary": "With limits", "value": {"name": "team-a"} | SETTINGS},
    "plain": {"summary": "Without limits of its own", "value": {"name": "team-b"}},
}
EXAMPLES = {"limited": {"summary": "With limits", "value": SETTINGS}}


@router.post(
    "",
    status_code=201,
    summary="Make a tenant",
    responses=problems(400, 408, 409, 413, 415)
    | makes("tenant", "get_tenant", "change_tenant", "tenant_usage", named="name"),
)
def create_tenant(
    new: Annotated[NewTenant, Body(openapi_examples=NEW_EXAMPLES)],
    services: ServicesDep,
    caller: AdminDep,  # noqa: ARG001
) -> Tenant:
    """A tenant's jobs, datasets and results are invisible to all others."""
    return Tenant.of(services.store.tenants.create(new.name, new.limits(), new.places()))


@router.get("", summary="List tenants")
def list_tenants(
    services: ServicesDep,
    caller: AdminDep,  # noqa: ARG001
    limit: Annotated[int, Query(ge=1, le=MAX_TENANTS)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> TenantPage:
    """By name."""
    found = services.store.tenants.list_tenants(
        limit=limit + 1, after=decode_cursor(cursor, NAME_PATTERN)
    )
    page = found[:limit]
    return TenantPage(
        tenants=[Tenant.of(tenant) for tenant in page],
        next_cursor=encode_cursor(page[-1].name) if len(found) > limit else None,
    )


@router.get("/{tenant}", summary="Get a tenant", responses=problems(404))
def get_tenant(tenant: TenantName, services: ServicesDep, caller: AdminDep) -> Tenant:  # noqa: ARG001
    """Its limits, and the places that its jobs may read."""
    return Tenant.of(services.store.tenants.get(tenant))


@router.get("/{tenant}/usage", summary="Get what a tenant has", responses=problems(404))
def tenant_usage(tenant: TenantName, services: ServicesDep, caller: AdminDep) -> Usage:  # noqa: ARG001
    """What counts towards its limits."""
    return Usage.model_validate(services.store.tenants.usage(tenant))


@router.put("/{tenant}", summary="Change a tenant", responses=problems(400, 404, 408, 413, 415))
def change_tenant(
    tenant: TenantName,
    settings: Annotated[TenantSettings, Body(openapi_examples=EXAMPLES)],
    services: ServicesDep,
    caller: AdminDep,  # noqa: ARG001
) -> Tenant:
    """Replace all of its settings; what the body leaves out becomes null. Running jobs go on."""
    return Tenant.of(services.store.tenants.change(tenant, settings.limits(), settings.places()))
