"""Clients of an S3 server sign with the tenant's keys, if there are any, and with no others."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from service.domain.credentials import S3Keys
from service.settings import Settings
from service.storage.clients import Connector

SETTINGS = Settings(
    s3_access_key_id=SecretStr("our-id"),
    s3_secret_access_key=SecretStr("our-secret"),
    s3_region="eu-west-1",
)


def keys(**others: object) -> S3Keys:
    given = {"access_key_id": SecretStr("id"), "secret_access_key": SecretStr("secret")}
    return S3Keys(tenant="t", name="n", prefixes=("s3://b/",), **(given | others))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "signs"),
    [
        (None, ("our-id", "our-secret", None, "eu-west-1")),
        (keys(), ("id", "secret", None, "eu-west-1")),
        (
            keys(session_token=SecretStr("session"), region="us-east-2"),
            ("id", "secret", "session", "us-east-2"),
        ),
    ],
)
def test_what_a_client_signs_with(
    given: S3Keys | None, signs: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of the environment")
    connector = Connector(SETTINGS, given)
    found = connector._session.get_credentials()
    assert (found.access_key, found.secret_key, found.token, connector.region) == signs
    client = connector("http://127.0.0.1:9", 1)
    query = client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    assert f"X-Amz-Credential={signs[0]}%2F" in query
    assert f"%2F{signs[3]}%2Fs3%2F" in query
    assert ("X-Amz-Security-Token=session" in query) is (signs[2] == "session")
