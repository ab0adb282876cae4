"""Tenants' credentials over HTTP: they go in, and no answer, log or file shows them again."""

from __future__ import annotations

from asyncio import run
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.services import Services
from service.credentials import open_credentials
from service.domain.credentials import HubToken, S3Keys
from service.domain.job import DEFAULT_TENANT
from service.domain.spec.job import JobSpec
from service.encryption import new_key
from service.errors import ModelInvalid, ModelNotFound
from service.inputs import checks
from service.inputs.models import inspection
from service.settings import Settings
from service.store.store import Store
from tests.fixtures.hub import REVISION, HubServer

HUB: dict[str, Any] = {"kind": "hub", "token": "canary-token"}
S3: dict[str, Any] = {
    "kind": "s3",
    "prefixes": ["s3://team-a/models", "s3://team-a/models/"],
    "access_key_id": "canary-id-AB12",
    "secret_access_key": "canary-secret",
    "session_token": "canary-session",
    "endpoint": "https://s3.test",
    "region": "eu-central-1",
}
PATH = f"/v1/tenants/{DEFAULT_TENANT}/credentials"


@pytest.fixture
def settings(settings: Settings, hub: HubServer) -> Settings:
    key = SecretStr(new_key())
    return settings.model_copy(update={"credentials_key": key, "hub_endpoint": hub.endpoint})


@pytest.fixture
def put(client: TestClient) -> Callable[[str, dict[str, Any]], Any]:
    return lambda name, body: client.put(f"{PATH}/{name}", json=body)


def test_no_answer_has_a_secret(client: TestClient, put: Any, settings: Settings) -> None:
    answers = [put("bucket", S3), put("hub", HUB), client.get(PATH), client.get(f"{PATH}/bucket")]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert "canary" not in " ".join(f"{answer.text} {answer.headers}" for answer in answers)
    bucket, hub, listed, shown = (answer.json() for answer in answers)
    assert listed["credentials"] == [bucket, hub]
    assert shown == bucket
    assert bucket.pop("created_at")
    assert bucket == {
        "name": "bucket",
        "kind": "s3",
        "endpoint": "https://s3.test",
        "prefixes": ["s3://team-a/models/"],
        "region": "eu-central-1",
        "key_id_end": "AB12",
    }
    assert (hub["kind"], hub["endpoint"], hub["prefixes"]) == ("hub", settings.hub_endpoint, None)
    assert hub["key_id_end"] is None


def test_jobs_get_what_was_put(put: Any, store: Store, settings: Settings) -> None:
    put("hub", HUB)
    put("bucket", S3)
    keys, token = open_credentials(store.users(DEFAULT_TENANT).reach().sealed, settings).held
    assert isinstance(keys, S3Keys)
    assert isinstance(token, HubToken)
    assert keys.secrets == ("canary-id-AB12", "canary-secret", "canary-session")
    assert token.token.get_secret_value() == "canary-token"
    put("hub", HUB | {"token": "canary-rotated"})
    token = open_credentials(store.users(DEFAULT_TENANT).reach().sealed, settings).held[1]
    assert token.secrets == ("canary-rotated",)


def test_neither_the_files_nor_the_logs_of_the_api_have_a_secret(
    client: TestClient,
    put: Any,
    settings: Settings,
    store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(0)
    put("bucket", S3)
    put("hub", HUB)
    put("hub", HUB | {"tokne": "canary-typo"})
    client.delete(f"{PATH}/hub")
    kept = b"".join(path.read_bytes() for path in settings.data_dir.rglob("*") if path.is_file())
    assert b"s3://team-a/models/" in kept
    assert b"canary" not in kept
    assert "canary" not in caplog.text
    records = store.audit.list_records(limit=10)
    assert [each.action for each in records] == ["delete_credential"] + ["put_credential"] * 2
    assert records[0].subject == f"{PATH}/hub"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (HUB | {"tokne": "canary"}, "tokne"),
        (HUB | {"token": "canary\r\nX-Header: 1"}, "token"),
        (HUB | {"token": ["canary"]}, "token"),
        (HUB | {"token": "canary"}, "token"),  # too short
        (HUB | {"token": "canary" * 1000}, "token"),
        (HUB | {"endpoint": "https://user:canary@hub.test"}, "endpoint"),
        (HUB | {"endpoint": "https://hub.test?token=canary"}, "endpoint"),
        (HUB | {"endpoint": "file:///etc/canary"}, "endpoint"),
        (HUB | {"kind": "canary"}, "kind"),
        ({"kind": "hub", "tokne": "canary-token"}, "token"),
        (S3 | {"prefixes": []}, "prefixes"),
        (S3 | {"prefixes": ["canary"]}, "prefixes.0"),
        (S3 | {"secret_access_key": "canary secret"}, "secret_access_key"),
        (S3 | {"session_token": "canary\0session"}, "session_token"),
        (S3 | {"region": "canary.evil/"}, "region"),
    ],
)
def test_a_problem_repeats_nothing_of_the_body(put: Any, body: dict[str, Any], param: str) -> None:
    refused = put("name", body)
    assert (refused.status_code, refused.json()["param"]) == (422, param)
    assert "canary" not in refused.text


