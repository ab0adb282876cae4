"""The whole application: its documents, and the resources that it opens and closes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from service.domain.patch import JobPatch
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
        "PATCH /v1/jobs/{job_id}",
        "DELETE /v1/jobs/{job_id}",
        "POST /v1/jobs/{job_id}/cancel",
        "POST /v1/jobs/{job_id}/retry",
        "GET /v1/jobs/{job_id}/events",
        "GET /v1/jobs/{job_id}/logs",
        "GET /v1/jobs/{job_id}/artifacts",
        "GET /v1/jobs/{job_id}/artifacts/{name}",
        "GET /v1/jobs/{job_id}/artifacts/{name}/files/{path}",
        "HEAD /v1/jobs/{job_id}/artifacts/{name}/files/{path}",
        "GET /v1/jobs/{job_id}/report",
        "GET /v1/jobs/{job_id}/report.html",
        "POST /v1/webhooks",
        "GET /v1/webhooks",
        "GET /v1/webhooks/{webhook_id}",
        "PATCH /v1/webhooks/{webhook_id}",
        "DELETE /v1/webhooks/{webhook_id}",
        "POST /v1/webhooks/{webhook_id}/rotate",
        "POST /v1/webhooks/{webhook_id}/test",
        "GET /v1/webhooks/{webhook_id}/deliveries",
        "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver",
        "POST /v1/keys",
        "GET /v1/keys",
        "GET /v1/keys/current",
        "DELETE /v1/keys/{key_id}",
        "POST /v1/tenants",
        "GET /v1/tenants",
        "GET /v1/tenants/{tenant}",
        "PUT /v1/tenants/{tenant}",
        "GET /v1/tenants/{tenant}/usage",
        "GET /v1/tenants/{tenant}/credentials",
        "GET /v1/tenants/{tenant}/credentials/{credential}",
        "PUT /v1/tenants/{tenant}/credentials/{credential}",
        "DELETE /v1/tenants/{tenant}/credentials/{credential}",
        "GET /v1/audit",
        "POST /v1/datasets",
        "GET /v1/datasets",
        "GET /v1/datasets/{dataset_id}",
        "DELETE /v1/datasets/{dataset_id}",
        "GET /metrics",
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
    from service.domain.spec.job import JobSpec

    body = _operations(document)["POST /v1/jobs"]["requestBody"]["content"]["application/json"]
    assert body["examples"]
    for example in body["examples"].values():
        JobSpec.model_validate(example["value"])


def test_every_body_has_an_example(document: dict[str, Any]) -> None:
    for name, operation in _operations(document).items():
        content = operation.get("requestBody", {}).get("content", {})
        assert all(body.get("examples") for body in content.values()), name


def test_answers_have_examples_that_are_as_the_document_says(document: dict[str, Any]) -> None:
    seen = 0
    for name, operation in _operations(document).items():
        if not {"jobs", "results", "estimates", "health"} & set(operation["tags"]):
            continue
        for status, response in operation["responses"].items():
            for body in response.get("content", {}).values():
                kind = body["schema"].get("$ref", "").rpartition("/")[2]
                described = document["components"]["schemas"].get(kind, body["schema"])
                found = [body["example"]] if "example" in body else described.get("examples")
                assert found, (name, status)
                schema = {**described, "components": document["components"]}
                for example in found:
                    jsonschema.validate(example, schema)
                    if isinstance(example, dict):  # else a stream
                        assert described.get("properties", example).keys() >= example.keys()
                seen += 1
    assert seen > 50


def test_the_examples_of_changes_are_valid(document: dict[str, Any]) -> None:
    operation = _operations(document)["PATCH /v1/jobs/{job_id}"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    for each in examples.values():
        JobPatch.model_validate(each["value"])


def test_docs_load_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "//" not in "".join(re.findall(r'(?:src|href)="([^"]*)"', page.text))
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) == 3
    for asset in assets:
        assert client.get(asset).status_code == 200


def test_the_root_shows_the_jobs_and_leads_to_the_docs(client: TestClient) -> None:
    page = client.get("/")
    assert "There are no jobs yet" in page.text
    assert 'href="/docs"' in page.text


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
