"""Every metric moves with what it counts, and no label has an id."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from math import ceil
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from api.app import create_app
from api.metrics.history import LATE, LOOK_SECONDS, PAGE, History
from api.services import Services
from service.domain.job import DEFAULT_TENANT, Artifact, Event, FileEntry
from service.domain.retry_policy import RetryPolicy
from service.domain.spec.job import JobSpec
from service.domain.states import Step
from service.errors import DatabaseUnavailable, Failure
from service.store.census import Statistics
from service.store.store import Store

TOKEN = "metrics-token-of-a-test"
POLICY = RetryPolicy(5, 0.0, 0.0)
LOST = Failure("worker_lost", "A worker is gone.", None, True)


def samples(client: TestClient) -> dict[str, float]:
    """All samples by their names and labels: ``eigenpress_jobs{state="queued"}``."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.fixture
def running(client: TestClient, store: Store, job_spec: JobSpec) -> str:
    """A job whose first attempt runs; the metrics have been read before."""
    samples(client)
    job = store.users(DEFAULT_TENANT).create(job_spec)
    store.claims.claim()
    return job.id


def test_jobs_and_the_queue_are_counted_as_they_are(
    client: TestClient, store: Store, job_spec: JobSpec
) -> None:
    before = samples(client)
    assert before['eigenpress_jobs{method="",state="queued"}'] == 0
    assert before['eigenpress_queue_jobs{tenants="default"}'] == 0
    store.users(DEFAULT_TENANT).create(job_spec)
    for _ in range(2):
        store.users("other").create(job_spec)
    after = samples(client)
    assert after[f'eigenpress_jobs{{method="{job_spec.method}",state="queued"}}'] == 3
    assert after['eigenpress_queue_jobs{tenants="default"}'] == 1
    assert after['eigenpress_queue_jobs{tenants="other"}'] == 2
    assert 0 < after['eigenpress_queue_oldest_seconds{tenants="other"}'] < 60
    assert after['eigenpress_events_total{type="job.queued"}'] == 3
    assert samples(client)['eigenpress_events_total{type="job.queued"}'] == 3
    store.claims.claim()
    assert samples(client)[f'eigenpress_jobs{{method="{job_spec.method}",state="running"}}'] == 1


def test_an_attempt_s_work_is_counted(client: TestClient, store: Store, running: str) -> None:
    attempts = store.attempts
    usage = [{"text": "calibration", "tokens": 4096}, {"text": "held-out", "tokens": 77}]
    attempts.record(running, 1, "texts.used", "Used.", {"texts": usage})
    for step, total in ((Step.CALIBRATE, 5), (Step.SOLVE, 12)):
        attempts.progress(running, 1, step, 0, total, "things")
        attempts.progress(running, 1, step, total, total, "things")
    files = (FileEntry("a", 100, "0" * 64), FileEntry("b", 23, "0" * 64))
    attempts.published(running, 1, 0, Artifact("keep-0.8", "jobs/x/", files))
    found = samples(client)
    assert found["eigenpress_calibrated_tokens_total"] == 4096
    assert found["eigenpress_solved_groups_total"] == 12
    assert found["eigenpress_published_bytes_total"] == 123
    for name in ("calibrate", "solve"):
        assert found[f'eigenpress_step_seconds_count{{step="{name}"}}'] == 1
        assert found[f'eigenpress_step_seconds_sum{{step="{name}"}}'] >= 0


def test_retries_failures_and_lost_leases_are_counted_by_cause(
    client: TestClient, store: Store, running: str
) -> None:
    store.attempts.fail(running, 1, LOST, POLICY)
    store.claims.claim()
    store.attempts.renew(running, 2, -1.0)
    store.attempts.fail(running, 2, LOST, POLICY, only_if_lapsed=True)
    store.claims.claim()
    unreadable = Failure("model_invalid", "No weights.", "model", False)
    store.attempts.fail(running, 3, unreadable, POLICY)
    found = samples(client)
    assert found['eigenpress_retries_total{cause="worker_lost"}'] == 2
    assert found['eigenpress_failures_total{cause="model_invalid"}'] == 1
    assert found["eigenpress_leases_lost_total"] == 1


def test_requests_are_timed_by_their_routes(client: TestClient, running: str) -> None:
    for path in (f"/v1/jobs/{running}", "/v1/jobs/job-none", "/nowhere"):
        client.get(path)
    found = samples(client)
    assert found['eigenpress_failures_total{cause="model_invalid"}'] == 0  # there from the start
    name = "eigenpress_http_request_seconds_count"
    assert found[f'{name}{{method="GET",route="/v1/jobs/{{job_id}}",status="2xx"}}'] == 1
    assert found[f'{name}{{method="GET",route="/v1/jobs/{{job_id}}",status="4xx"}}'] == 1
    assert found[f'{name}{{method="GET",route="none",status="4xx"}}'] == 1
    assert not any(running in each for each in found)


