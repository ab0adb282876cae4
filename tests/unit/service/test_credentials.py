"""Tenants' credentials at rest: what the database has of them, and who can open them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import update

from service.credentials import all_secrets, open_credentials, seal
from service.domain.credentials import NO_CREDENTIALS, Credential, HubToken, S3Keys
from service.domain.tenant import Limits, Places
from service.encryption import Encryption, new_key
from service.errors import EncryptionKeyMissing, EncryptionKeyWrong
from service.settings import Settings
from service.store import tables
from service.store.store import Store

KEY = new_key()
SETTINGS = Settings(credentials_key=SecretStr(KEY))
TOKEN = HubToken("a", "hub", "https://hub.test", SecretStr("canary-token"))
KEYS = S3Keys(
    "a",
    "bucket",
    ("s3://team-a/",),
    SecretStr("canary-key-id"),
    SecretStr("canary-secret"),
    SecretStr("canary-session"),
    "https://s3.test",
    "eu-central-1",
)


@pytest.fixture
def store(job_store: Store) -> Store:
    for tenant in ("a", "b"):
        job_store.tenants.create(tenant, Limits(), Places())
    return job_store


def put(store: Store, credential: Credential, settings: Settings = SETTINGS) -> None:
    store.credentials.put(credential, seal(credential, settings))


def test_what_was_put_is_opened_for_its_tenant_alone(store: Store) -> None:
    put(store, TOKEN)
    put(store, KEYS)
    assert open_credentials(store.users("a").reach().sealed, SETTINGS).held == (KEYS, TOKEN)
    assert open_credentials(store.users("b").reach().sealed, SETTINGS) == NO_CREDENTIALS
    assert all_secrets(store, SETTINGS) == {*TOKEN.secrets, *KEYS.secrets}


def test_the_database_has_no_secret(store: Store, tmp_path: Path) -> None:
    put(store, TOKEN)
    put(store, KEYS)
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("jobs.db*"))
    assert b"s3://team-a/" in kept
    assert kept.count(b"canary") == 0
    assert b"y-id" in kept  # the end of the access key id, which is shown


def test_a_credential_that_was_moved_to_another_tenant_or_name_opens_nothing(store: Store) -> None:
    put(store, TOKEN)
    rows = tables.credentials
    for values in ({"tenant": "b"}, {"tenant": "a", "name": "other"}):
        with store._database.writing() as connection:
            connection.execute(update(rows).values(**values))
        tenant = values["tenant"]
        with pytest.raises(EncryptionKeyWrong, match=f"of the tenant {tenant} cannot be read"):
            open_credentials(store.users(tenant).reach().sealed, SETTINGS)


def test_without_the_key_a_tenant_with_credentials_reads_nothing(store: Store) -> None:
    put(store, TOKEN)
    for act in (
        lambda settings: open_credentials(store.users("a").reach().sealed, settings),
        lambda settings: all_secrets(store, settings),
    ):
        with pytest.raises(EncryptionKeyMissing, match="EIGENPRESS_CREDENTIALS_KEY"):
            act(Settings())
        with pytest.raises(EncryptionKeyWrong, match=r"'hub' of the tenant a .* store it again"):
            act(Settings(credentials_key=SecretStr(new_key())))
    assert open_credentials(store.users("b").reach().sealed, Settings()) == NO_CREDENTIALS
    with pytest.raises(EncryptionKeyMissing, match="EIGENPRESS_CREDENTIALS_KEY"):
        put(store, TOKEN, Settings(encryption_key=SecretStr(KEY)))


def test_a_new_key_in_front_of_the_old_one(store: Store) -> None:
    put(store, TOKEN)
    new = new_key()
    both = Settings(credentials_key=SecretStr(f"{new},{KEY}"))
    (opened,) = open_credentials(store.users("a").reach().sealed, both).held
    put(store, opened, both)
    only_new = Settings(credentials_key=SecretStr(new))
    assert open_credentials(store.users("a").reach().sealed, only_new).held == (TOKEN,)


def test_what_another_version_has_sealed_is_not_repeated(store: Store) -> None:
    sealed = Encryption(SecretStr(KEY)).encrypt('{"tenant": "a", "name": "hub", "canary": 1}')
    store.credentials.put(TOKEN, sealed)
    with pytest.raises(EncryptionKeyWrong, match="cannot be read") as caught:
        open_credentials(store.users("a").reach().sealed, SETTINGS)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_credentials_survive_a_restart(store: Store, database_url: str) -> None:
    put(store, KEYS)
    with closing(Store(database_url)) as again:
        assert open_credentials(again.users("a").reach().sealed, SETTINGS).held == (KEYS,)
