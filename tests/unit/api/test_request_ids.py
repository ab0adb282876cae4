"""Each answer names its request, and so do the lines that are logged for it."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.request_ids import REQUEST_ID_HEADER
from service.domain.job import DEFAULT_TENANT, EventType
from service.domain.retry_policy import RetryPolicy
from service.errors import Failure
from service.log_lines import log_fields
from service.store.store import Store
from tests.fixtures.jobs import small_spec

MADE = r"[0-9a-f]{32}"


@pytest.mark.parametrize("path", ["/healthz", "/v1/jobs?limit=0", "/nowhere", "/"])
def test_a_name_is_made_and_another_one_for_each_request(client: TestClient, path: str) -> None:
    names = {client.get(path).headers[REQUEST_ID_HEADER] for _ in range(2)}
    assert len(names) == 2
    assert all(re.fullmatch(MADE, name) for name in names)


@pytest.mark.parametrize("given", ["r", "0f8fad5b-d9cb-469f-a165-70867728950e", "a.b:c/d=e+f@g_h"])
def test_the_name_that_a_client_gives_is_taken(client: TestClient, given: str) -> None:
    answer = client.get("/healthz", headers={REQUEST_ID_HEADER: given})
    assert answer.headers.get_list(REQUEST_ID_HEADER) == [given]


@pytest.mark.parametrize(
    "given", [b"", b"x" * 129, b"two words", b"\xc3\xbc", b"a\\nb", b'"', b"a\n", b"%0a", b"[x]"]
)
def test_a_name_that_could_harm_is_replaced(client: TestClient, given: bytes) -> None:
    answer = client.get("/healthz", headers=[(REQUEST_ID_HEADER.encode(), given)])
    assert re.fullmatch(MADE, answer.headers[REQUEST_ID_HEADER])


def test_of_two_names_neither_is_taken(client: TestClient) -> None:
    twice = [(REQUEST_ID_HEADER, "first"), (REQUEST_ID_HEADER, "second")]
    answer = client.get("/healthz", headers=twice)
    assert re.fullmatch(MADE, answer.headers[REQUEST_ID_HEADER])


def test_the_answer_and_the_line_of_a_defect_have_it(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    logged = []

    def note(record: logging.LogRecord) -> bool:
        logged.append((record.levelname, log_fields()))
        return True

    monkeypatch.setattr(Store, "users", broken)
    logger = logging.getLogger("api.errors")
    logger.addFilter(note)
    try:
        answer = client.get("/v1/jobs", headers={REQUEST_ID_HEADER: "r-1"})
    finally:
        logger.removeFilter(note)
    assert answer.status_code == 500
    assert answer.headers.get_list(REQUEST_ID_HEADER) == ["r-1"]
    assert logged == [("ERROR", {"request_id": "r-1"})]


def test_a_job_keeps_the_name_of_the_request_that_queued_it_last(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    def named(name: str) -> dict[str, str]:
        return {REQUEST_ID_HEADER: name}

    job = client.post("/v1/jobs", json=job_body, headers=named("first")).json()
    assert store.records.origin(job["id"]) == {"request_id": "first"}
    store.claims.claim()
    failure = Failure("model_invalid", "It is not a model.", None, retryable=False)
    store.attempts.fail(job["id"], 1, failure, RetryPolicy())
    client.post(f"/v1/jobs/{job['id']}/retry", headers=named("second"))
    assert store.records.origin(job["id"]) == {"request_id": "second"}
    (queued,) = [e for e in store.records.events(job["id"]) if e.type == EventType.QUEUED]
    assert queued.data == {"request_id": "first"}


def test_a_job_that_no_request_has_made_has_no_name(store: Store) -> None:
    job = store.users(DEFAULT_TENANT).create(small_spec())
    assert store.records.origin(job.id) == {}
