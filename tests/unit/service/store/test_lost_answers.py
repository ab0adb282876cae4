"""A call whose commit succeeded, but whose answer was lost, has no second effect when repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from service.domain.job import DEFAULT_TENANT, Artifact, EventType, FileEntry, Job
from service.domain.states import JobState
from service.errors import AttemptStale, DatabaseUnavailable, InvalidParameter, StorageUnavailable
from service.store.store import Store
from tests.fixtures.jobs import at_once, small_spec

ARTIFACT = Artifact("keep-0.8", "jobs/x/artifacts/keep-0.8/1-a/", (FileEntry("a", 3, "0" * 64),))
LOST = StorageUnavailable("S3 is away").failure()
FATAL = InvalidParameter("no such thing").failure()


@contextmanager
def lost_answers() -> Iterator[None]:
    """Within it, every commit works and is answered by an error."""

    def commit_and_fail(connection: Connection) -> None:
        connection.dialect.do_commit(connection.connection)
        raise OperationalError("COMMIT", {}, Exception("the connection was lost"))

    event.listen(Engine, "commit", commit_and_fail)
    try:
        yield
    finally:
        event.remove(Engine, "commit", commit_and_fail)


def twice(act: Callable[[], Any]) -> Any:
    """What a call returns when it is repeated after its answer was lost."""
    with lost_answers(), pytest.raises(DatabaseUnavailable):
        act()
    return act()


def claimed(store: Store) -> Job:
    store.users(DEFAULT_TENANT).create(small_spec())
    job = store.claims.claim()
    assert job is not None
    return job


def types(store: Store, job_id: str) -> list[str]:
    return [each.type for each in store.records.events(job_id)][2:]


def test_of_a_submission(job_store: Store) -> None:
    job, new = twice(lambda: job_store.users(DEFAULT_TENANT).create_once(small_spec(), "key"))
    assert not new
    assert job_store.records.list_jobs(limit=9) == [job]
    assert [each.type for each in job_store.records.events(job.id)] == [EventType.QUEUED]


def test_of_a_claim(job_store: Store) -> None:
    """The job is claimed, by somebody who does not know; whoever takes it over goes on."""
    created = job_store.users(DEFAULT_TENANT).create(small_spec())
    assert twice(lambda: job_store.claims.claim(owner="a", lease_seconds=0)) is None
    (job,) = job_store.claims.in_flight()
    assert (job.id, job.attempt, job.lapsed) == (created.id, 1, True)
    job_store.claims.take_over(job.id, 1, "a", 30)
    job_store.claims.submitted(job.id, 1)
    assert types(job_store, job.id) == [EventType.TAKEN_OVER, EventType.SUBMITTED]


@pytest.mark.parametrize(
    ("failure", "state", "event"),
    [
        (LOST, JobState.QUEUED, EventType.RETRIED),
        (FATAL, JobState.FAILED, EventType.FAILED),
    ],
)
def test_of_a_failure(job_store: Store, failure: Any, state: JobState, event: EventType) -> None:
    job = claimed(job_store)
    assert twice(lambda: job_store.attempts.fail(job.id, 1, failure, at_once(2))) is state
    assert types(job_store, job.id) == [event]


def test_of_a_publication_and_a_success(job_store: Store) -> None:
    job = claimed(job_store)
    twice(lambda: job_store.attempts.published(job.id, 1, 0, ARTIFACT))
    twice(lambda: job_store.attempts.succeed(job.id, 1, {"loss": 1.5}))
    assert job_store.records.artifacts(job.id) == (ARTIFACT,)
    assert job_store.records.report(job.id) == {"loss": 1.5}
    assert types(job_store, job.id) == [EventType.PUBLISHED, EventType.SUCCEEDED]


def test_of_a_user_s_wishes(job_store: Store) -> None:
    job = claimed(job_store)
    job_store.attempts.fail(job.id, 1, FATAL, at_once(2))
    assert twice(lambda: job_store.users(DEFAULT_TENANT).retry(job.id)).state is JobState.QUEUED
    assert twice(lambda: job_store.users(DEFAULT_TENANT).cancel(job.id)).state is JobState.CANCELLED
    assert types(job_store, job.id)[1:] == [EventType.REQUEUED, EventType.CANCELLED]


def test_of_a_submission_to_the_cluster_and_a_sign_of_life(job_store: Store) -> None:
    job = claimed(job_store)
    twice(lambda: job_store.claims.submitted(job.id, 1))
    twice(lambda: job_store.attempts.renew(job.id, 1, 30))
    assert types(job_store, job.id) == [EventType.SUBMITTED]


def test_of_a_release(job_store: Store) -> None:
    job = claimed(job_store)
    with pytest.raises(AttemptStale):
        twice(lambda: job_store.claims.release(job.id, 1, "no room"))
    assert (job_store.records.get(job.id).state, job_store.records.get(job.id).attempt) == (
        JobState.QUEUED,
        0,
    )
    assert types(job_store, job.id) == [EventType.RELEASED]