def test_names_and_labels_are_as_prometheus_wants_them(client: TestClient, running: str) -> None:
    assert running
    for sample in samples(client):
        name, labels = re.fullmatch(r"(\w+)(?:{(.*)})?", sample).groups()  # type: ignore[union-attr]
        assert name.startswith("eigenpress_")
        assert not re.search(r"job-|ds-|whk-|tenant=", labels or "")


def test_without_a_database_requests_are_still_measured(
    client: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.get("/healthz")
    assert samples(client)["eigenpress_database_up"] == 1

    def away(_: object, *__: object, **___: object) -> Any:
        raise DatabaseUnavailable("It is away.")

    monkeypatch.setattr(Statistics, "events_after", away)
    found = samples(client)
    assert found["eigenpress_database_up"] == 0
    assert any(each.startswith("eigenpress_http_request_seconds_count") for each in found)
    assert not any(each.startswith("eigenpress_jobs{") for each in found)
    monkeypatch.undo()
    assert services.store.statistics.census().jobs == {}
    assert samples(client)["eigenpress_database_up"] == 1


class TestAccess:
    @pytest.fixture
    def keyed(self, services: Services) -> Iterator[TestClient]:
        settings = services.settings.model_copy(
            update={
                "require_keys": True,
                "admin_key": SecretStr("ep_" + 40 * "a"),
                "metrics_token": SecretStr(TOKEN),
            }
        )
        app = create_app(settings, lambda _: nullcontext(replace(services, settings=settings)))
        with TestClient(app) as client:
            yield client

    @pytest.mark.parametrize(
        ("text", "status"),
        [(TOKEN, 200), ("ep_" + 40 * "a", 200), ("guess", 401), ("", 401), ("\xff", 401)],
    )
    def test_the_token_and_administrators_may_read(
        self, keyed: TestClient, text: str, status: int
    ) -> None:
        headers = {b"Authorization": b"Bearer " + text.encode("latin-1")}
        assert keyed.get("/metrics", headers=headers).status_code == status

    def test_the_token_opens_nothing_else(self, keyed: TestClient) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert keyed.get("/v1/jobs", headers=headers).status_code == 401


class Committed:
    """A database in which events become visible one by one, and its clock."""

    def __init__(self, *ids: int) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)
        self.written: dict[int, datetime] = {}
        self.read = 0
        self.commit(*ids)

    def commit(self, *ids: int) -> None:
        self.written |= dict.fromkeys(ids, self.time)

    def now(self) -> datetime:
        return self.time

    def last_event(self) -> int:
        return max(self.written, default=0)

    def events_after(self, event_id: int, *, limit: int) -> list[Event]:
        found = sorted(each for each in self.written if each > event_id)[:limit]
        self.read += len(found)
        return [Event(each, "job-1", 1, self.written[each], "x", "", {}) for each in found]


class TestHistory:
    @pytest.fixture
    def database(self) -> Committed:
        return Committed(5)

    @pytest.fixture
    def find(self, database: Committed) -> Callable[[], list[int]]:
        """A look at the database, in which every page takes a second."""
        seconds = count()
        history = History(database, lambda: next(seconds))  # type: ignore[arg-type]

        def look() -> list[int]:
            return [event.id for page in history.pages() for event in page]

        assert look() == []
        return look

    def test_every_event_is_found_once_also_one_that_is_committed_late(
        self, database: Committed, find: Callable[[], list[int]]
    ) -> None:
        database.commit(7, 8)
        assert find() == [7, 8]
        database.time += LATE
        database.commit(6, 9)
        assert find() == [6, 9]
        for _ in range(5):
            database.time += LATE / 2
            database.commit(database.last_event() + 1)
            assert find() == [database.last_event()]
        assert database.read < 25  # no look begins with what has been found long ago

    def test_weeks_without_a_look_are_made_up_for_by_several(
        self, database: Committed, find: Callable[[], list[int]]
    ) -> None:
        backlog = [*range(6, 6 + 5 * PAGE)]
        database.commit(*backlog)
        database.time += timedelta(weeks=3)
        database.commit(backlog[-1] + 1)
        found, looks = [], 0
        while new := find():
            assert len(new) <= LOOK_SECONDS * PAGE
            found += new
            looks += 1
        assert found == [*backlog, backlog[-1] + 1]
        assert looks == ceil(len(found) / PAGE / LOOK_SECONDS)
        assert database.read <= len(found) + 1  # nothing old twice

    def test_a_page_over_which_somebody_failed_is_found_again(self, database: Committed) -> None:
        history = History(database, lambda: 0.0)  # type: ignore[arg-type]
        assert [*history.pages()] == []
        database.commit(*range(10, 10 + 5 * PAGE // 2))
        pages = history.pages()
        assert [len(next(pages)) for _ in range(2)] == [PAGE, PAGE]
        pages.close()
        assert [len(page) for page in history.pages()] == [0, PAGE, PAGE // 2]
        assert [*history.pages()] == [[], [], []]
