"""Webhooks over HTTP: what they answer, and what they never show."""

from __future__ import annotations

import json
import logging
import sqlite3
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from service.domain.job import DEFAULT_TENANT
from service.domain.webhook import MAX_WEBHOOKS, Outcome
from service.encryption import Encryption, new_key
from service.settings import Settings
from service.store.store import Store
from tests.fixtures.webhooks import URL, claim_due
from tests.unit.service.egress.test_urls import FORBIDDEN

JSON = {"Content-Type": "application/json"}
KEY = SecretStr(new_key())
UNKNOWN = "whk-00000000000000000000000000"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"encryption_key": KEY})


def create(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/webhooks", json={"url": URL, **body})
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


def test_the_secret_is_shown_once(client: TestClient) -> None:
    response = client.post("/v1/webhooks", json={"url": URL, "description": "CI"})
    created = response.json()
    assert response.headers["location"] == f"/v1/webhooks/{created['id']}"
    secret = created.pop("secret")
    assert secret.startswith("whsec_")
    assert created == client.get(f"/v1/webhooks/{created['id']}").json()
    assert created | {"id": "", "created_at": ""} == {
        "id": "",
        "url": URL,
        "description": "CI",
        "events": ["job.succeeded", "job.failed", "job.cancelled"],
        "created_at": "",
        "enabled": True,
        "disabled": None,
        "failing_since": None,
    }
    (listed,) = client.get("/v1/webhooks").json()["webhooks"]
    assert listed == created


def test_no_secret_is_in_the_database_or_the_log(
    client: TestClient, settings: Settings, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    created = create(client)
    newer = client.post(f"/v1/webhooks/{created['id']}/rotate").json()["secret"]
    store.webhooks(DEFAULT_TENANT).test(created["id"])
    (message,) = claim_due(store, created["id"])
    assert [Encryption(KEY).decrypt(each) for each in message.encrypted_secrets] == [
        newer,
        created["secret"],
    ]
    with sqlite3.connect(settings.database.removeprefix("sqlite:///")) as database:
        dump = "\n".join(database.iterdump())
    database.close()
    assert created["id"] in dump
    for secret in (created["secret"], newer, KEY.get_secret_value()):
        assert secret not in dump
        assert secret.removeprefix("whsec_") not in dump
        assert secret not in caplog.text


def test_a_url_that_leads_inside_is_refused(client: TestClient) -> None:
    created = create(client)
    for url in FORBIDDEN:
        for method, path in (("POST", "/v1/webhooks"), ("PATCH", f"/v1/webhooks/{created['id']}")):
            body = json.dumps({"url": url})
            response = client.request(method, path, content=body, headers=JSON)
            assert (response.status_code, response.json()["param"]) == (422, "url"), url
    assert response.json()["code"] == "invalid_parameter"  # the last one is too long
    refused = client.post("/v1/webhooks", json={"url": "https://127.0.0.1/"}).json()
    assert refused["code"] == "webhook_url_forbidden"
    assert refused["detail"] == "url: 127.0.0.1 is not a public address."
    assert client.get("/v1/webhooks").json()["webhooks"][0]["url"] == URL


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("url", None),
        ("url", 1),
        ("events", []),
        ("events", ["job.exploded"]),
        ("events", ["step.started"]),
        ("events", "job.failed"),
        ("events", ["job.failed"] * 10),
        ("description", "x" * 501),
        ("description", 1),
        ("secret", "whsec_mine"),
        ("enabled", False),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, field: str, wrong: Any) -> None:
    problem = client.post("/v1/webhooks", json={"url": URL, field: wrong})
    assert problem.status_code == 422
    assert problem.json()["param"].startswith(field)


def test_without_a_key_no_webhook_is_made(client: TestClient, settings: Settings) -> None:
    created = create(client)
    object.__setattr__(settings, "encryption_key", None)
    for response in (
        client.post("/v1/webhooks", json={"url": URL}),
        client.post(f"/v1/webhooks/{created['id']}/rotate"),
    ):
        assert response.status_code == 503
        assert "Retry-After" not in response.headers
        assert response.json()["code"] == "encryption_key_missing"
        assert "EIGENPRESS_ENCRYPTION_KEY" in response.json()["detail"]
    assert client.get("/v1/webhooks").status_code == 200


def test_pages(client: TestClient) -> None:
    made = [create(client)["id"] for _ in range(3)][::-1]
    first = client.get("/v1/webhooks", params={"limit": 2}).json()
    assert [each["id"] for each in first["webhooks"]] == made[:2]
    last = client.get("/v1/webhooks", params={"cursor": first["next_cursor"]}).json()
    assert [each["id"] for each in last["webhooks"]] == made[2:]
    assert last["next_cursor"] is None
    assert client.get("/v1/webhooks", params={"cursor": "x"}).json()["param"] == "cursor"


def test_there_is_a_limit(client: TestClient) -> None:
    for _ in range(MAX_WEBHOOKS):
        create(client)
    refused = client.post("/v1/webhooks", json={"url": URL})
    assert (refused.status_code, refused.json()["code"]) == (409, "webhook_limit_reached")


def test_a_change_is_seen(client: TestClient) -> None:
    path = f"/v1/webhooks/{create(client)['id']}"
    changed = client.patch(
        path,
        json={"url": f"{URL}/2", "events": ["job.failed", "job.failed"], "enabled": False},
    ).json()
    assert (changed["url"], changed["events"]) == (f"{URL}/2", ["job.failed"])
    assert (changed["enabled"], changed["disabled"]) == (False, "user")
    refused = client.post(f"{path}/test")
    assert (refused.status_code, refused.json()["code"]) == (409, "webhook_disabled")
    enabled = client.patch(path, json={"enabled": True, "url": None}).json()
    assert (enabled["enabled"], enabled["url"]) == (True, f"{URL}/2")
    assert client.patch(path, json={"enabled": "yes"}).status_code == 422
    assert "secret" not in enabled


def test_deliveries_and_sending_again(client: TestClient, store: Store) -> None:
    path = f"/v1/webhooks/{create(client)['id']}"
    sent = [client.post(f"{path}/test").json() for _ in range(3)][::-1]
    assert {each["state"] for each in sent} == {"waiting"}
    first = client.get(f"{path}/deliveries", params={"limit": 2}).json()
    assert first["deliveries"] == sent[:2]
    last = client.get(f"{path}/deliveries", params={"cursor": first["next_cursor"]}).json()
    assert last == {"deliveries": sent[2:], "next_cursor": None}
    for message in claim_due(store, path.rpartition("/")[2]):
        store.deliveries.record(message, Outcome(500, "The receiver answered with 500."), 0)
    failed = client.get(f"{path}/deliveries").json()["deliveries"][0]
    assert (failed["attempts"], failed["status_code"]) == (1, 500)
    assert failed["next_attempt_at"] is not None
    assert client.get(path).json()["failing_since"] is not None
    again = client.post(f"{path}/deliveries/{failed['id']}/redeliver")
    assert (again.status_code, again.json()["attempts"]) == (202, 0)
    missing = client.post(f"{path}/deliveries/msg-none/redeliver")
    assert (missing.status_code, missing.json()["code"]) == (404, "delivery_not_found")


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/test"),
        ("POST", "/rotate"),
        ("GET", "/deliveries"),
        ("POST", "/deliveries/msg-1/redeliver"),
    ],
)
def test_unknown_webhooks(client: TestClient, method: str, rest: str) -> None:
    body: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
    gone = create(client)["id"]
    assert client.delete(f"/v1/webhooks/{gone}").status_code == 204
    for name in (UNKNOWN, gone, "%00", "%1b", "job-1"):
        response = client.request(method, f"/v1/webhooks/{name}{rest}", **body)
        assert (response.status_code, response.json()["code"]) == (404, "webhook_not_found")
