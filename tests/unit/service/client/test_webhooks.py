"""The client's webhooks: each method makes the request that docs/api.md shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.client.client import ApiProblem
from service.client.webhooks import Webhooks
from tests.unit.service.client.test_client import PROBLEM, answering

Call = Callable[[Webhooks], Any]

CALLS: list[tuple[Call, str, str]] = [
    (lambda of: of.list(), "GET", "/v1/webhooks?limit=50"),
    (lambda of: of.list(2, "x="), "GET", "/v1/webhooks?limit=2&cursor=x%3D"),
    (lambda of: of.get("whk-1"), "GET", "/v1/webhooks/whk-1"),
    (lambda of: of.get("../jobs"), "GET", "/v1/webhooks/..%2Fjobs"),
    (lambda of: of.rotate("whk-1"), "POST", "/v1/webhooks/whk-1/rotate"),
    (lambda of: of.test("whk-1"), "POST", "/v1/webhooks/whk-1/test"),
    (lambda of: of.deliveries("whk-1"), "GET", "/v1/webhooks/whk-1/deliveries?limit=50"),
    (
        lambda of: of.redeliver("whk-1", "msg-1"),
        "POST",
        "/v1/webhooks/whk-1/deliveries/msg-1/redeliver",
    ),
]


@pytest.mark.parametrize(("call", "method", "path"), CALLS, ids=lambda each: str(each))
def test_requests(call: Call, method: str, path: str) -> None:
    client, requests = answering(httpx.Response(200, json={"id": "x"}))
    with client:
        assert call(client.webhooks) == {"id": "x"}
    assert (requests[0].method, requests[0].url.raw_path.decode()) == (method, path)


def test_bodies() -> None:
    made = httpx.Response(201, json={"id": "whk-1", "secret": "whsec_x"})
    client, requests = answering(made, made, httpx.Response(200, json={}), httpx.Response(204))
    assert client.webhooks.create("https://x.example")["secret"] == "whsec_x"
    client.webhooks.create("https://x.example", ["job.failed"], "CI")
    client.webhooks.change("whk-1", enabled=False)
    assert client.webhooks.delete("whk-1") is None  # type: ignore[func-returns-value]
    bodies = [json.loads(request.content) for request in requests[:3]]
    assert bodies == [
        {"url": "https://x.example", "description": None},
        {"url": "https://x.example", "description": "CI", "events": ["job.failed"]},
        {"enabled": False},
    ]
    assert [request.method for request in requests[2:]] == ["PATCH", "DELETE"]


def test_a_problem_is_raised() -> None:
    client, _ = answering(httpx.Response(422, json=PROBLEM))
    with pytest.raises(ApiProblem, match="There is no model"):
        client.webhooks.create("http://localhost")
