"""Web pages of other sites can change nothing through a visitor's browser."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from service.settings import Settings

HOSTS = ("127.0.0.1", "localhost", "press.example")


@pytest.fixture
def guarded(services: Any) -> TestClient:
    app = create_app(Settings(allowed_hosts=HOSTS), lambda _: nullcontext(services))
    return TestClient(app, base_url="http://127.0.0.1:8400")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8400", "localhost:1", "PRESS.example", "press.example:443"]
)
def test_allowed_hosts_are_served(guarded: TestClient, host: str) -> None:
    assert guarded.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:8400", "localhost@evil", "[", ""],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_another_name_for_this_machine_is_refused(
    guarded: TestClient, host: str, method: str
) -> None:
    answer = guarded.request(method, "/v1/jobs", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "host_forbidden"


@pytest.mark.parametrize(
    ("require_keys", "host", "status"),
    [
        (True, "any.example", 200),
        (False, "any.example", 403),
        (False, "localhost:8400", 200),
        (False, "127.0.0.1:8400", 200),
        (False, "[::1]:8400", 200),
    ],
)
def test_without_a_list_only_keys_allow_any_host(
    services: Any, require_keys: bool, host: str, status: int
) -> None:
    settings = Settings(allowed_hosts=(), require_keys=require_keys)
    client = TestClient(create_app(settings, lambda _: nullcontext(services)))
    assert client.get("/healthz", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://testserver.evil", "x", "http://[", "//[x]"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/jobs"), ("POST", "/v1/jobs/job-1/cancel"), ("DELETE", "/v1/jobs/job-1")],
)
def test_a_page_of_another_site_changes_nothing(
    client: TestClient, origin: str, method: str, path: str
) -> None:
    answer = client.request(method, path, headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.json()["code"] == "origin_forbidden"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://testserver"},
        {"Origin": "https://press.example", "X-Forwarded-Host": "press.example"},
    ],
)
def test_the_api_s_own_pages_and_programs_are_served(
    client: TestClient, headers: Mapping[str, str]
) -> None:
    assert client.delete("/v1/jobs/job-1", headers=headers).status_code == 404


def test_reading_is_left_to_the_browser(client: TestClient) -> None:
    assert client.get("/healthz", headers={"Origin": "https://evil.example"}).status_code == 200
