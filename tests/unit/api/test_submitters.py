"""Who submitted a job: its tenant sees the key's id and name, and nobody sees the secret."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from api.access import ADMIN_KEY_ID
from service.domain.job import DEFAULT_TENANT
from service.domain.principal import Scope
from service.store.store import Store
from tests.unit.api.conftest import ADMIN_KEY
from tests.unit.api.test_access import bearer


def test_a_job_shows_the_key_that_submitted_it(
    keyed: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    laptop, text = store.keys.create(DEFAULT_TENANT, Scope.SUBMITTER, name="laptop")
    nameless, other = store.keys.create(DEFAULT_TENANT, Scope.SUBMITTER)
    once = {"Idempotency-Key": "one"}
    first = keyed.post("/v1/jobs", json=job_body, headers=bearer(text) | once).json()
    by_laptop = {"key_id": laptop.id, "key_name": "laptop"}
    assert first["submitted_by"] == by_laptop
    again = keyed.post("/v1/jobs", json=job_body, headers=bearer(other) | once).json()
    assert (again["id"], again["submitted_by"]) == (first["id"], by_laptop)
    for headers in (bearer(other), bearer(ADMIN_KEY)):
        keyed.post("/v1/jobs", json=job_body, headers=headers)
    keyed.delete(f"/v1/keys/{laptop.id}", headers=bearer(ADMIN_KEY))  # its jobs keep it
    listed = keyed.get("/v1/jobs", headers=bearer(other))
    assert [job["submitted_by"] for job in listed.json()["jobs"]] == [
        {"key_id": ADMIN_KEY_ID, "key_name": None},
        {"key_id": nameless.id, "key_name": None},
        by_laptop,
    ]
    got = keyed.get(f"/v1/jobs/{first['id']}", headers=bearer(other))
    assert got.json()["submitted_by"] == by_laptop
    for page in ("/", f"/jobs/{first['id']}", f"/jobs/{first['id']}/head"):
        shown = keyed.get(page, headers=bearer(other)).text
        assert f'by <span title="key {laptop.id}">laptop</span>' in shown, page
        assert text.split("_")[2] not in shown + listed.text + got.text
    assert f">{nameless.id}</span>" in keyed.get("/", headers=bearer(other)).text


def test_where_keys_are_not_required_a_job_has_no_submitter(
    client: TestClient, job_body: dict[str, Any]
) -> None:
    job = client.post("/v1/jobs", json=job_body).json()
    assert job["submitted_by"] is None
    for page in ("/", f"/jobs/{job['id']}"):
        text = client.get(page).text
        assert job["id"] in text
        assert 'title="key' not in text
