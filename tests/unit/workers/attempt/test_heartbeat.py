"""A lease is renewed as long as the attempt is current, despite other errors."""

from __future__ import annotations

import threading
from datetime import datetime

import pytest

from service.domain.job import DEFAULT_TENANT, Job
from service.domain.spec.job import JobSpec
from service.errors import AttemptStale, DatabaseUnavailable, JobNotFound
from service.store.store import Store
from tests.fixtures.waiting import wait_until
from workers.attempt.heartbeat import Heartbeat


@pytest.fixture
def job(job_store: Store, job_spec: JobSpec) -> Job:
    job_store.users(DEFAULT_TENANT).create(job_spec)
    claimed = job_store.claims.claim()
    assert claimed is not None
    return claimed


def beating(store: Store, job: Job, stale: threading.Event, seconds: float = 0.05) -> Heartbeat:
    return Heartbeat(store, job.id, job.attempt, seconds, stale.set)


@pytest.fixture
def renewals(job_store: Store, monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The lease after each renewal that was committed."""
    renew = job_store.attempts.renew
    leases: list[datetime] = []

    def counted(job_id: str, attempt: int, lease_seconds: float) -> None:
        renew(job_id, attempt, lease_seconds)
        lease_until = job_store.records.get(job_id).lease_until
        assert lease_until is not None
        leases.append(lease_until)

    monkeypatch.setattr(job_store.attempts, "renew", counted)
    return leases


def test_the_lease_is_renewed_at_once_and_again_and_again(
    job_store: Store, job: Job, renewals: list[datetime]
) -> None:
    stale = threading.Event()
    with beating(job_store, job, stale):
        wait_until(lambda: len(renewals) >= 3)
    after = list(renewals)
    assert not stale.wait(0.2)
    assert renewals == after
    assert after == sorted(set(after))


@pytest.mark.parametrize("ended", ["cancelled", "superseded", "deleted"])
def test_an_attempt_that_is_over_is_told(
    job_store: Store, job: Job, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renew(*_: object) -> None:
        raise {"superseded": AttemptStale, "deleted": JobNotFound}[ended]

    stale = threading.Event()
    if ended == "cancelled":
        job_store.users(DEFAULT_TENANT).cancel(job.id)
    else:
        monkeypatch.setattr(job_store.attempts, "renew", renew)
    with beating(job_store, job, stale):
        assert stale.wait(60)


def test_a_database_that_is_away_is_tried_again(
    job_store: Store, job: Job, renewals: list[datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    renew, tries = job_store.attempts.renew, []

    def unavailable_at_first(job_id: str, attempt: int, lease_seconds: float) -> None:
        tries.append(attempt)
        if len(tries) < 4:
            raise DatabaseUnavailable
        renew(job_id, attempt, lease_seconds)

    monkeypatch.setattr(job_store.attempts, "renew", unavailable_at_first)
    stale = threading.Event()
    with beating(job_store, job, stale):
        wait_until(lambda: len(renewals) >= 1)
    assert not stale.is_set()
