"""Tenants in the database: limits, what counts towards them, and the places of their jobs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from service.domain.job import DEFAULT_TENANT, Artifact, FileEntry, Job
from service.domain.retry_policy import RetryPolicy
from service.domain.states import JobState
from service.domain.tenant import EVERY_PLACE, Limits, Places, Usage
from service.errors import (
    JobNotFound,
    ModelInvalid,
    QuotaExceeded,
    TenantExists,
    TenantNotFound,
)
from service.store.datasets import Contents
from service.store.store import Store
from tests.fixtures.jobs import small_spec

METHODS = ["get", "events", "artifacts", "report", "cancel", "retry", "delete"]
FILES = (FileEntry("a", 700, "0" * 64), FileEntry("b", 300, "0" * 64))


def fail(store: Store, job: Job) -> Job:
    """The job after its only attempt has failed."""
    assert store.claims.claim() is not None
    failure = ModelInvalid("The model is no model.").failure()
    store.attempts.fail(job.id, 1, failure, RetryPolicy(1, 0, 0))
    return store.records.get(job.id)


def test_a_tenant_reads_back(job_store: Store) -> None:
    limits, places = Limits(1, 2, 3), Places(("/data/a",), ("s3://a/",))
    made = job_store.tenants.create("a", limits, places)
    assert (made.limits, made.places) == (limits, places)
    assert job_store.tenants.get("a") == made
    with pytest.raises(TenantExists):
        job_store.tenants.create("a", Limits(), EVERY_PLACE)
    changed = job_store.tenants.change("a", Limits(), Places((), None))
    assert (changed.limits, changed.places) == (Limits(), Places((), None))
    assert job_store.users("a").reach().places == Places((), None)


def test_an_unknown_tenant(job_store: Store) -> None:
    for ask in (job_store.tenants.get, job_store.tenants.usage):
        with pytest.raises(TenantNotFound, match="none"):
            ask("none")
    with pytest.raises(TenantNotFound):
        job_store.tenants.change("none", Limits(), EVERY_PLACE)
    assert job_store.users("none").reach().places == EVERY_PLACE


def test_the_default_tenant_is_there_and_keeps_its_limits(job_store: Store) -> None:
    """An administrator makes keys of it, and bounds it, before its first job."""
    assert job_store.tenants.get(DEFAULT_TENANT).limits == Limits()
    job_store.tenants.change(DEFAULT_TENANT, Limits(max_queued_jobs=1), EVERY_PLACE)
    job_store.migrate()
    assert job_store.tenants.get(DEFAULT_TENANT).limits == Limits(max_queued_jobs=1)


def test_tenants_in_pages_by_name(job_store: Store) -> None:
    for name in ("c", "a", "b"):
        job_store.tenants.create(name, Limits(), EVERY_PLACE)
    page = job_store.tenants.list_tenants(limit=2)
    rest = job_store.tenants.list_tenants(limit=2, after=page[-1].name)
    assert [tenant.name for tenant in page + rest] == ["a", "b", "c", DEFAULT_TENANT]


def test_queued_jobs_are_bounded_and_those_of_others_do_not_count(job_store: Store) -> None:
    job_store.tenants.create("a", Limits(max_queued_jobs=1), EVERY_PLACE)
    job_store.users("b").create(small_spec())
    job_store.users("a").create(small_spec())
    with pytest.raises(QuotaExceeded, match="1 jobs of the tenant are queued"):
        job_store.users("a").create(small_spec())
    job, new = job_store.users("b").create_once(small_spec(), "key")
    assert new
    with pytest.raises(QuotaExceeded):
        job_store.users("a").create_once(small_spec(), "key")
    assert job_store.users("b").create_once(small_spec(), "key") == (job, False)


def test_a_retry_is_refused_beyond_the_limits_as_a_new_job_is(job_store: Store) -> None:
    users = job_store.users("a")
    failed = [fail(job_store, users.create(small_spec())) for _ in range(2)]
    job_store.tenants.change("a", Limits(max_queued_jobs=1), EVERY_PLACE)
    retried = users.retry(failed[0].id)
    with pytest.raises(QuotaExceeded, match="1 jobs of the tenant are queued"):
        users.retry(failed[1].id)
    assert users.retry(failed[0].id) == retried  # it waits already
    assert users.get(failed[1].id) == failed[1]
    users.cancel(retried.id)
    assert users.retry(failed[1].id).state == JobState.QUEUED


def test_retries_at_once_are_all_counted(job_store: Store) -> None:
    users = job_store.users("a")
    failed = [fail(job_store, users.create(small_spec())) for _ in range(8)]
    job_store.tenants.change("a", Limits(max_queued_jobs=3), EVERY_PLACE)

    def retry(job: Job) -> bool:
        try:
            users.retry(job.id)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(retry, failed)) == 3


def test_jobs_that_are_submitted_at_once_are_all_counted(job_store: Store) -> None:
    job_store.tenants.create("a", Limits(max_queued_jobs=3), EVERY_PLACE)

    def submit(_: int) -> bool:
        try:
            job_store.users("a").create(small_spec())
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit, range(12))) == 3


def test_a_limit_of_running_jobs_stands_before_that_of_the_installation(job_store: Store) -> None:
    job_store.tenants.create("a", Limits(max_running_jobs=1), EVERY_PLACE)
    for tenant in ("a", "a", "b", "b"):
        job_store.users(tenant).create(small_spec())
    claimed = [job_store.claims.claim(max_running_per_tenant=2) for _ in range(4)]
    assert sorted(job.tenant for job in claimed if job) == ["a", "b", "b"]


def test_artifacts_count_until_their_job_is_deleted(job_store: Store) -> None:
    job_store.tenants.create("a", Limits(max_stored_bytes=1000), EVERY_PLACE)
    job_store.users("a").create(small_spec())
    job = job_store.claims.claim()
    assert job is not None
    job_store.attempts.published(job.id, 1, 0, Artifact("keep-0.8", "jobs/x/", FILES))
    assert job_store.tenants.usage("a") == Usage(1, 0, 1000)
    with pytest.raises(QuotaExceeded, match="take 1000 bytes"):
        job_store.users("a").create(small_spec())
    job_store.attempts.succeed(job.id, 1, {})
    job_store.users("a").delete(job.id)
    assert job_store.tenants.usage("a") == Usage(0, 0, 0)
    job_store.users("a").create(small_spec())


def test_datasets_count_and_are_refused_beyond_the_limit(job_store: Store) -> None:
    job_store.tenants.create("a", Limits(max_stored_bytes=1000), EVERY_PLACE)
    datasets = job_store.datasets("a")
    first, second, third = (datasets.begin(None, "text", "text", 60) for _ in range(3))
    datasets.complete(first, Contents(600, 1, 0, "0" * 64))
    with pytest.raises(QuotaExceeded, match="take 600 bytes"):
        datasets.complete(second, Contents(401, 1, 0, "0" * 64))
    datasets.complete(third, Contents(400, 1, 0, "0" * 64))
    assert job_store.tenants.usage("a") == Usage(0, 0, 1000)
    for refused in (
        lambda: datasets.begin(None, "text", "text", 60),
        lambda: job_store.users("a").create(small_spec()),
    ):
        with pytest.raises(QuotaExceeded, match="take 1000 bytes"):
            refused()
    datasets.delete(first)
    assert job_store.tenants.usage("a") == Usage(0, 0, 400)
    job_store.users("a").create(small_spec())


@pytest.mark.parametrize("method", METHODS)
def test_a_job_of_another_tenant_does_not_exist(job_store: Store, method: str) -> None:
    job = job_store.users("a").create(small_spec())
    messages = set()
    for job_id in (job.id, job.id[:-1] + "!"):
        with pytest.raises(JobNotFound) as caught:
            getattr(job_store.users("b"), method)(job_id)
        messages.add(str(caught.value).replace(job_id, "ID"))
    assert len(messages) == 1
    assert job_store.users("b").list_jobs(limit=9) == []
    assert job_store.records.get(job.id) == job
