"""The routes about datasets: what they answer, and what they refuse."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api import limits
from api.app import create_app
from api.services import Services
from service.datasets.receiver import Receiver
from service.domain.job import DEFAULT_TENANT
from service.domain.states import JobState
from service.domain.tenant import Limits, Places
from service.store.store import Store
from tests.unit.api.test_limits import answer_to_endless_body
from tests.unit.service.store.test_datasets import uploaded

ROWS = b'{"text": "One."}\n{"text": ""}\n'
UNKNOWN = "ds-" + "0" * 26


def upload(client: TestClient, content: Any = ROWS, **query: str) -> Any:
    return client.post("/v1/datasets", params={"format": "jsonl"} | query, content=content)


@contextmanager
def changed(services: Services, **settings: object) -> Iterator[TestClient]:
    """A client of the application with other settings."""
    other = services.settings.model_copy(update=settings)
    with Receiver(other, services.store, services.storage) as receiver:
        theirs = replace(services, settings=other, receiver=receiver)
        app = create_app(other, lambda _: nullcontext(theirs))
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client


def problem(response: Any) -> tuple[int, str, str | None]:
    body = response.json()
    return response.status_code, body["code"], body["param"]


def in_pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 7):
        yield data[start : start + 7]


@pytest.mark.parametrize("chunked", [True, False])
def test_an_upload_is_answered_with_the_dataset(client: TestClient, chunked: bool) -> None:
    response = upload(client, in_pieces(ROWS) if chunked else ROWS, name="first")
    made = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/datasets/{made['id']}"
    assert (made["name"], made["format"], made["text_field"]) == ("first", "jsonl", "text")
    assert (made["bytes"], made["documents"], made["empty_rows"]) == (len(ROWS), 1, 1)
    assert made["tokens"] is None
    assert client.get(f"/v1/datasets/{made['id']}").json() == made
    assert client.get("/v1/datasets").json() == {"datasets": [made], "next_cursor": None}


def test_a_body_may_be_larger_than_other_routes_allow(client: TestClient) -> None:
    rows = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    response = upload(client, rows * (3 * limits.MAX_BODY_BYTES // len(rows)))
    assert response.status_code == 201


def test_gzip_may_be_declared(client: TestClient) -> None:
    headers = {"Content-Encoding": "gzip"}
    query = {"format": "jsonl"}
    packed = gzip.compress(ROWS)
    response = client.post("/v1/datasets", params=query, content=packed, headers=headers)
    assert response.json()["documents"] == 1


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"format": "csv"}, "format"),
        ({"name": "no name"}, "name"),
        ({"text_field": ""}, "text_field"),
        ({"text_field": "body"}, "text_field"),
    ],
)
def test_a_query_at_fault_is_named(client: TestClient, query: dict[str, str], param: str) -> None:
    response = upload(client, **query)
    assert response.status_code == 422
    assert response.json()["param"] == param


def test_the_format_is_required(client: TestClient) -> None:
    response = client.post("/v1/datasets", content=ROWS)
    assert problem(response) == (422, "invalid_parameter", "format")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\n\n", in_pieces(b"nonsense")])
def test_what_is_no_text_is_refused(client: TestClient, content: Any, storage: Any) -> None:
    assert problem(upload(client, content)) == (422, "data_invalid", None)
    assert client.get("/v1/datasets").json()["datasets"] == []
    assert (storage.objects, storage.uploads) == ({}, {})


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Encoding": "br"}],
    ids=["form", "brotli"],
)
def test_forms_and_other_encodings_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    query = {"format": "jsonl"}
    response = client.post("/v1/datasets", params=query, content=ROWS, headers=headers)
    assert problem(response) == (415, "unsupported_media_type", None)


@pytest.mark.parametrize("declared", [True, False])
def test_too_large(services: Services, storage: Any, declared: bool) -> None:
    with changed(services, max_dataset_bytes=10) as client:
        response = upload(client, ROWS if declared else in_pieces(ROWS))
        assert problem(response) == (413, "dataset_too_large", None)
        assert client.get("/v1/datasets").json()["datasets"] == []
    assert (storage.objects, storage.uploads) == ({}, {})


def test_a_tenant_at_its_limit_uploads_nothing_more(
    client: TestClient, store: Store, storage: Any
) -> None:
    store.tenants.change(DEFAULT_TENANT, Limits(max_stored_bytes=len(ROWS)), Places())
    assert problem(upload(client, ROWS + ROWS)) == (429, "quota_exceeded", None)
    assert (storage.objects, storage.uploads) == ({}, {})
    assert upload(client).status_code == 201
    kept = dict(storage.objects)
    assert problem(upload(client)) == (429, "quota_exceeded", None)
    assert (storage.objects, storage.uploads) == (kept, {})


def test_pages(client: TestClient, store: Store) -> None:
    ids = [uploaded(store).id for _ in range(3)][::-1]
    first = client.get("/v1/datasets", params={"limit": 2}).json()
    cursor = {"cursor": first["next_cursor"]}
    second = client.get("/v1/datasets", params=cursor).json()
    assert [each["id"] for each in (*first["datasets"], *second["datasets"])] == ids
    assert second["next_cursor"] is None
    bad = client.get("/v1/datasets", params={"cursor": "am9iLQ=="})
    assert problem(bad) == (422, "invalid_parameter", "cursor")


def test_an_unknown_dataset(client: TestClient, store: Store) -> None:
    theirs = uploaded(store, "others").id
    for dataset_id in (UNKNOWN, "nonsense", theirs):
        for method in ("GET", "DELETE"):
            response = client.request(method, f"/v1/datasets/{dataset_id}")
            assert problem(response) == (404, "dataset_not_found", None)


def test_a_dataset_in_use_is_kept(
    client: TestClient, job_body: dict[str, Any], store: Store
) -> None:
    made = uploaded(store)
    job_body["calibration"]["data"] = {"source": "dataset", "id": made.id}
    job = client.post("/v1/jobs", json=job_body).json()
    assert job["spec"]["calibration"]["data"] == {"source": "dataset", "id": made.id}
    response = client.delete(f"/v1/datasets/{made.id}")
    assert problem(response) == (409, "dataset_in_use", None)
    assert job["id"] in response.json()["detail"]
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/datasets/{made.id}").status_code == 204
    assert problem(client.delete(f"/v1/datasets/{made.id}"))[0] == 404


@pytest.mark.parametrize("tenant", [None, "others"])
def test_a_job_needs_a_dataset_of_its_own(
    client: TestClient, job_body: dict[str, Any], store: Store, tenant: str | None
) -> None:
    dataset_id = UNKNOWN if tenant is None else uploaded(store, tenant).id
    source = {"source": "dataset", "id": dataset_id}
    question = {"kind": "multiple_choice", "name": "arc", "data": source}
    for change, param in (
        ({"calibration": {"data": source}}, "calibration.data.id"),
        ({"evaluation": {"datasets": [{"name": "w", "data": source}]}}, "evaluation.datasets.0"),
        ({"evaluation": {"tasks": [question]}}, "evaluation.tasks.0.data.id"),
    ):
        refused = client.post("/v1/jobs", json=job_body | change)
        assert (refused.status_code, refused.json()["code"]) == (422, "data_not_found")
        assert refused.json()["param"].startswith(param)
        assert refused.json()["detail"] == f"There is no dataset {dataset_id}."
        estimate = client.post("/v1/estimates", json=job_body | change).json()
        assert "data_not_found" in [each["code"] for each in estimate["problems"]]
    assert store.users(DEFAULT_TENANT).count(list(JobState)) == 0


def test_warnings_are_shown(client: TestClient, job_body: dict[str, Any], store: Store) -> None:
    job_id = client.post("/v1/jobs", json=job_body).json()["id"]
    store.claims.claim()
    store.attempts.record(job_id, 1, "texts.short", "Too short.", is_warning=True)
    warnings = client.get(f"/v1/jobs/{job_id}").json()["warnings"]
    assert warnings == [{"type": "texts.short", "message": "Too short."}]


def test_an_upload_that_stalls(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DRAIN_SECONDS", 0.01)
    with changed(services, upload_stall_seconds=0.01) as hurried:
        start, *rest = answer_to_endless_body(hurried, "/v1/datasets", ROWS, b"format=jsonl")
    body = json.loads(b"".join(message.get("body", b"") for message in rest))
    assert (start["status"], body["code"]) == (408, "body_too_slow")
    assert (b"connection", b"close") in start["headers"]
    assert client.get("/v1/datasets").json()["datasets"] == []