def test_two_credentials_for_the_same_place(client: TestClient, put: Any) -> None:
    assert put("one", HUB).status_code == 200
    refused = put("two", HUB)
    assert (refused.status_code, refused.json()["code"]) == (409, "credential_conflict")
    assert client.delete(f"{PATH}/one").status_code == 204
    assert put("two", HUB).status_code == 200


def test_what_is_not_there(client: TestClient, put: Any) -> None:
    assert put("hub", HUB).status_code == 200
    for method in ("GET", "DELETE"):
        answer = client.request(method, f"{PATH}/none")
        assert (answer.status_code, answer.json()["code"]) == (404, "credential_not_found")
    for method, path in (("GET", ""), ("GET", "/hub"), ("PUT", "/hub"), ("DELETE", "/hub")):
        answer = client.request(method, f"/v1/tenants/none/credentials{path}", json=HUB)
        assert (answer.status_code, answer.json()["code"]) == (404, "tenant_not_found")


def test_without_a_key_nothing_is_kept(
    client: TestClient, put: Any, settings: Settings, store: Store
) -> None:
    object.__setattr__(settings, "credentials_key", None)
    refused = put("hub", HUB)
    assert (refused.status_code, refused.json()["code"]) == (503, "encryption_key_missing")
    assert "EIGENPRESS_CREDENTIALS_KEY" in refused.json()["detail"]
    assert "Retry-After" not in refused.headers
    assert store.credentials.sealed() == []
    assert client.get(PATH).json() == {"credentials": []}


class TestSubmission:
    """Of a job on a private model of the hub."""

    @pytest.fixture
    def body(
        self, hub: HubServer, job_body: dict[str, Any], model_folder: Any, put: Any
    ) -> dict[str, Any]:
        assert put
        files = {path.name: path.read_bytes() for path in model_folder.iterdir()}
        hub.add("model", "team-a/private", files)
        hub.tokens["team-a/private"] = {"canary-token"}
        model = {"source": "hub", "id": "team-a/private", "revision": REVISION}
        return job_body | {"model": model}

    def test_it_is_checked_with_the_tenants_token(
        self, client: TestClient, put: Any, body: dict[str, Any]
    ) -> None:
        refused = client.post("/v1/jobs", json=body)
        assert (refused.status_code, refused.json()["code"]) == (422, "model_not_found")
        assert "asks for a token" in refused.json()["detail"]
        put("hub", HUB)
        assert client.post("/v1/estimates", json=body).json()["problems"] == []
        accepted = client.post("/v1/jobs", json=body)
        assert accepted.status_code == 201
        assert "canary" not in accepted.text
        put("hub", HUB | {"token": "another-token"})
        refused = client.post("/v1/jobs", json=body)
        assert refused.json()["code"] == "model_not_found"
        assert "credential 'hub'" in refused.json()["detail"]
        assert "another-token" not in refused.text
        problems = client.post("/v1/estimates", json=body).json()["problems"]
        assert [each["code"] for each in problems] == ["model_not_found"]

    def test_another_tenant_does_not_learn_what_the_api_knows_of_the_model(
        self,
        client: TestClient,
        put: Any,
        body: dict[str, Any],
        services: Services,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        asked = []

        def ask(request: object) -> ModelInvalid:
            asked.append(request)
            return ModelInvalid("something is wrong inside", param="model")

        monkeypatch.setattr(checks, "inspect_model", inspection.inspect_model)
        monkeypatch.setattr(inspection, "available", lambda: True)
        monkeypatch.setattr(inspection, "_KNOWN", {})
        monkeypatch.setattr(inspection._INSPECTOR, "ask", ask)
        put("hub", HUB)
        for _ in range(2):
            refused = client.post("/v1/jobs", json=body).json()
            assert (refused["code"], refused["detail"]) == (
                "model_invalid",
                "something is wrong inside",
            )
        assert len(asked) == 1
        others = services.store.users("other")
        findings = run(services.checks.find(JobSpec.model_validate(body), others))
        assert findings.headers is None
        assert [type(each) for each in findings.refusals] == [ModelNotFound]

    def test_a_key_that_is_missing_is_named(
        self, client: TestClient, put: Any, body: dict[str, Any], settings: Settings
    ) -> None:
        put("hub", HUB)
        object.__setattr__(settings, "credentials_key", None)
        refused = client.post("/v1/jobs", json=body)
        assert (refused.status_code, refused.json()["code"]) == (503, "encryption_key_missing")
