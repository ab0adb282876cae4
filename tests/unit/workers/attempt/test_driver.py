"""The driver records the outcome of its attempt in the database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from ray.exceptions import ActorDiedError
from sqlalchemy import text

from service.cluster.diagnosis import EXIT_SCHEMA_MISMATCH
from service.credentials import seal
from service.domain.credentials import Credentials, HubToken, S3Keys
from service.domain.job import DEFAULT_TENANT, EventType, Job, new_job_id
from service.domain.spec.job import JobSpec
from service.domain.spec.sources import HubModel
from service.domain.states import JobState
from service.domain.tenant import Limits, Places
from service.encryption import new_key
from service.errors import (
    Failure,
    JobNotFound,
    ModelInvalid,
)
from service.log_lines import bound, log_fields
from service.settings import Settings
from service.store.records import Records
from service.store.store import Store
from service.tracing import span
from tests.fixtures.jobs import rewrite_spec
from tests.fixtures.spans import Spans, id_of, parent_of
from workers.attempt import driver
from workers.attempt.driver import EXIT_FAILED, EXIT_STALE, main


@pytest.fixture
def attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_spec: JobSpec
) -> Iterator[tuple[Store, Job]]:
    """A claimed job in the database that the driver's own settings name; no Ray is started."""
    monkeypatch.setenv("EIGENPRESS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("EIGENPRESS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("EIGENPRESS_RETRY_FIRST_SECONDS", "0")
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr(driver, "_end", lambda *_: None)
    monkeypatch.setattr(driver, "_stop_on_sigterm", lambda _: None)
    store = Store(Settings().database)
    store.migrate()
    store.users(DEFAULT_TENANT).create(job_spec)
    job = store.claims.claim()
    assert job is not None
    yield store, job
    store.close()


def run_as(
    monkeypatch: pytest.MonkeyPatch, run: Any, taken: list[Credentials] | None = None
) -> list[Places]:
    """Let `run` take the place of an attempt; returns the places that it may read.

    Appends to `taken` the credentials that it gets.
    """

    def run_attempt(
        job: Job, _progress: object, settings: Settings, places: Places, credentials: Credentials
    ) -> Any:
        scratch = settings.scratch_dir / f"{job.id}-{job.attempt}"
        scratch.mkdir(parents=True)
        given.append(places)
        if taken is not None:
            taken.append(credentials)
        return run(job)

    given: list[Places] = []

    monkeypatch.setattr(driver, "run_attempt", run_attempt)
    return given


def raising(error: Exception) -> Any:
    def run(_job: Job) -> Any:
        raise error

    return run


def test_an_outcome_ends_the_job_as_succeeded(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, job = attempt
    run_as(monkeypatch, lambda _: {"format": 1})
    assert main(job.id, 1) == 0
    assert store.records.get(job.id).state is JobState.SUCCEEDED
    assert store.records.report(job.id) == {"format": 1}
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_attempt_reads_the_places_of_its_tenant(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt
    places = Places(("/data/team-a",), ("s3://team-a/",))
    store.tenants.change(job.tenant, Limits(), places)
    given = run_as(monkeypatch, lambda _: {})
    assert main(job.id, 1) == 0
    assert given == [places]


def give_credentials(store: Store, tenant: str, settings: Settings) -> tuple[HubToken, S3Keys]:
    """A token of the hub, and keys of a place that no job names."""
    token = HubToken(tenant, "hub", settings.hub_endpoint, SecretStr("canary-token"))
    keys = S3Keys(
        tenant, "s3", ("s3://elsewhere/",), SecretStr("id"), SecretStr("canary-elsewhere")
    )
    for each in (token, keys):
        store.credentials.put(each, seal(each, settings))
    return token, keys


def test_an_attempt_gets_those_credentials_of_its_tenant_that_it_needs(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt
    monkeypatch.setenv("EIGENPRESS_CREDENTIALS_KEY", new_key())
    token, _ = give_credentials(store, job.tenant, Settings())
    model = HubModel(source="hub", id="team-a/private", revision=40 * "0")
    store.users(job.tenant).create(job.spec.model_copy(update={"model": model}))
    on_the_hub = store.claims.claim()
    assert on_the_hub is not None
    taken: list[Credentials] = []
    run_as(monkeypatch, lambda _: {}, taken)
    assert [main(each.id, 1) for each in (job, on_the_hub)] == [0, 0]
    assert taken == [Credentials(), Credentials((token,))]


def test_a_driver_without_the_key_says_which_setting_is_missing(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("EIGENPRESS_CREDENTIALS_KEY", new_key())
        give_credentials(store, job.tenant, Settings())
    assert main(job.id, 1) == EXIT_FAILED
    ended = store.records.get(job.id)
    assert ended.state is JobState.FAILED
    assert ended.failure is not None
    assert ended.failure.code == "encryption_key_missing"
    assert "EIGENPRESS_CREDENTIALS_KEY" in ended.failure.detail


def test_an_error_ends_the_job_with_its_failure(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, job = attempt
    run_as(monkeypatch, raising(ModelInvalid("no weights", param="model")))
    assert main(job.id, 1) == EXIT_FAILED
    ended = store.records.get(job.id)
    assert ended.state is JobState.FAILED
    assert ended.failure == Failure("model_invalid", "no weights", "model")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_lost_worker_puts_the_job_back_until_its_attempts_are_used_up(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt
    run_as(monkeypatch, raising(ActorDiedError()))
    assert main(job.id, 1) == EXIT_FAILED
    assert store.records.get(job.id).state is JobState.QUEUED
    again = store.claims.claim()
    assert again is not None
    assert main(job.id, 2) == EXIT_FAILED
    assert store.records.get(job.id).state is JobState.FAILED


def test_a_cancelled_attempt_stops_without_a_trace(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt

    def cancelled_meanwhile(_job: Job) -> dict[str, Any]:
        store.users(DEFAULT_TENANT).cancel(job.id)
        return {}

    run_as(monkeypatch, cancelled_meanwhile)
    assert main(job.id, 1) == EXIT_STALE
    assert store.records.get(job.id).state is JobState.CANCELLING
    assert store.records.report(job.id) is None


def test_an_attempt_that_is_not_the_current_one_does_nothing(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt
    run_as(monkeypatch, raising(AssertionError("it ran")))
    assert main(job.id, 7) == EXIT_STALE
    assert store.records.get(job.id) == job
    with pytest.raises(JobNotFound):
        main(new_job_id(), 1)


def test_a_database_of_another_schema_is_left_alone(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt
    with store._database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    monkeypatch.setattr(Records, "get", raising(AssertionError("it was read")))
    run_as(monkeypatch, raising(AssertionError("it ran")))
    assert main(job.id, 1) == EXIT_SCHEMA_MISMATCH
    assert store.claims.head(job.id).state is JobState.RUNNING
    assert store.records.events(job.id)[-1].type == EventType.CLAIMED


def test_a_specification_of_a_newer_version_fails_the_job_by_name(
    attempt: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = attempt
    rewrite_spec(store, job, evaluation={"not_yet": 1})
    monkeypatch.setattr("workers.attempt.pipeline.machines", lambda: pytest.fail("it waited"))
    assert main(job.id, 1) == EXIT_FAILED
    ended = store.records.get(job.id)
    assert ended.state is JobState.FAILED  # at the first of two attempts
    assert ended.failure is not None
    assert ended.failure.code == "specification_unknown"
    assert ended.failure.param == "evaluation.not_yet"


def test_an_attempt_continues_the_trace_of_the_request_that_queued_its_job(
    attempt: tuple[Store, Job],
    monkeypatch: pytest.MonkeyPatch,
    spans: Spans,
) -> None:
    store, job = attempt
    users = store.users(DEFAULT_TENANT)
    run_as(monkeypatch, raising(ModelInvalid("no model")))
    assert main(job.id, 1) == EXIT_FAILED
    assert store.records.get(job.id).state is JobState.FAILED
    with bound(request_id="r-1"), span("request"):
        users.retry(job.id)
    store.claims.claim()
    logged = []

    def run(_job: Job) -> Any:
        logged.append(log_fields())
        raise ModelInvalid("swordfish")

    run_as(monkeypatch, run)
    assert main(job.id, 2) == EXIT_FAILED
    *_, request, traced = spans()
    assert logged == [{"request_id": "r-1"}]
    assert (traced.name, parent_of(traced)) == ("attempt", id_of(request))
    assert traced.attributes == {"eigenpress.job": job.id, "eigenpress.attempt": 2}
    assert traced.status.description == "ModelInvalid"
    assert "swordfish" not in traced.to_json()
