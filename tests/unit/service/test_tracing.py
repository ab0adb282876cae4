"""Spans, as an exporter gets them; and nothing at all where nobody wants them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import StatusCode

from service.log_lines import bound
from service.tracing import ADDRESSES, is_tracing, origin, span, start_tracing
from tests.fixtures.receivers import receiving
from tests.fixtures.spans import Spans, id_of, parent_of, trace_of


def test_spans_nest_and_have_attributes(spans: Spans) -> None:
    with span("outer", None, {"eigenpress.job": "job-1"}), span("inner"):
        pass
    inner, outer = spans()
    assert (inner.name, outer.name) == ("inner", "outer")
    assert parent_of(inner) == id_of(outer)
    assert parent_of(outer) is None
    assert outer.attributes == {"eigenpress.job": "job-1"}
    assert outer.status.status_code is StatusCode.UNSET


def test_an_origin_continues_the_request_elsewhere(spans: Spans) -> None:
    with bound(request_id="r-1"), span("request"):
        kept = origin()
    assert kept["request_id"] == "r-1"
    with span("elsewhere"), span("attempt", kept):
        pass
    request, attempt, elsewhere = spans()
    assert (trace_of(attempt), parent_of(attempt)) == (trace_of(request), id_of(request))
    assert trace_of(elsewhere) != trace_of(request)


@pytest.mark.parametrize("kept", [{}, {"traceparent": "no such thing"}, {"request_id": "r-1"}])
def test_without_an_origin_a_trace_begins(spans: Spans, kept: dict[str, str]) -> None:
    with span("around"), span("attempt", kept):
        pass
    attempt, around = spans()
    assert parent_of(attempt) is None
    assert trace_of(attempt) != trace_of(around)


def test_an_error_is_named_and_its_message_stays_here(spans: Spans) -> None:
    with pytest.raises(ValueError, match="swordfish"), span("attempt"):
        raise ValueError("swordfish")
    (attempt,) = spans()
    assert attempt.status.status_code is StatusCode.ERROR
    assert attempt.status.description == "ValueError"
    assert attempt.events == ()
    assert "swordfish" not in attempt.to_json()


@pytest.mark.parametrize(
    "variables",
    [{}, {ADDRESSES[0]: ""}, {ADDRESSES[1]: "http://x:4318", "OTEL_TRACES_EXPORTER": "none"}],
)
def test_without_an_address_nothing_is_imported(variables: dict[str, str]) -> None:
    program = """
import sys
from service.tracing import origin, span, start_tracing
start_tracing("test")
with span("request", {}) as current:
    assert current is None
    assert origin() == {}
print(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=env | variables, capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_without_the_extra_the_log_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ADDRESSES[0], "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    start_tracing("test")
    assert not is_tracing()
    assert caplog.messages == ["OTEL_* ask for traces: pip install 'eigenpress[tracing]'"]


PROGRAM = """
from service.tracing import span, start_tracing
start_tracing("eigenpress-test")
with span("request"):
    pass
"""


@pytest.mark.parametrize("name", [None, "press-7"])
def test_a_process_sends_its_spans_before_it_ends(name: str | None) -> None:
    with receiving() as collector:
        env = os.environ | {ADDRESSES[0]: f"http://127.0.0.1:{collector.port}"}
        if name is not None:
            env["OTEL_SERVICE_NAME"] = name
        subprocess.run([sys.executable, "-c", PROGRAM], env=env, check=True)
        request = collector.next_request()
    (sent,) = ExportTraceServiceRequest.FromString(request.body).resource_spans
    about = {each.key: each.value.string_value for each in sent.resource.attributes}
    assert about["service.name"] == (name or "eigenpress-test")
    assert request.path == "/v1/traces"
    assert [each.name for each in sent.scope_spans[0].spans] == ["request"]
