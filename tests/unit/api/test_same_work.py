"""What is another tenant's costs the database as much as what does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from service.domain.principal import Scope
from service.domain.spec.job import JobSpec
from service.errors import StorageUnavailable
from service.store.store import Store
from service.store.tenants import ensure_tenant
from tests.fixtures.jobs import at_once
from tests.unit.api.test_access import OTHER, a_webhook, bearer, key, request, routes
from tests.unit.service.store.test_datasets import uploaded

QUERIES = {
    "/jobs/{job_id}/live": "?shown=running.1.1",
    "/jobs/{job_id}/logs/live": "?attempt=1&source=driver",
}
"""What a route needs besides the path."""
ENDS = ("succeeded", "failed", "cancelled", "queued")


@pytest.fixture(autouse=True)
def other_tenant(store: Store) -> None:
    with store._database.writing() as connection:
        ensure_tenant(connection, OTHER)


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """The statements that the database gets meanwhile."""
    made: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        made.append(statement)

    engine = store._database._engine
    event.listen(engine, "before_cursor_execute", note)
    yield made
    event.remove(engine, "before_cursor_execute", note)


def a_job(store: Store, spec: JobSpec, end: str) -> str:
    """The id of a job of the other tenant that has ended so, or waits."""
    users = store.users(OTHER)
    job_id = users.create(spec).id
    if end == "cancelled":
        users.cancel(job_id)
    elif end != "queued":
        claimed = store.claims.claim()
        assert claimed is not None
        assert claimed.id == job_id
        if end == "succeeded":
            store.attempts.succeed(job_id, 1, {})
        else:
            store.attempts.fail(job_id, 1, StorageUnavailable().failure(), at_once(1))
    assert store.records.get(job_id).state == end
    return job_id


@pytest.mark.parametrize("end", ENDS)
def test_the_database_does_as_much_for_a_foreign_id_as_for_a_missing_one(
    keyed: TestClient, store: Store, job_spec: JobSpec, end: str
) -> None:
    """The same statements in the same order, so that no time tells one from the other."""
    theirs = {
        "job_id": a_job(store, job_spec, end),
        "dataset_id": uploaded(store, OTHER).id,
        **a_webhook(store),
    }
    missing = {name: f"{id_[:-4]}0000" for name, id_ in theirs.items()}
    text = key(store, Scope.SUBMITTER)
    keyed.get("/v1/jobs", headers=bearer(text))  # which notes that the key is in use
    compared = 0
    for method, path, _ in routes(keyed):
        if not theirs.keys() & set(re.findall(r"{(\w+)", path)):
            continue
        made = []
        for ids in (theirs, missing):
            with statements(store) as found:
                answer = request(keyed, method, path + QUERIES.get(path, ""), ids, text)
            assert answer.status_code == 404, path
            made.append(found)
        assert made[0] == made[1], path
        assert len(made[0]) > 2, path  # more than the key and the clock
        compared += 1
    assert compared > 30


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/estimates"])
def test_a_foreign_dataset_in_a_job_is_as_a_missing_one(
    keyed: TestClient, store: Store, job_body: dict[str, Any], path: str
) -> None:
    theirs = uploaded(store, OTHER).id
    headers = bearer(key(store, Scope.SUBMITTER))
    keyed.get("/v1/jobs", headers=headers)
    made = []
    for dataset_id in (theirs, f"{theirs[:-4]}0000"):
        job_body["calibration"]["data"] = {"source": "dataset", "id": dataset_id}
        with statements(store) as found:
            answer = keyed.post(path, json=job_body, headers=headers)
        assert "data_not_found" in answer.text
        assert dataset_id in answer.text
        made.append(found)
    assert made[0] == made[1]
    assert len(made[0]) > 2
