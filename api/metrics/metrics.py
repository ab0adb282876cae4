"""All metrics of an API process, and their text for Prometheus. None has an id as a label."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from api.metrics.history import History
from service.client.versions import VERSION
from service.domain.job import Event, EventType
from service.domain.states import JobState, Step
from service.errors import DatabaseUnavailable, EigenpressError
from service.store.census import Statistics, Waiting

log = logging.getLogger(__name__)

TEXTS_USED = "texts.used"
CALIBRATION = "calibration"

REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
STEP_BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400)
TENANT_CLASSES = {True: "default", False: "other"}
NOBODY = Waiting(0, 0.0)


class Metrics:
    """The metrics of this process. Threads may share it."""

    def __init__(self, statistics: Statistics, followers: Callable[[], int]) -> None:
        self._statistics = statistics
        self._history = History(statistics)
        self._lock = threading.Lock()
        registry = self._registry = CollectorRegistry()
        self._requests = Histogram(
            "eigenpress_http_request_seconds",
            "Time to the first byte of an answer.",
            ("method", "route", "status"),
            registry=registry,
            buckets=REQUEST_BUCKETS,
        )
        self._events = Counter(
            "eigenpress_events", "Events of jobs, by type.", ("type",), registry=registry
        )
        self._retries = Counter(
            "eigenpress_retries",
            "Attempts that failed and are followed by another one, by error code.",
            ("cause",),
            registry=registry,
        )
        self._failures = Counter(
            "eigenpress_failures", "Jobs that failed, by error code.", ("cause",), registry=registry
        )
        self._leases_lost = Counter(
            "eigenpress_leases_lost",
            "Attempts that were given up because their lease had expired.",
            registry=registry,
        )
        self._steps = Histogram(
            "eigenpress_step_seconds",
            "Time from a step's first progress to its end.",
            ("step",),
            registry=registry,
            buckets=STEP_BUCKETS,
        )
        self._calibrated = Counter(
            "eigenpress_calibrated_tokens", "Tokens of finished calibrations.", registry=registry
        )
        self._solved = Counter(
            "eigenpress_solved_groups", "Groups of layers in finished solves.", registry=registry
        )
        self._published = Counter(
            "eigenpress_published_bytes", "Bytes of published artifacts.", registry=registry
        )
        followers_gauge = Gauge(
            "eigenpress_followers", "Streams that are open at this process.", registry=registry
        )
        followers_gauge.set_function(followers)
        self._database_up = Gauge(
            "eigenpress_database_up",
            "Whether the database answered when the metrics were asked for.",
            registry=registry,
        )
        # A counter that appears with its first event would hide it: that is no increase.
        for type_ in EventType:
            self._events.labels(type_)
        for error in errors_below(EigenpressError):
            (self._retries if error.retryable else self._failures).labels(error.code)
        build = Gauge(
            "eigenpress_build_info", "The version, as a label.", ("version",), registry=registry
        )
        build.labels(VERSION).set(1)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note a request's answer; `route` is its pattern, without values."""
        self._requests.labels(method, route, f"{status // 100}xx").observe(seconds)

    def begin(self) -> None:
        """Count events from now on. Raises DatabaseUnavailable."""
        with self._lock:
            self._look()

    def text(self) -> bytes:
        """All metrics, for Prometheus; those of jobs are left out while the database is away."""
        census: Collector | None = None
        with self._lock:
            try:
                self._look()
                census = _Census(self._statistics)
            except DatabaseUnavailable as error:
                log.warning("No metrics of jobs: %s", error.detail)
            self._database_up.set(census is not None)
            text = generate_latest(self._registry)
        return text if census is None else text + _text_of(census)

    def _look(self) -> None:
        for events in self._history.pages():
            self._count(events)

    def _count(self, events: Sequence[Event]) -> None:
        calibrated = [event.job_id for event in events if _finishes(event, Step.CALIBRATE)]
        used = self._statistics.last_of_type(calibrated, TEXTS_USED) if calibrated else {}
        for event in events:
            self._events.labels(event.type).inc()
            if event.type == EventType.STEP_FINISHED:
                self._count_step(event)
            elif event.type == EventType.PUBLISHED:
                self._published.inc(event.data.get("bytes", 0))
            elif event.type in (EventType.RETRIED, EventType.FAILED):
                counter = self._retries if event.type == EventType.RETRIED else self._failures
                counter.labels(event.data.get("code", "unknown")).inc()
                self._leases_lost.inc("lease_until" in event.data)
        for job_id in calibrated:
            texts = used[job_id].data.get("texts", ()) if job_id in used else ()
            self._calibrated.inc(
                sum(each.get("tokens", 0) for each in texts if each.get("text") == CALIBRATION)
            )

    def _count_step(self, event: Event) -> None:
        self._steps.labels(event.data.get("step", "unknown")).observe(event.data.get("seconds", 0))
        if _finishes(event, Step.SOLVE):
            self._solved.inc(event.data.get("total", 0))


def errors_below(error: type[EigenpressError]) -> Iterator[type[EigenpressError]]:
    """The class and all of its subclasses."""
    yield error
    for each in error.__subclasses__():
        yield from errors_below(each)


def _finishes(event: Event, step: Step) -> bool:
    return event.type == EventType.STEP_FINISHED and event.data.get("step") == step


class _Census(Collector):
    """The gauges of jobs and of the queue, as they are now. Raises DatabaseUnavailable."""

    def __init__(self, statistics: Statistics) -> None:
        self._census = statistics.census()

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily(
            "eigenpress_jobs", "Jobs by state and method.", labels=("state", "method")
        )
        for (state, method), count in sorted(self._census.jobs.items()):
            jobs.add_metric((state, method), count)
        for state in JobState:
            if not any(known == state for known, _ in self._census.jobs):
                jobs.add_metric((state, ""), 0)
        yield jobs
        queue = GaugeMetricFamily(
            "eigenpress_queue_jobs",
            "Jobs that wait, of the default tenant and of all others.",
            labels=("tenants",),
        )
        oldest = GaugeMetricFamily(
            "eigenpress_queue_oldest_seconds",
            "Since the first job that waits could have begun.",
            labels=("tenants",),
        )
        for is_default, name in TENANT_CLASSES.items():
            waiting = self._census.waiting.get(is_default, NOBODY)
            queue.add_metric((name,), waiting.jobs)
            oldest.add_metric((name,), waiting.oldest_seconds)
        yield queue
        yield oldest


def _text_of(collector: Collector) -> bytes:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)
