"""Traces by OpenTelemetry, if ``eigenpress[tracing]`` is installed and ``OTEL_*`` ask for them.

    POST /v1/jobs ── dispatch                one for each submission to Ray
                  ── attempt ── step.resolve, step.calibrate, ...

Dispatchers and drivers find the request by the event with which it put the job into the queue.
Spans say which job, attempt and route they are about and the kind of an error, but no message,
which could hold a secret. Without an address in ``OTEL_EXPORTER_OTLP_ENDPOINT``, or in that of
traces alone, nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from service.log_lines import log_fields

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

log = logging.getLogger(__name__)

ADDRESSES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_tracer: Tracer | None = None


def start_tracing(service: str) -> None:
    """Have this process send its spans, as `service` unless OTEL_SERVICE_NAME says otherwise."""
    global _tracer
    wanted = any(os.environ.get(name) for name in ADDRESSES)
    if _tracer is not None or not wanted or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("OTEL_* ask for traces: pip install 'eigenpress[tracing]'")
        return
    named = Resource.create({"service.name": service}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("eigenpress")


def is_tracing() -> bool:
    return _tracer is not None


@contextmanager
def span(
    name: str,
    parent: Mapping[str, str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    *,
    server: bool = False,
) -> Iterator[Span | None]:
    """A span of what the block does; None if nothing is traced.

    It is part of the span that `traceparent` in `parent` names, or else of the one around it.
    """
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode

    with _tracer.start_as_current_span(
        name,
        None if parent is None else _propagator().extract(parent),
        SpanKind.SERVER if server else SpanKind.INTERNAL,
        attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def origin() -> dict[str, str]:
    """What the logs and traces of a job continue: `request_id` and `traceparent`, if there are any.

    An event of the job keeps it: see `service.store.records.Records.origin`.
    """
    found: dict[str, str] = {}
    if _tracer is not None:
        _propagator().inject(found)
    about = {"request_id": log_fields().get("request_id"), "traceparent": found.get("traceparent")}
    return {name: value for name, value in about.items() if value}


def _propagator() -> TraceContextTextMapPropagator:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
