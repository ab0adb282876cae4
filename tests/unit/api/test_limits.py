"""A body that is too large is refused, whether or not it declares its size; so is a slow one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api import limits
from api.limits import MAX_BODY_BYTES

JSON = {"Content-Type": "application/json"}


def _pieces(total: int) -> Iterator[bytes]:
    """A body without Content-Length: httpx sends it in chunks."""
    for _ in range(total // 1024):
        yield b" " * 1024


@pytest.mark.parametrize("declared", [True, False])
def test_too_large(client: TestClient, declared: bool) -> None:
    size = MAX_BODY_BYTES + 1024
    content: Any = b" " * size if declared else _pieces(size)
    response = client.post("/v1/jobs", content=content, headers=JSON)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["connection"] == "close"


def test_the_bound_itself_is_allowed(client: TestClient) -> None:
    response = client.post("/v1/jobs", content=b" " * MAX_BODY_BYTES, headers=JSON)
    assert response.json()["code"] == "malformed_json"


@pytest.mark.parametrize("length", [b"\xb2", b"-1", b"many", b"", b"9" * 5000])
def test_an_odd_length_header_does_not_confuse(client: TestClient, length: bytes) -> None:
    headers = {b"Content-Type": b"application/json", b"Content-Length": length}
    response = client.post("/v1/jobs", content=b"{", headers=headers)
    assert response.json()["code"] == "malformed_json"


def answer_to_endless_body(
    client: TestClient, path: str, first: bytes, query: bytes = b""
) -> list[dict[str, Any]]:
    """What the application sends to a client whose body begins with `first` and never ends."""
    sent: list[dict[str, Any]] = []
    waiting = iter([{"type": "http.request", "body": first, "more_body": True}])

    async def receive() -> dict[str, Any]:
        for message in waiting:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [(b"host", b"testserver"), (b"content-type", b"application/json")],
        "state": dict(client.app_state),
    }
    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    return sent


def test_a_body_that_does_not_end(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODY_SECONDS", 0)
    start, body = answer_to_endless_body(client, "/v1/jobs", b"{")
    problem = json.loads(body["body"])
    assert (start["status"], problem["code"], problem["instance"]) == (
        408,
        "body_too_slow",
        "/v1/jobs",
    )
    assert (b"connection", b"close") in start["headers"]


def test_a_route_without_a_body_does_not_wait_for_one(client: TestClient) -> None:
    start, *_ = answer_to_endless_body(client, "/v1/jobs/job-unknown/cancel", b"{")
    assert start["status"] == 404
