"""Every answer has the server's version, whoever in the application gives it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.services import Services
from service.client.versions import VERSION, VERSION_HEADER
from service.store.store import Store


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/v1/jobs", 200),
        ("GET", "/v1/jobs?limit=0", 422),
        ("GET", "/v1/jobs/job-none", 404),
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/jobs", 405),
        ("GET", "/", 200),
    ],
)
def test_of_routes_and_refusals(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path, follow_redirects=False)
    assert response.status_code == status
    assert response.headers.get_list(VERSION_HEADER) == [VERSION]


def test_of_middleware(services: Services) -> None:
    settings = services.settings.model_copy(update={"allowed_hosts": ("press.example",)})
    with TestClient(create_app(settings, lambda _: nullcontext(services))) as client:
        response = client.get("/healthz")
    assert (response.status_code, response.headers[VERSION_HEADER]) == (403, VERSION)


def test_of_a_defect(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(Store, "users", broken)
    response = client.get("/v1/jobs")
    assert response.status_code == 500
    assert response.headers.get_list(VERSION_HEADER) == [VERSION]
