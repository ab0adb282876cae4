"""Datasets in the database: uploads, tenants, and the jobs that hold them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from service.domain.datasets import Dataset
from service.domain.job import DEFAULT_TENANT, Job, JobWarning
from service.domain.spec.job import JobSpec
from service.domain.states import JobState
from service.errors import (
    AttemptStale,
    DataNotFound,
    DatasetInUse,
    DatasetNotFound,
    InvalidParameter,
    UploadAbandoned,
)
from service.store import tables
from service.store.datasets import Contents
from service.store.store import Store
from tests.fixtures.jobs import at_once, small_spec

CONTENTS = Contents(bytes=100, documents=7, empty_rows=2, sha256="0" * 64)
FATAL = InvalidParameter("no such thing", param="model.path").failure()
NOT_IDS = ["", "ds-", "\0", "ds-\ud800", "job-" + "0" * 26, "ds-" + "0" * 26]


def uploaded(store: Store, tenant: str = DEFAULT_TENANT, name: str | None = "texts") -> Dataset:
    datasets = store.datasets(tenant)
    return datasets.complete(datasets.begin(name, "jsonl", "text", 60), CONTENTS)


def using(**ids: str) -> JobSpec:
    """A job that calibrates, measures or answers questions on these datasets."""
    sources = {use: {"source": "dataset", "id": dataset_id} for use, dataset_id in ids.items()}
    body: dict[str, Any] = small_spec().model_dump(mode="json")
    if "calibration" in sources:
        body["calibration"]["data"] = sources["calibration"]
    if "evaluation" in sources:
        body["evaluation"]["datasets"] = [{"name": "wiki", "data": sources["evaluation"]}]
    if "task" in sources:
        task = {"kind": "multiple_choice", "name": "arc", "data": sources["task"]}
        body["evaluation"]["tasks"] = [task]
    return JobSpec.model_validate(body)


def failed(store: Store, spec: JobSpec) -> Job:
    job = store.users(DEFAULT_TENANT).create(spec)
    store.claims.claim()
    store.attempts.fail(job.id, 1, FATAL, at_once(1))
    return store.records.get(job.id)


def expire(store: Store) -> None:
    with store._database.writing() as connection:
        past = update(tables.datasets).where(tables.datasets.c.lease_until.is_not(None))
        connection.execute(past.values(lease_until=tables.datasets.c.created_at))


def test_an_upload_is_seen_once_it_is_complete(job_store: Store) -> None:
    datasets = job_store.datasets(DEFAULT_TENANT)
    dataset_id = datasets.begin("texts", "jsonl", "text", 60)
    assert datasets.page(limit=9) == []
    with pytest.raises(DatasetNotFound):
        datasets.get(dataset_id)
    with pytest.raises(DatasetNotFound):
        datasets.delete(dataset_id)
    with pytest.raises(DataNotFound):
        job_store.users(DEFAULT_TENANT).create(using(calibration=dataset_id))
    made = datasets.complete(dataset_id, CONTENTS)
    assert (made.id, made.name, made.format, made.text_field) == (
        dataset_id,
        "texts",
        "jsonl",
        "text",
    )
    assert (made.bytes, made.documents, made.empty_rows, made.tokens) == (100, 7, 2, None)
    assert datasets.get(dataset_id) == made
    assert datasets.page(limit=9) == [made]
    assert job_store.stored_datasets.to_remove(limit=9) == []


def test_pages_are_newest_first(job_store: Store) -> None:
    made = [uploaded(job_store) for _ in range(3)]
    datasets = job_store.datasets(DEFAULT_TENANT)
    assert datasets.page(limit=2) == [made[2], made[1]]
    assert datasets.page(limit=2, before=made[1].id) == [made[0]]


@pytest.mark.parametrize("unknown", NOT_IDS)
def test_an_unknown_dataset(job_store: Store, unknown: str) -> None:
    datasets = job_store.datasets(DEFAULT_TENANT)
    with pytest.raises(DatasetNotFound):
        datasets.get(unknown)
    with pytest.raises(DatasetNotFound):
        datasets.delete(unknown)
    with pytest.raises(DataNotFound) as caught:
        datasets.require(unknown, "calibration.data.id")
    assert caught.value.param == "calibration.data.id"


def test_another_tenants_dataset_does_not_exist(job_store: Store) -> None:
    theirs = uploaded(job_store, "others")
    mine = job_store.datasets(DEFAULT_TENANT)
    for act in (mine.get, mine.delete):
        with pytest.raises(DatasetNotFound) as caught:
            act(theirs.id)
        with pytest.raises(DatasetNotFound) as unknown:
            act("ds-" + "0" * 26)
        said = caught.value.detail.replace(theirs.id, "ID")
        assert said == unknown.value.detail.replace("ds-" + "0" * 26, "ID")
    assert mine.page(limit=9) == []
    with pytest.raises(DataNotFound):
        job_store.users(DEFAULT_TENANT).create(using(calibration=theirs.id))
    mine.count_tokens(theirs.id, 5)
    assert job_store.datasets("others").get(theirs.id) == theirs
    assert job_store.records.list_jobs(limit=9) == []


@pytest.mark.parametrize(
    ("use", "param"),
    [
        ("calibration", "calibration.data.id"),
        ("evaluation", "evaluation.datasets.0.data.id"),
        ("task", "evaluation.tasks.0.data.id"),
    ],
)
def test_a_job_holds_its_datasets_until_it_has_ended(
    job_store: Store, use: str, param: str
) -> None:
    dataset = uploaded(job_store)
    datasets, users = job_store.datasets(DEFAULT_TENANT), job_store.users(DEFAULT_TENANT)
    job = users.create(using(**{use: dataset.id}))
    for state in (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING):
        assert job_store.records.get(job.id).state is state
        with pytest.raises(DatasetInUse, match=rf"{job.id} \({state}\)"):
            datasets.delete(dataset.id)
        if state is JobState.QUEUED:
            job_store.claims.claim()
        elif state is JobState.RUNNING:
            users.cancel(job.id)
    job_store.claims.end_cancelled(job.id, 1)
    datasets.delete(dataset.id)
    with pytest.raises(DatasetNotFound):
        datasets.delete(dataset.id)
    with pytest.raises(DataNotFound, match=dataset.id) as caught:
        users.create(using(**{use: dataset.id}))
    assert caught.value.param == param


def test_an_error_names_a_few_jobs(job_store: Store) -> None:
    dataset = uploaded(job_store)
    for _ in range(5):
        job_store.users(DEFAULT_TENANT).create(using(calibration=dataset.id, task=dataset.id))
    with pytest.raises(DatasetInUse) as caught:
        job_store.datasets(DEFAULT_TENANT).delete(dataset.id)
    assert caught.value.detail.count("(queued)") == 3
    assert "and more" in caught.value.detail


def test_a_retried_job_holds_its_dataset_again(job_store: Store) -> None:
    dataset = uploaded(job_store)
    job = failed(job_store, using(calibration=dataset.id))
    job_store.users(DEFAULT_TENANT).retry(job.id)
    with pytest.raises(DatasetInUse):
        job_store.datasets(DEFAULT_TENANT).delete(dataset.id)


def test_a_failed_job_whose_dataset_is_gone_cannot_be_retried(job_store: Store) -> None:
    dataset = uploaded(job_store)
    job = failed(job_store, using(calibration=dataset.id))
    job_store.datasets(DEFAULT_TENANT).delete(dataset.id)
    with pytest.raises(DataNotFound, match=dataset.id) as caught:
        job_store.users(DEFAULT_TENANT).retry(job.id)
    assert caught.value.param == "calibration.data.id"
    assert job_store.records.get(job.id) == job


def test_a_refused_job_leaves_nothing(job_store: Store) -> None:
    users = job_store.users(DEFAULT_TENANT)
    spec = using(calibration="ds-" + "0" * 26)
    with pytest.raises(DataNotFound):
        users.create_once(spec, "key")
    assert users.find_once(spec, "key") is None
    assert job_store.records.list_jobs(limit=9) == []


def test_a_deleted_job_takes_its_links_along(job_store: Store) -> None:
    dataset = uploaded(job_store)
    job = failed(job_store, using(calibration=dataset.id))
    job_store.users(DEFAULT_TENANT).delete(job.id)
    job_store.claims.remove(job.id)
    job_store.datasets(DEFAULT_TENANT).delete(dataset.id)


def test_a_dead_upload_is_removed_and_can_write_no_more(job_store: Store) -> None:
    datasets, stored = job_store.datasets(DEFAULT_TENANT), job_store.stored_datasets
    live, dead = (datasets.begin(None, "text", "text", 60) for _ in range(2))
    expire(job_store)
    datasets.renew(live, 0, 60)
    assert stored.to_remove(limit=9) == [dead]
    with pytest.raises(UploadAbandoned):
        datasets.renew(dead, 0, 60)
    with pytest.raises(UploadAbandoned):
        datasets.complete(dead, CONTENTS)
    assert stored.to_remove(limit=9) == [dead]
    stored.remove(live)  # is not deleted, and stays
    stored.remove(dead)
    stored.remove(dead)
    assert stored.to_remove(limit=9) == []
    assert datasets.complete(live, CONTENTS).id == live


def test_what_was_given_up_or_deleted_is_removed_in_that_order(job_store: Store) -> None:
    datasets = job_store.datasets(DEFAULT_TENANT)
    complete, given_up = uploaded(job_store), datasets.begin(None, "text", "text", 60)
    datasets.give_up(given_up)
    datasets.give_up(complete.id)  # too late
    datasets.delete(complete.id)
    assert job_store.stored_datasets.to_remove(limit=1) == [given_up]
    assert job_store.stored_datasets.to_remove(limit=9) == [given_up, complete.id]


def test_tokens_are_known_once_a_job_has_counted_them(job_store: Store) -> None:
    dataset = uploaded(job_store)
    datasets = job_store.datasets(DEFAULT_TENANT)
    datasets.count_tokens(dataset.id, 12_345)
    assert datasets.get(dataset.id).tokens == 12_345


def test_a_warning_stands_with_its_job_until_the_next_attempt(job_store: Store) -> None:
    job = job_store.users(DEFAULT_TENANT).create(small_spec())
    job_store.claims.claim()
    record = job_store.attempts.record
    record(job.id, 1, "texts.short", "Too short.", {"text": "held-out"}, is_warning=True)
    record(job.id, 1, "texts.skipped", "Two files.", is_warning=True)
    record(job.id, 1, "texts.used", "Many tokens.")
    warnings = (JobWarning("texts.short", "Too short."), JobWarning("texts.skipped", "Two files."))
    assert job_store.records.get(job.id).warnings == warnings
    event = job_store.records.last_event(job.id, "texts.short")
    assert event is not None
    assert event.data == {"text": "held-out"}
    job_store.attempts.fail(job.id, 1, FATAL, at_once(1))
    assert job_store.records.get(job.id).warnings == warnings
    job_store.users(DEFAULT_TENANT).retry(job.id)
    job_store.claims.claim()
    assert job_store.records.get(job.id).warnings == ()
    with pytest.raises(AttemptStale):
        record(job.id, 1, "texts.short", "Too late.", is_warning=True)
