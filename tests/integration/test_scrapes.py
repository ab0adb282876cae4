"""A scrape of /metrics takes a few queries and rows, however many jobs and events there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, event, insert

from api.metrics.history import PAGE
from api.metrics.metrics import Metrics
from service.domain.job import DEFAULT_TENANT, EventType
from service.domain.states import JobState
from service.store import tables
from service.store.store import Store
from tests.fixtures.jobs import small_spec

JOBS = 10_000
METHODS = ("impact", "impact-kron", "svd-llm")
MOST_QUERIES = 5
MOST_ROWS = len(JobState) * len(METHODS) + 10


@pytest.fixture(params=["job_store", "postgres_store"], ids=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def engine(store: Store) -> Engine:
    return store.statistics._database._engine


def put_jobs(engine: Engine, jobs: int, events_of_each: int, at: datetime) -> None:
    """Jobs of every state and method, and finished steps of theirs."""
    spec, states = small_spec().model_dump_json(), list(JobState)
    with engine.begin() as connection:
        connection.execute(
            insert(tables.jobs),
            [
                {
                    "id": f"job-{number:06}",
                    "state": states[number % len(states)],
                    "spec": spec,
                    "attempt": 1,
                    "created_at": at,
                    "tenant": DEFAULT_TENANT if number % 2 else f"team-{number % 100}",
                    "method": METHODS[number % len(METHODS)],
                }
                for number in range(jobs)
            ],
        )
    put_events(engine, jobs, events_of_each, at)


def put_events(engine: Engine, jobs: int, of_each: int, at: datetime) -> None:
    row = {"attempt": 1, "at": at, "type": EventType.STEP_FINISHED, "message": "Solved."}
    row["data"] = {"step": "solve", "seconds": 3.0, "total": 1}
    each_job = [row | {"job_id": f"job-{number:06}"} for number in range(jobs)]
    with engine.begin() as connection:
        connection.execute(insert(tables.events), each_job * of_each)


@contextmanager
def queries(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """What is asked of the database meanwhile, with its values."""
    asked: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, values: Any, *___: object) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, values))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(engine, "before_cursor_execute", note)


def rows(engine: Engine, query: str, values: Any) -> int:
    with engine.connect() as connection:
        return len(connection.exec_driver_sql(query, values).all())


def solved(metrics: Metrics) -> float:
    """The counter of solved groups, one for each event of `put_events`, after a scrape."""
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            if sample.name == "eigenpress_solved_groups_total":
                return sample.value
    raise AssertionError("not there")


def test_many_jobs_cost_a_few_queries_and_rows(store: Store, engine: Engine) -> None:
    metrics = Metrics(store.statistics, lambda: 0)
    metrics.begin()
    put_jobs(engine, JOBS, 1, datetime.now(UTC) - timedelta(days=1))
    while solved(metrics) < JOBS:
        pass
    put_events(engine, 5, 1, datetime.now(UTC))
    with queries(engine) as asked:
        for _ in range(2):  # the second one finds nothing new
            assert solved(metrics) == JOBS + 5
    assert 4 <= len(asked) <= 2 * MOST_QUERIES
    assert 0 < max(rows(engine, query, values) for query, values in asked) <= MOST_ROWS


def test_a_look_after_weeks_reads_no_more_than_its_time_allows(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.metrics.history.LOOK_SECONDS", 0.0)  # a page
    metrics = Metrics(store.statistics, lambda: 0)
    metrics.begin()
    put_jobs(engine, PAGE // 10, 30, datetime.now(UTC) - timedelta(weeks=3))
    for look in (1, 2, 3, 3):
        assert solved(metrics) == look * PAGE
