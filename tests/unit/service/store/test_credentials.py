"""The tenants' credentials in the database: kept by name, one for each place."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import SecretStr

from service.domain import credentials as domain
from service.domain.credentials import CredentialKind, HubToken, S3Keys
from service.domain.tenant import Limits, Places
from service.errors import CredentialConflict, CredentialNotFound, TenantNotFound
from service.store import credentials as stored
from service.store.credentials import SealedCredential
from service.store.store import Store

HUB = "https://hub.test"
TOKEN = HubToken("a", "hub", HUB, SecretStr("token"))
KEYS = S3Keys("a", "s3", ("s3://a/", "s3://b/x/"), SecretStr("AKIA0123"), SecretStr("secret"))


@pytest.fixture
def two_tenants(job_store: Store) -> Store:
    for tenant in ("a", "b"):
        job_store.tenants.create(tenant, Limits(), Places())
    return job_store


def test_one_is_put_shown_replaced_and_deleted(two_tenants: Store) -> None:
    kept = two_tenants.credentials
    first = kept.put(KEYS, "sealed")
    assert (first.name, first.kind, first.places) == ("s3", CredentialKind.S3, KEYS.prefixes)
    assert (first.endpoint, first.region, first.key_id_end) == (None, None, "0123")
    second = kept.put(replace(KEYS, region="eu", prefixes=("s3://c/",)), "sealed again")
    assert (second.region, second.prefixes) == ("eu", ("s3://c/",))
    assert kept.get("a", "s3") == second
    assert kept.sealed() == [SealedCredential("a", "s3", "sealed again")]
    hub = kept.put(TOKEN, "of the hub")
    assert (hub.places, hub.key_id_end) == ((HUB,), None)
    assert kept.list_credentials("a") == [hub, second]
    assert two_tenants.users("a").reach().sealed[0].sealed == "of the hub"
    kept.delete("a", "s3")
    assert kept.list_credentials("a") == [hub]


def test_those_of_another_tenant_are_apart(two_tenants: Store) -> None:
    kept = two_tenants.credentials
    kept.put(TOKEN, "of a")
    theirs = kept.put(replace(TOKEN, tenant="b"), "of b")
    kept.delete("a", "hub")
    assert kept.list_credentials("b") == [theirs]
    assert two_tenants.users("a").reach().sealed == []
    assert two_tenants.users("b").reach().sealed == [SealedCredential("b", "hub", "of b")]


@pytest.mark.parametrize(
    ("other", "param"),
    [
        (replace(TOKEN, name="other"), "endpoint"),
        (replace(KEYS, name="other", prefixes=("s3://new/", "s3://b/x/")), "prefixes"),
    ],
)
def test_two_are_not_for_the_same_place(
    two_tenants: Store, other: HubToken | S3Keys, param: str
) -> None:
    kept = two_tenants.credentials
    for each in (TOKEN, KEYS):
        kept.put(each, "sealed")
    with pytest.raises(CredentialConflict, match=r"of the tenant a is for \S+ already") as refused:
        kept.put(other, "sealed")
    assert refused.value.param == param
    kept.put(replace(KEYS, name="inner", prefixes=("s3://a/inner/",)), "sealed")
    kept.put(replace(other, tenant="b"), "sealed")


def test_a_tenant_has_not_any_number_of_them(
    two_tenants: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert domain.MAX_CREDENTIALS == 100
    monkeypatch.setattr(stored, "MAX_CREDENTIALS", 1)
    two_tenants.credentials.put(TOKEN, "sealed")
    with pytest.raises(CredentialConflict, match="which is the most"):
        two_tenants.credentials.put(KEYS, "sealed")
    two_tenants.credentials.put(TOKEN, "again")


def test_the_unknown_is_named(two_tenants: Store) -> None:
    kept = two_tenants.credentials
    for act in (kept.get, kept.delete):
        with pytest.raises(CredentialNotFound, match="tenant a has no credential none"):
            act("a", "none")
        with pytest.raises(TenantNotFound):
            act("none", "hub")
    with pytest.raises(TenantNotFound):
        kept.list_credentials("none")
    with pytest.raises(TenantNotFound):
        kept.put(replace(TOKEN, tenant="none"), "sealed")
