"""The whole application: its documents, and the resources that it opens and closes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from service.settings import Settings


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    content: dict[str, Any] = client.get("/openapi.json").json()
    return content


def _operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def test_the_routes(document: dict[str, Any]) -> None:
    assert set(_operations(document)) == {
        "POST /v1/jobs",
        "POST /v1/estimates",
        "GET /v1/jobs",
        "GET /v1/jobs/{job_id}",
        "DELETE /v1/jobs/{job_id}",
        "POST /v1/jobs/{job_id}/cancel",
        "POST /v1/jobs/{job_id}/retry",
        "GET /v1/jobs/{job_id}/events",
        "GET /v1/jobs/{job_id}/artifacts",
        "GET /v1/jobs/{job_id}/report",
        "POST /v1/datasets",
        "GET /v1/datasets",
        "GET /v1/datasets/{dataset_id}",
        "DELETE /v1/datasets/{dataset_id}",
        "GET /healthz",
        "GET /readyz",
    }


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    for operation in _operations(document).values():
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]


def test_errors_are_documented_as_problems(document: dict[str, Any]) -> None:
    for name, operation in _operations(document).items():
        for status, response in operation["responses"].items():
            if int(status) >= 400 and name != "GET /readyz":
                assert list(response["content"]) == ["application/problem+json"]
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_examples_are_valid_jobs(document: dict[str, Any]) -> None:
    from service.domain.spec import JobSpec

    body = _operations(document)["POST /v1/jobs"]["requestBody"]["content"]["application/json"]
    assert body["examples"]
    for example in body["examples"].values():
        JobSpec.model_validate(example["value"])


def test_docs_load_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "//" not in "".join(re.findall(r'(?:src|href)="([^"]*)"', page.text))
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) == 3
    for asset in assets:
        assert client.get(asset).status_code == 200


def test_the_root_leads_to_the_docs(client: TestClient) -> None:
    assert client.get("/").url.path == "/docs"


def test_the_lifespan_creates_the_database_and_needs_neither_s3_nor_ray(
    settings: Settings,
) -> None:
    assert not settings.data_dir.exists()
    with TestClient(create_app(settings)) as client:
        assert client.get("/v1/jobs").json() == {"jobs": [], "next_cursor": None}
    assert (settings.data_dir / "eigenpress.db").is_file()


def test_settings_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EIGENPRESS_DATA_DIR", str(tmp_path / "elsewhere"))
    with TestClient(create_app()) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
    assert (tmp_path / "elsewhere" / "eigenpress.db").is_file()
