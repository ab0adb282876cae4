"""Secrets do not leave the service in logs."""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr

from service.credentials import seal
from service.domain.credentials import HubToken
from service.domain.tenant import Limits, Places
from service.encryption import new_key
from service.errors import EncryptionKeyMissing
from service.logs.mask import Mask
from service.settings import Settings
from service.store.store import Store

SETTINGS = Settings(
    database_url="postgresql://eigenpress@db/jobs",
    database_password=SecretStr("canary of/the database"),
    s3_access_key_id=SecretStr("canary-key-id"),
    s3_secret_access_key=SecretStr("canary.secret+key"),
)
ENVIRONMENT = {
    "RAY_AUTH_TOKEN": "canary-token",
    "AWS_SESSION_TOKEN": "canary-session",
    "HF_TOKEN": "canary-hub",
    "HOME": "/home/canary-is-no-secret",
}


@pytest.mark.parametrize(
    "secret",
    [
        "canary of/the database",
        "canary%20of%2Fthe%20database",
        "canary-key-id",
        "canary.secret+key",
        "canary-token",
        "canary-session",
        "canary-hub",
    ],
)
def test_each_secret_of_the_installation_is_masked(secret: str) -> None:
    text = f"it is {secret}, twice: {secret}\n".encode()
    masked = Mask.of(SETTINGS, ENVIRONMENT)(text)
    assert secret.encode() not in masked
    assert masked.count(b"*") == 2 * len(secret)
    assert len(masked) == len(text)
    assert masked.startswith(b"it is *")


def test_what_looks_like_a_secret_is_masked_whoever_made_it() -> None:
    text = (
        b"GET https://s3/b/k?X-Amz-Credential=A%2F1&X-Amz-Signature=0123abcd&X-Amz-Date=2\n"
        b"Authorization: Bearer eyJ.x-y\n"
        b"postgresql+psycopg://user:pass%20word@db:5432/jobs\n"
    )
    masked = Mask(())(text)
    assert masked == (
        b"GET https://s3/b/k?X-Amz-Credential=A%2F1&X-Amz-Signature=********&X-Amz-Date=2\n"
        b"Authorization: Bearer *******\n"
        b"postgresql+psycopg://****************@db:5432/jobs\n"
    )


def test_a_password_in_the_databases_address_is_masked() -> None:
    settings = Settings(database_url="postgresql://eigenpress:canary@db/jobs")
    assert Mask.of(settings, {})(b"password=canary host=db") == b"password=****** host=db"


def test_other_words_stay() -> None:
    text = "s3://bucket/key of /home/canary-is-no-secret: größer, 12:30@home\n".encode()
    assert Mask.of(SETTINGS, ENVIRONMENT)(text) == text
    assert Mask(["", "abc"])(b"abc") == b"abc"


def test_credentials_of_tenants_are_masked_as_soon_as_there_are_any(job_store: Store) -> None:
    settings = SETTINGS.model_copy(update={"credentials_key": SecretStr(new_key())})
    mask = Mask.of(settings, {}, store=job_store)
    text = b"Bearer: canary-of-a-tenant; canary-key-id"
    assert mask(text) == b"Bearer: canary-of-a-tenant; *************"
    job_store.tenants.create("team-a", Limits(), Places())
    token = HubToken("team-a", "hub", "https://hub.test", SecretStr("canary-of-a-tenant"))
    job_store.credentials.put(token, seal(token, settings))
    assert mask(text) == b"Bearer: ******************; *************"
    with pytest.raises(EncryptionKeyMissing):
        Mask.of(SETTINGS, {}, store=job_store)(text)
    job_store.credentials.delete("team-a", "hub")
    assert Mask.of(SETTINGS, {}, store=job_store)(b"text") == b"text"


def test_a_secret_is_masked_in_a_line_of_json() -> None:
    secret = 'can"ary\\größer'
    line = json.dumps({"message": f"the key is {secret}, and so on"}).encode()
    masked = Mask([secret])(line)
    asterisks = "*" * len(json.dumps(secret).strip('"'))
    assert len(masked) == len(line)
    assert json.loads(masked) == {"message": f"the key is {asterisks}, and so on"}
