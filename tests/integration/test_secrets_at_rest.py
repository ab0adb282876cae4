"""A dump of PostgreSQL has no secret, whatever went through the API: in no form that gives it back.

The API runs on the database; what it shows besides its secrets is in the dump.
"""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.access import COOKIE
from api.app import create_app
from service.domain.keys import key_sha256
from service.domain.sign_in import sign_in_code
from service.encryption import new_key
from service.settings import Settings
from service.standalone.ports import choose_port
from service.standalone.s3_server import LocalS3
from tests.fixtures.postgres import PostgresServer, postgres_binaries

ADMIN_KEY = f"ep_{secrets.token_hex(32)}"
TENANT = "team-a"
HUB = "https://hub.test"
PREFIX = "s3://team-a/models/"


@pytest.fixture
def settings(
    tmp_path: Path,
    allowed_root: Path,
    local_s3: LocalS3,
    postgres_server: PostgresServer,
    postgres_url: str,
) -> Settings:
    password = postgres_server.password
    return Settings(
        data_dir=tmp_path / "data",
        database_url=postgres_url.replace("+psycopg", "").replace(f":{password}@", "@"),
        database_password=SecretStr(password),
        allowed_roots=(allowed_root,),
        ray_address=f"http://127.0.0.1:{choose_port(0, '')}",
        s3_endpoint_url=local_s3.endpoint_url,
        s3_access_key_id=SecretStr(local_s3.access_key_id),
        s3_secret_access_key=SecretStr(local_s3.secret_access_key),
        require_keys=True,
        admin_key=SecretStr(ADMIN_KEY),
        encryption_key=SecretStr(new_key()),
        credentials_key=SecretStr(new_key()),
        metrics_token=SecretStr(secrets.token_hex(32)),
    )


@pytest.fixture
def client(settings: Settings, without_inspection: None) -> Iterator[TestClient]:  # noqa: ARG001
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as made:
        yield made


def dump_of(settings: Settings) -> str:
    """All rows of the database, as `pg_dump` writes them."""
    assert settings.database_url is not None
    assert settings.database_password is not None
    return subprocess.run(
        [postgres_binaries() / "pg_dump", "--inserts", f"--dbname={settings.database_url}"],
        env={**os.environ, "PGPASSWORD": settings.database_password.get_secret_value()},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def leaks(dump: str, hidden: Mapping[str, str | bytes]) -> set[tuple[str, str]]:
    """Which of these secrets are in the dump, and in which form."""
    lower = dump.lower()
    found = set()
    for name, secret in hidden.items():
        content = secret if isinstance(secret, bytes) else secret.encode()
        if isinstance(secret, str) and secret in dump:
            found.add((name, "plain"))
        if content.hex() in lower:
            found.add((name, "hex"))
        if any(each in dump for each in base64_parts(content)):
            found.add((name, "base64"))
    return found


def base64_parts(content: bytes) -> Iterator[str]:
    """What base64 makes of the content, wherever it stands in a longer text, in both alphabets."""
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(content)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + content).decode()[first:last]


def settings_secrets(settings: Settings) -> dict[str, str]:
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {
        name: value.get_secret_value()
        for name, value in values.items()
        if isinstance(value, SecretStr)
    }


def answer(response: Any) -> dict[str, Any]:
    assert response.is_success, response.text
    body: dict[str, Any] = response.json()
    return body


