"""Keys in the database: made, checked, expired, revoked, and their use noted."""

from __future__ import annotations

from datetime import timedelta

import pytest

from service.domain.keys import key_id
from service.domain.principal import Principal, Scope
from service.domain.tenant import EVERY_PLACE, Limits
from service.errors import KeyInvalid, KeyNotFound, TenantNotFound
from service.store import keys
from service.store.database import clock
from service.store.store import Store


@pytest.fixture
def tenant(job_store: Store) -> str:
    return job_store.tenants.create("team-a", Limits(), EVERY_PLACE).name


def after(monkeypatch: pytest.MonkeyPatch, time: timedelta) -> None:
    monkeypatch.setattr(keys, "clock", lambda connection: clock(connection) + time)


def test_a_key_stands_for_its_tenant_and_scope(job_store: Store, tenant: str) -> None:
    made, text = job_store.keys.create(tenant, Scope.READER, name="laptop")
    found = job_store.keys.authenticate(text)
    assert found == Principal(made.id, tenant, Scope.READER, "laptop")
    assert made.id == key_id(text)


def test_a_key_needs_a_tenant(job_store: Store) -> None:
    with pytest.raises(TenantNotFound, match="none"):
        job_store.keys.create("none", Scope.READER)
    assert job_store.keys.list_keys(limit=1) == []


@pytest.mark.parametrize("text", ["", "ep_", "ep_\0", "x" * 9999, "ep_abcdefghijkl_" + 43 * "A"])
def test_what_is_no_key_is_refused(job_store: Store, text: str) -> None:
    with pytest.raises(KeyInvalid):
        job_store.keys.authenticate(text)


def test_the_secret_counts_and_not_the_id_alone(job_store: Store, tenant: str) -> None:
    _, text = job_store.keys.create(tenant, Scope.ADMIN)
    _, other = job_store.keys.create(tenant, Scope.READER)
    forged = text[: -len("A" * 43)] + other[-43:]
    assert key_id(forged) == key_id(text)
    with pytest.raises(KeyInvalid):
        job_store.keys.authenticate(forged)


def test_a_key_expires(job_store: Store, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = job_store.keys.create(tenant, Scope.READER, lifetime=timedelta(minutes=5))
    after(monkeypatch, timedelta(minutes=4))
    job_store.keys.authenticate(text)
    after(monkeypatch, timedelta(minutes=5))
    with pytest.raises(KeyInvalid):
        job_store.keys.authenticate(text)


def test_a_revoked_key_keeps_the_time_of_its_first_revocation(
    job_store: Store, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, text = job_store.keys.create(tenant, Scope.READER)
    first = job_store.keys.revoke(made.id)
    after(monkeypatch, timedelta(hours=1))
    assert job_store.keys.revoke(made.id) == first
    with pytest.raises(KeyInvalid):
        job_store.keys.authenticate(text)


@pytest.mark.parametrize("id_", ["none", "abcdefghijkl", "\0", "\ud800", "x" * 9999])
def test_an_unknown_key_is_not_revoked(job_store: Store, id_: str) -> None:
    with pytest.raises(KeyNotFound) as caught:
        job_store.keys.revoke(id_)
    assert len(str(caught.value)) < 200


def test_the_valid_ones_of_many_keys(
    job_store: Store, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked, kept = (job_store.keys.create(tenant, Scope.READER)[0].id for _ in range(2))
    expiring, _ = job_store.keys.create(tenant, Scope.READER, lifetime=timedelta(seconds=60))
    job_store.keys.create(tenant, Scope.READER)
    job_store.keys.revoke(revoked)
    asked = {revoked, kept, expiring.id, "unknown"}
    assert job_store.keys.valid(asked) == {kept, expiring.id}
    after(monkeypatch, timedelta(seconds=60))
    assert job_store.keys.valid(asked) == {kept}


def test_the_last_use_is_noted_once_a_minute(
    job_store: Store, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = job_store.keys.create(tenant, Scope.READER)

    def last_used_after(time: timedelta) -> object:
        after(monkeypatch, time)
        job_store.keys.authenticate(text)
        (shown,) = job_store.keys.list_keys(limit=2)
        return shown.last_used_at

    first = last_used_after(timedelta())
    assert first is not None
    assert last_used_after(timedelta(seconds=50)) == first
    assert last_used_after(timedelta(seconds=70)) != first


def test_keys_of_one_tenant_in_pages(job_store: Store, tenant: str) -> None:
    job_store.tenants.create("other", Limits(), EVERY_PLACE)
    mine = sorted(job_store.keys.create(tenant, Scope.READER)[0].id for _ in range(3))
    job_store.keys.create("other", Scope.READER)
    page = job_store.keys.list_keys(tenant=tenant, limit=2)
    rest = job_store.keys.list_keys(tenant=tenant, limit=2, after=page[-1].id)
    assert [key.id for key in page + rest] == mine
    assert len(job_store.keys.list_keys(limit=9)) == 4
