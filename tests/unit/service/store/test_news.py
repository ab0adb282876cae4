"""What is new in many jobs is read at once, on both databases."""

from __future__ import annotations

import threading

import pytest

from service.domain.job import DEFAULT_TENANT, EventType
from service.domain.states import JobState
from service.store.store import Store
from service.store.transitions import append, fence
from tests.fixtures.jobs import small_spec


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Store:
    store: Store = request.getfixturevalue(
        "job_store" if request.param == "sqlite" else "postgres_store"
    )
    return store


def test_each_job_is_read_from_its_own_cursor(store: Store) -> None:
    users = store.users(DEFAULT_TENANT)
    first, second, other = (users.create(small_spec()).id for _ in range(3))
    users.cancel(first)
    users.cancel(other)
    (queued, cancelled), (begun,) = (store.records.events(each) for each in (first, second))
    news = store.news.after({first: queued.id, second: 0})
    assert [(each.job_id, each.id) for each in news.events] == [
        (second, begun.id),
        (first, cancelled.id),
    ]
    assert news.events[1] == cancelled
    assert news.states == {first: JobState.CANCELLED, second: JobState.QUEUED}
    assert news.complete


def test_a_limit_leaves_the_later_events(store: Store) -> None:
    users = store.users(DEFAULT_TENANT)
    job_id = users.create(small_spec()).id
    users.cancel(job_id)
    news = store.news.after({job_id: 0}, limit=1)
    assert [each.type for each in news.events] == [EventType.QUEUED]
    assert not news.complete
    rest = store.news.after({job_id: news.events[0].id}, limit=2)
    assert [each.type for each in rest.events] == [EventType.CANCELLED]
    assert rest.complete


def test_a_deleted_job_has_no_state(store: Store) -> None:
    users = store.users(DEFAULT_TENANT)
    job_id = users.create(small_spec()).id
    users.cancel(job_id)
    users.delete(job_id)
    assert store.news.after({job_id: 0, "job-unknown": 0}).states == {}


def test_thousands_of_jobs_are_read_in_one_query(store: Store) -> None:
    job_id = store.users(DEFAULT_TENANT).create(small_spec()).id
    cursors = {f"job-{number}": number for number in range(3000)} | {job_id: 0}
    assert [each.job_id for each in store.news.after(cursors).events] == [job_id]


def test_events_of_one_job_commit_in_the_order_of_their_ids(postgres_store: Store) -> None:
    """A second writer waits until the first has committed, so no lower id appears later."""
    users = postgres_store.users(DEFAULT_TENANT)
    job_id = users.create(small_spec()).id
    claimed = postgres_store.claims.claim()
    assert claimed is not None
    second = threading.Thread(target=postgres_store.attempts.record, args=(job_id, 1, "second", ""))
    with postgres_store._database.writing() as connection:
        fence(connection, job_id, 1)
        append(connection, job_id, 1, "first", "")
        second.start()
        second.join(0.3)
        assert second.is_alive()
        seen = [each.type for each in postgres_store.news.after({job_id: 0}).events]
    second.join()
    assert seen == [EventType.QUEUED, EventType.CLAIMED]
    after = [each.type for each in postgres_store.news.after({job_id: 0}).events]
    assert after == [*seen, "first", "second"]