def use_keys(client: TestClient, job_body: dict[str, Any]) -> tuple[dict[str, str], set[str]]:
    """Make a key and submit a job with it; sign in. Secrets, and what may be in the dump."""
    answer(client.post("/v1/tenants", json={"name": TENANT}))
    new = {"scope": "submitter", "tenant": TENANT, "name": "laptop-of-mine"}
    made = answer(client.post("/v1/keys", json=new))
    headers = {"Authorization": f"Bearer {made['key']}", "Idempotency-Key": "marker-of-a-request"}
    job = answer(client.post("/v1/jobs", json=job_body, headers=headers))
    revoked = answer(client.post("/v1/keys", json=new | {"name": "lost"}))
    answer(client.delete(f"/v1/keys/{revoked['id']}"))
    code = sign_in_code(ADMIN_KEY)
    signed_in = client.get("/sign-in", params={"code": code}, follow_redirects=False)
    assert signed_in.cookies[COOKIE] == ADMIN_KEY
    hidden = {"sign-in code": code}
    for name, key in (("key", made["key"]), ("revoked key", revoked["key"])):
        hidden |= {name: key, f"secret of the {name}": key.rpartition("_")[2]}
    shown = {made["id"], made["name"], key_sha256(made["key"]), job["id"], "marker-of-a-request"}
    return hidden, shown | {revoked["id"], "revoke_key"}


def use_webhook(client: TestClient) -> tuple[dict[str, str | bytes], set[str]]:
    url = "https://hooks.example.com/eigenpress"
    made = answer(client.post("/v1/webhooks", json={"url": url, "description": "marker of a hook"}))
    rotated = answer(client.post(f"/v1/webhooks/{made['id']}/rotate"))
    message = answer(client.post(f"/v1/webhooks/{made['id']}/test"))
    hidden: dict[str, str | bytes] = {}
    for name, text in (("webhook's", made["secret"]), ("its next", rotated["secret"])):
        encoded = text.removeprefix("whsec_")
        hidden |= {name: encoded, f"{name}, decoded": base64.b64decode(encoded)}
    return hidden, {made["id"], url, made["description"], message["id"], "rotate_webhook"}


def use_credentials(client: TestClient) -> tuple[dict[str, str], set[str]]:
    """Put two, one of them twice, and one with a mistake."""
    path = f"/v1/tenants/{TENANT}/credentials"
    kinds = ("token", "next token", "key id", "key", "session", "refused")
    hidden = {f"tenant's {kind}": f"canary-{secrets.token_hex(16)}" for kind in kinds}
    first, second, key_id, key, session, refused = hidden.values()
    for token in (first, second):
        answer(client.put(f"{path}/hub", json={"kind": "hub", "endpoint": HUB, "token": token}))
    keys = {
        "kind": "s3",
        "prefixes": [PREFIX],
        "access_key_id": key_id,
        "secret_access_key": key,
        "session_token": session,
        "region": "eu-marker-1",
    }
    put = answer(client.put(f"{path}/bucket", json=keys))
    assert client.put(f"{path}/bucket", json=keys | {"sekret": refused}).status_code == 422
    return hidden, {HUB, PREFIX, "eu-marker-1", f"'{put['key_id_end']}'", "put_credential"}


def test_a_dump_of_the_database_has_no_secret(
    client: TestClient, settings: Settings, job_body: dict[str, Any]
) -> None:
    hidden: dict[str, str | bytes] = {**settings_secrets(settings)}
    assert len(hidden) == 7
    shown: set[str] = set()
    for more, markers in (
        use_keys(client, job_body),
        use_webhook(client),
        use_credentials(client),
    ):
        hidden |= more
        shown |= markers
    dump = dump_of(settings)
    assert {marker for marker in shown if marker not in dump} == set()
    assert leaks(dump, hidden) == set()


def test_a_secret_in_a_dump_is_found(client: TestClient, settings: Settings) -> None:
    """In each form, after and before other bytes."""
    secret = secrets.token_hex(16)
    for number, written in enumerate(
        (
            f"before {secret} after",
            secret.encode().hex().upper(),
            base64.b64encode(f"{secret} after".encode()).decode(),
            base64.b64encode(f"b{secret} after".encode()).decode(),
            base64.urlsafe_b64encode(f"be{secret}after".encode()).decode(),
        )
    ):
        url = f"https://hooks.example.com/{number}"
        made = answer(client.post("/v1/webhooks", json={"url": url, "description": written}))
        form = ("plain", "hex")[number] if number < 2 else "base64"
        assert leaks(dump_of(settings), {"it": secret}) == {("it", form)}, written
        client.delete(f"/v1/webhooks/{made['id']}")
