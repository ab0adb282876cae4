"""Put, list and delete the credentials with which a tenant's jobs read models and texts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path

from api.access import AdminDep
from api.routes import guarded, problems
from api.routes.tenants import TenantName
from api.schemas.credentials import Credential, CredentialList, NewCredential
from api.services import ServicesDep
from service.credentials import seal
from service.domain.spec.fields import NAME_PATTERN

router = APIRouter(
    prefix="/v1/tenants/{tenant}/credentials", tags=["access"], responses=guarded(404)
)

CredentialName = Annotated[
    str, Path(pattern=NAME_PATTERN, description="The credential's name, which you choose.")
]
EXAMPLES = {
    "hub": {
        "summary": "A token of the hub",
        "value": {"kind": "hub", "token": "hf_0123456789abcdefghijklmnopqrstuvwx"},
    },
    "s3": {
        "summary": "Keys of a bucket on Amazon",
        "value": {
            "kind": "s3",
            "prefixes": ["s3://team-a/models", "s3://team-a/texts"],
            "access_key_id": "AKIAIOSFODNN7EXAMPLE",
            "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "endpoint": "https://s3.eu-central-1.amazonaws.com",
            "region": "eu-central-1",
        },
    },
}


@router.put(
    "/{credential}", summary="Put a credential", responses=problems(400, 408, 409, 413, 415)
)
def put_credential(
    tenant: TenantName,
    credential: CredentialName,
    new: Annotated[NewCredential, Body(openapi_examples=EXAMPLES)],
    services: ServicesDep,
    caller: AdminDep,  # noqa: ARG001
) -> Credential:
    """Keep it, encrypted, in the place of the tenant's one of this name, if there is one.

    No answer shows its secrets. Jobs use it from their next attempt on.
    """
    made = new.of(tenant, credential, services.settings.hub_endpoint)
    return Credential.shown(services.store.credentials.put(made, seal(made, services.settings)))


@router.get("", summary="List a tenant's credentials")
def list_credentials(tenant: TenantName, services: ServicesDep, caller: AdminDep) -> CredentialList:  # noqa: ARG001
    """By name, without their secrets."""
    found = services.store.credentials.list_credentials(tenant)
    return CredentialList(credentials=[Credential.shown(each) for each in found])


@router.get("/{credential}", summary="Get a credential")
def get_credential(
    tenant: TenantName,
    credential: CredentialName,
    services: ServicesDep,
    caller: AdminDep,  # noqa: ARG001
) -> Credential:
    """Without its secrets: which places it is for, and when it was put."""
    return Credential.shown(services.store.credentials.get(tenant, credential))


@router.delete("/{credential}", status_code=204, summary="Delete a credential")
def delete_credential(
    tenant: TenantName,
    credential: CredentialName,
    services: ServicesDep,
    caller: AdminDep,  # noqa: ARG001
) -> None:
    """Attempts that run keep what they have; those that begin later do without it."""
    services.store.credentials.delete(tenant, credential)
