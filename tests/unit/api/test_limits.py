"""A body above the limit is refused, whether or not it declares its size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

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


def test_the_bound_itself_is_allowed(client: TestClient) -> None:
    response = client.post("/v1/jobs", content=b" " * MAX_BODY_BYTES, headers=JSON)
    assert response.json()["code"] == "malformed_json"


@pytest.mark.parametrize("length", [b"\xb2", b"-1", b"many", b"", b"9" * 5000])
def test_an_odd_length_header_does_not_confuse(client: TestClient, length: bytes) -> None:
    headers = {b"Content-Type": b"application/json", b"Content-Length": length}
    response = client.post("/v1/jobs", content=b"{", headers=headers)
    assert response.json()["code"] == "malformed_json"
