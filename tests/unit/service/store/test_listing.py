"""Lists of jobs by filters, and the labels and priorities that users change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from service.domain.job import DEFAULT_TENANT, EventType, Job
from service.domain.labels import MAX_LABELS
from service.domain.patch import JobPatch
from service.domain.spec.job import JobSpec
from service.domain.states import JobState
from service.errors import InvalidParameter, JobConflict, JobNotFound
from service.store import tables
from service.store.listing import ALL, JobFilter, page
from service.store.store import Store
from service.store.users import Users
from tests.fixtures.jobs import age, rewrite_spec, small_spec


def spec(name: str = "small", **changes: Any) -> JobSpec:
    return JobSpec.model_validate(small_spec(name).model_dump() | changes)


def patch(**changes: Any) -> JobPatch:
    return JobPatch.model_validate(changes)


@pytest.fixture
def users(job_store: Store) -> Users:
    return job_store.users(DEFAULT_TENANT)


def found(users: Users, wanted: JobFilter) -> list[str]:
    return [job.id for job in users.list_jobs(wanted, limit=99)]


def ids(*jobs: Job) -> list[str]:
    """From the newest to the oldest."""
    return [job.id for job in reversed(jobs)]


class TestFilters:
    def test_by_name_and_method(self, users: Users) -> None:
        one, two = users.create(spec("one")), users.create(spec("two", method="svd"))
        other = users.create(spec("one", method="afm"))
        assert found(users, JobFilter(name="one")) == ids(one, other)
        assert found(users, JobFilter(methods=["svd", "afm"])) == ids(two, other)
        assert found(users, JobFilter(name="one", methods=["svd"])) == []

    def test_by_labels_which_must_all_be_there(self, users: Users) -> None:
        both = users.create(spec(labels={"team": "ml", "stage": "trial"}))
        one = users.create(spec(labels={"team": "ml"}))
        users.create(spec(labels={"team": "web", "stage": "trial"}))
        users.create(spec())
        assert found(users, JobFilter(labels={"team": "ml"})) == ids(both, one)
        assert found(users, JobFilter(labels={"team": "ml", "stage": "trial"})) == ids(both)
        assert found(users, JobFilter(labels={"stage": "trial", "team": "ml"})) == ids(both)
        assert found(users, JobFilter(labels={"team": ""})) == []

    def test_by_time_from_the_first_moment_to_before_the_last(self, users: Users) -> None:
        first, second, third = (users.create(spec()) for _ in range(3))
        after = JobFilter(created_after=second.created_at)
        before = JobFilter(created_before=second.created_at)
        assert found(users, after) == ids(second, third)
        assert found(users, before) == ids(first)
        moment = timedelta(microseconds=1)
        only = JobFilter(created_after=second.created_at, created_before=second.created_at + moment)
        assert found(users, only) == ids(second)

    def test_all_together(self, job_store: Store, users: Users) -> None:
        kept = users.create(spec("a", labels={"team": "ml"}, method="svd"))
        users.create(spec("a", method="svd"))
        users.create(spec("a", labels={"team": "ml"}))
        users.create(spec("b", labels={"team": "ml"}, method="svd"))
        wanted = JobFilter(
            states=[JobState.QUEUED],
            methods=["svd"],
            name="a",
            labels={"team": "ml"},
            created_after=kept.created_at,
        )
        assert found(users, wanted) == [kept.id]
        assert job_store.claims.claim()
        assert found(users, wanted) == []

    @pytest.mark.parametrize(
        "wanted", [ALL, JobFilter(labels={"team": "ml"}), JobFilter(name="small")], ids=repr
    )
    def test_pages_have_each_job_once(self, users: Users, wanted: JobFilter) -> None:
        jobs = [users.create(spec(labels={"team": "ml"})) for _ in range(5)]
        seen: list[str] = []
        while part := users.list_jobs(wanted, limit=2, before=seen[-1] if seen else None):
            seen += [job.id for job in part]
        assert seen == ids(*jobs)

    def test_neither_deleted_jobs_nor_another_tenants(self, job_store: Store, users: Users) -> None:
        labelled = spec(labels={"team": "ml"})
        theirs = job_store.users("other").create(labelled)
        mine, deleted = users.create(labelled), users.create(labelled)
        users.cancel(deleted.id)
        users.delete(deleted.id)
        for wanted in (ALL, JobFilter(labels={"team": "ml"}), JobFilter(name="small")):
            assert found(users, wanted) == [mine.id]
        everyones = job_store.records.list_jobs(JobFilter(labels={"team": "ml"}), limit=9)
        assert [job.id for job in everyones] == ids(theirs, mine)

    def test_labels_go_with_their_job(self, job_store: Store, users: Users) -> None:
        job = users.create(spec(labels={"team": "ml"}))
        users.cancel(job.id)
        users.delete(job.id)
        job_store.claims.remove(job.id)
        with job_store._database.reading() as connection:
            assert connection.execute(select(tables.job_labels)).all() == []

    def test_no_filter_reads_all_jobs_in_sqlite(self, job_store: Store) -> None:
        """Those that a filter leaves out are told from an index, and none are sorted."""
        with job_store._database.reading() as connection:
            if connection.dialect.name != "sqlite":
                pytest.skip("PostgreSQL plans by what the tables hold")
            for wanted in (
                ALL,
                JobFilter(states=[JobState.QUEUED, JobState.RUNNING], methods=["svd"]),
                JobFilter(name="a"),
                JobFilter(labels={"team": "ml", "stage": "trial"}, states=[JobState.FAILED]),
            ):
                query = page("default", wanted, before="job-9", limit=9)
                text = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all()
                steps: Sequence[str] = [row[-1] for row in plan]
                assert all(" USING " in step for step in steps if step.startswith("SEARCH"))
                assert not [step for step in steps if step.startswith(("SCAN", "USE TEMP B-TREE"))]


class TestChanges:
    def test_the_priority_of_a_queued_job_moves_it(self, job_store: Store, users: Users) -> None:
        users.create(spec())
        late = users.create(spec())
        changed = users.change(late.id, patch(priority=5))
        assert changed.spec.priority == 5
        assert changed == job_store.records.get(late.id)
        claimed = job_store.claims.claim()
        assert claimed is not None
        assert claimed.id == late.id

    def test_the_priority_of_a_running_job_stays(self, job_store: Store, users: Users) -> None:
        job = users.create(spec(priority=3))
        assert job_store.claims.claim()
        with pytest.raises(
            JobConflict, match="is running; only the priority of a queued"
        ) as caught:
            users.change(job.id, patch(priority=5, labels={"team": "ml"}))
        assert caught.value.param == "priority"
        assert users.get(job.id).spec.labels == {}
        assert users.change(job.id, patch(priority=3)).spec.priority == 3  # an answer was lost

    def test_labels_merge(self, users: Users) -> None:
        job = users.create(spec(labels={"team": "ml", "stage": "trial"}))
        changes = {"stage": None, "team": "web", "new": "", "absent": None}
        changed = users.change(job.id, patch(labels=changes))
        assert changed.spec.labels == {"team": "web", "new": ""}
        assert found(users, JobFilter(labels={"team": "ml"})) == []
        assert found(users, JobFilter(labels={"new": "", "team": "web"})) == [job.id]
        assert users.change(job.id, patch(labels=None)).spec.labels == {}
        assert found(users, JobFilter(labels={"new": ""})) == []

    def test_labels_of_an_ended_job_change_until_it_is_deleted(
        self, job_store: Store, users: Users
    ) -> None:
        job = users.create(spec())
        users.cancel(job.id)
        age(job_store, job.id, 10)
        assert users.change(job.id, patch(labels={"keep": "yes"})).spec.labels == {"keep": "yes"}
        users.delete(job.id)
        with pytest.raises(JobNotFound):
            users.change(job.id, patch(labels={"keep": "no"}))

    def test_what_changed_is_an_event_and_a_repetition_none(
        self, job_store: Store, users: Users
    ) -> None:
        job = users.create(spec(labels={"team": "ml"}))
        change = patch(priority=5, labels={"stage": "trial"})
        for _ in range(2):
            users.change(job.id, change)
        users.change(job.id, patch())
        (event,) = [e for e in job_store.records.events(job.id) if e.type == EventType.CHANGED]
        assert event.data == {"priority": 5, "labels": {"team": "ml", "stage": "trial"}}
        assert event.message == "The user changed: priority, labels."

    def test_null_takes_the_priority_back(self, users: Users) -> None:
        job = users.create(spec(priority=7))
        assert users.change(job.id, patch(labels={})).spec.priority == 7
        assert users.change(job.id, patch(priority=None)).spec.priority == 0

    def test_there_are_never_too_many_labels(self, users: Users) -> None:
        full = {f"l{number}": "" for number in range(MAX_LABELS)}
        job = users.create(spec(labels=full))
        with pytest.raises(InvalidParameter, match="17; at most 16") as caught:
            users.change(job.id, patch(labels={"more": ""}))
        assert caught.value.param == "labels"
        other: dict[str, str | None] = dict.fromkeys(full) | {
            f"m{n}": "" for n in range(MAX_LABELS)
        }
        assert len(users.change(job.id, patch(labels=other)).spec.labels) == MAX_LABELS

    def test_a_job_of_another_version_keeps_what_is_not_known(
        self, job_store: Store, users: Users
    ) -> None:
        job = users.create(spec())
        rewrite_spec(job_store, job, not_yet=7)
        changed = users.change(job.id, patch(priority=1, labels={"team": "ml"}))
        stored = json.loads(changed.stored_spec)
        assert stored == json.loads(job.stored_spec) | {
            "not_yet": 7,
            "priority": 1,
            "labels": {"team": "ml"},
        }

    def test_an_older_specification_gets_only_what_changes(
        self, job_store: Store, users: Users
    ) -> None:
        job = users.create(spec())
        older = json.loads(job.stored_spec)
        del older["labels"]
        with job_store._database.writing() as connection:
            mine = tables.jobs.update().where(tables.jobs.c.id == job.id)
            connection.execute(mine.values(spec=json.dumps(older)))
        assert users.get(job.id).spec.labels == {}
        changed = users.change(job.id, patch(priority=1, labels={"gone": None}))
        assert json.loads(changed.stored_spec) == older | {"priority": 1}

    def test_an_idempotency_key_still_finds_the_job(self, users: Users) -> None:
        wanted = spec(labels={"team": "ml"})
        job, _ = users.create_once(wanted, "key")
        users.change(job.id, patch(priority=2, labels={"team": None}))
        again, new = users.create_once(wanted, "key")
        assert (again.id, new, again.spec.labels) == (job.id, False, {})

    def test_another_tenants_job_is_not_found(self, job_store: Store, users: Users) -> None:
        theirs = job_store.users("other").create(spec())
        with pytest.raises(JobNotFound):
            users.change(theirs.id, patch(labels={"mine": ""}))
