"""A span for each request, and from there on to the attempt."""

from __future__ import annotations

from contextlib import closing, nullcontext
from typing import Any

from fastapi.testclient import TestClient
from opentelemetry.trace import SpanKind

from api.app import create_app
from api.services import Services
from service.dispatch.dispatcher import Dispatcher
from tests.fixtures.cluster import FakeCluster
from tests.fixtures.spans import Spans, id_of, parent_of, trace_of

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_job_is_one_trace_from_its_client_to_ray(
    spans: Spans, services: Services, job_body: dict[str, Any]
) -> None:
    app = create_app(services.settings, lambda _: nullcontext(services))
    with TestClient(app) as client:
        caller = {"traceparent": f"00-{TRACE}-{CALLER}-01", "X-Request-ID": "r-1"}
        job = client.post("/v1/jobs", json=job_body, headers=caller).json()
    dispatcher = Dispatcher(services.store, FakeCluster(), services.storage, services.settings)
    with closing(dispatcher):
        dispatcher.tick()

    request, dispatch = spans()
    assert (request.name, request.kind) == ("POST /v1/jobs", SpanKind.SERVER)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 201,
        "http.route": "/v1/jobs",
    }
    assert (trace_of(request), parent_of(request)) == (int(TRACE, 16), int(CALLER, 16))
    assert dispatch.name == "dispatch"
    assert dispatch.attributes == {"eigenpress.job": job["id"], "eigenpress.attempt": 1}
    assert (trace_of(dispatch), parent_of(dispatch)) == (int(TRACE, 16), id_of(request))
    origin = services.store.records.origin(job["id"])
    assert origin["request_id"] == "r-1"
    assert origin["traceparent"].startswith(f"00-{TRACE}-")


def test_a_path_that_is_no_route_names_no_span(spans: Spans, services: Services) -> None:
    app = create_app(services.settings, lambda _: nullcontext(services))
    with TestClient(app) as client:
        assert client.get("/swordfish").status_code == 404
    (request,) = spans()
    assert request.name == "GET"
    assert "swordfish" not in request.to_json()


def test_without_tracing_no_event_names_a_trace(
    client: TestClient, services: Services, job_body: dict[str, Any]
) -> None:
    caller = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    job = client.post("/v1/jobs", json=job_body, headers=caller).json()
    assert list(services.store.records.origin(job["id"])) == ["request_id"]
