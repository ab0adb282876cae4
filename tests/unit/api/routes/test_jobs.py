"""Submitting, listing, following and cancelling jobs."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.cursors import decode_cursor, encode_cursor
from api.services import Services
from service.domain.job import DEFAULT_TENANT, JOB_ID_PATTERN, new_job_id
from service.domain.placement import Placement
from service.domain.prediction import PREDICTED, Prediction
from service.domain.retry_policy import RetryPolicy
from service.domain.spec.job import JobSpec
from service.domain.states import JobState, Step
from service.errors import (
    BucketMissing,
    ClusterUnavailable,
    EigenpressError,
    Failure,
    InvalidParameter,
    StorageCredentialsInvalid,
    StorageUnavailable,
)
from service.store.store import Store
from tests.fixtures.jobs import rewrite_spec

UNKNOWN = "job-00000000000000000000000000"


def _submit(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/jobs", json=body)
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    return job


def test_submit_queues_the_job(client: TestClient, store: Store, job_body: dict[str, Any]) -> None:
    response = client.post("/v1/jobs", json=job_body)
    job = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert job["spec"] == JobSpec.model_validate(job_body).model_dump(mode="json")
    expected = {
        "name": "small",
        "state": "queued",
        "attempt": 0,
        "started_at": None,
        "finished_at": None,
        "steps": [],
        "error": None,
    }
    assert {key: job[key] for key in expected} == expected
    assert datetime.fromisoformat(job["created_at"]).utcoffset() is not None
    assert job["created_at"].endswith("Z")
    assert [each.id for each in store.records.list_jobs(limit=9)] == [job["id"]]
    assert client.get(response.headers["location"]).json() == job


def test_submit_does_not_need_ray(
    client: TestClient, cluster: Any, job_body: dict[str, Any]
) -> None:
    cluster.trouble = ClusterUnavailable()
    assert _submit(client, job_body)["state"] == "queued"


@pytest.mark.parametrize(
    ("trouble", "waits"),
    [(StorageUnavailable(), True), (BucketMissing(), False), (StorageCredentialsInvalid(), False)],
)
def test_submit_needs_the_bucket(
    client: TestClient,
    store: Store,
    storage: Any,
    job_body: dict[str, Any],
    trouble: EigenpressError,
    waits: bool,
) -> None:
    storage.trouble = trouble
    response = client.post("/v1/jobs", json=job_body)
    assert (response.status_code, response.json()["code"]) == (503, trouble.code)
    assert ("retry-after" in response.headers) is waits
    assert store.records.list_jobs(limit=1) == []


def test_list_pages_from_newest_to_oldest(client: TestClient, job_body: dict[str, Any]) -> None:
    ids = [_submit(client, job_body)["id"] for _ in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    pages = 0
    while True:
        page = client.get("/v1/jobs", params=query).json()
        seen += [job["id"] for job in page["jobs"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == ids[::-1]
    assert pages == 3


def test_a_full_last_page_has_no_next(client: TestClient, job_body: dict[str, Any]) -> None:
    for _ in range(2):
        _submit(client, job_body)
    assert client.get("/v1/jobs", params={"limit": 2}).json()["next_cursor"] is None


def test_list_filters_by_state(client: TestClient, store: Store, job_body: dict[str, Any]) -> None:
    first, second, third = (_submit(client, job_body)["id"] for _ in range(3))
    store.claims.claim()
    store.users(DEFAULT_TENANT).cancel(second)
    states = {"state": ["running", "cancelled"]}
    page = client.get("/v1/jobs", params=states).json()
    assert [job["id"] for job in page["jobs"]] == [second, first]
    page = client.get("/v1/jobs", params={"state": "queued"}).json()
    assert [job["id"] for job in page["jobs"]] == [third]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("limit", "0"),
        ("limit", "201"),
        ("limit", "many"),
        ("state", "sleeping"),
        ("method", "magic"),
        ("name", "my model"),
        ("label", "team"),
        ("label", ["team=ml", "team=web"]),
        ("label", "=ml"),
        ("label", "Team=ml"),
        ("label", "team=" + 64 * "x"),
        ("label", "team=a\nb"),
        ("label", "x" * 10_000),
        ("created_after", "yesterday"),
        ("created_after", "2026-11-21T12:00:00"),
        ("created_before", "0001-01-01T00:00:00+14:00"),
        ("cursor", "!!"),
        ("cursor", ""),
        ("cursor", "é"),
        ("cursor", base64.urlsafe_b64encode(b"job-1").decode()),
        ("cursor", base64.urlsafe_b64encode(b"\xff" * 30).decode()),
    ],
)
def test_invalid_query(client: TestClient, param: str, value: str | list[str]) -> None:
    response = client.get("/v1/jobs", params={param: value})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "invalid_parameter")
    assert problem["param"].partition(".")[0] == param


def test_cursors_round_trip() -> None:
    job_id = new_job_id()
    assert decode_cursor(encode_cursor(job_id), JOB_ID_PATTERN) == job_id
    with pytest.raises(InvalidParameter):
        decode_cursor(encode_cursor(job_id + "\n"), JOB_ID_PATTERN)


def test_a_running_job_shows_its_steps_and_its_page_in_ray(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    job_id = _submit(client, job_body)["id"]
    store.claims.claim()
    store.attempts.progress(job_id, 1, Step.RESOLVE, 1, 1, "models")
    store.attempts.progress(job_id, 1, Step.CALIBRATE, 3, 8, "sequences")
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["attempt"]) == ("running", 1)
    assert job["started_at"]
    assert [(s["step"], s["done"], s["total"], s["unit"]) for s in job["steps"]] == [
        ("resolve", 1, 1, "models"),
        ("calibrate", 3, 8, "sequences"),
    ]
    assert job["steps"][0]["finished_at"]
    assert job["steps"][1]["finished_at"] is None
    assert job["links"]["ray_dashboard"] == f"http://ray.test:8265/#/jobs/{job_id}-1"


def test_a_job_says_how_much_time_is_left(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    job_id = _submit(client, job_body)["id"]
    waiting = client.get(f"/v1/jobs/{job_id}").json()["time_left"]
    assert waiting == {"seconds": None, "to_come": [], "reason": "The job waits."}
    store.claims.claim()
    store.attempts.progress(job_id, 1, Step.RESOLVE, 1, 1, "models")
    seconds = {Step.RESOLVE: 5.0, Step.CALIBRATE: 1000.04, Step.PUBLISH: 20.0}
    made = Prediction(Placement(1, 1, 0), "1", seconds=seconds)
    store.attempts.record(job_id, 1, PREDICTED, "", made.as_data())
    store.attempts.progress(job_id, 1, Step.CALIBRATE, 0, 8, "passes")
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["steps"][0]["seconds_left"] is None
    assert job["steps"][1]["seconds_left"] == pytest.approx(1000, abs=5)
    left = job["time_left"]
    assert left["to_come"] == [{"step": "publish", "seconds": 20.0}]
    assert left["seconds"] == pytest.approx(1020, abs=5)
    assert left["reason"] is None
    (listed,) = client.get("/v1/jobs").json()["jobs"]
    assert listed["time_left"]["seconds"] == pytest.approx(1020, abs=5)
    failure = Failure("model_invalid", "It is not a model.", None, retryable=False)
    store.attempts.fail(job_id, 1, failure, RetryPolicy(1))
    ended = client.get(f"/v1/jobs/{job_id}").json()
    assert ended["time_left"] is None
    assert [step["seconds_left"] for step in ended["steps"]] == [None, None]


def test_the_dashboard_may_have_another_address_for_users(
    services: Services, job_body: dict[str, Any]
) -> None:
    public = services.settings.model_copy(update={"ray_public_address": "https://ray.example.org/"})
    app = create_app(public, lambda _: nullcontext(replace(services, settings=public)))
    with TestClient(app) as client:
        job_id = _submit(client, job_body)["id"]
        services.store.claims.claim()
        links = client.get(f"/v1/jobs/{job_id}").json()["links"]
    assert links["ray_dashboard"] == f"https://ray.example.org/#/jobs/{job_id}-1"


def test_a_failed_job_shows_why(client: TestClient, store: Store, job_body: dict[str, Any]) -> None:
    job_id = _submit(client, job_body)["id"]
    store.claims.claim()
    failure = Failure("calibration_too_short", "only 7 tokens", "calibration.data")
    store.attempts.fail(job_id, 1, failure, RetryPolicy(3))
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["state"] == "failed"
    assert job["error"] == {
        "code": "calibration_too_short",
        "detail": "only 7 tokens",
        "param": "calibration.data",
    }


def test_links_carry_the_prefix_that_a_proxy_mounts_the_server_under(
    client: TestClient, job_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.app, "root_path", "/eigenpress")
    job = _submit(client, job_body)
    assert job["links"]["events"] == f"/eigenpress/v1/jobs/{job['id']}/events"


def test_cancel(client: TestClient, store: Store, job_body: dict[str, Any]) -> None:
    running, queued = (_submit(client, job_body)["id"] for _ in range(2))
    store.claims.claim()
    for job_id, state in ((queued, "cancelled"), (running, "cancelling")):
        for _ in range(2):  # asking again changes nothing
            response = client.post(f"/v1/jobs/{job_id}/cancel")
            assert (response.status_code, response.json()["state"]) == (202, state)


def test_cancel_after_the_end_is_a_conflict(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    job_id = _submit(client, job_body)["id"]
    store.claims.claim()
    store.attempts.succeed(job_id, 1, {})
    response = client.post(f"/v1/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["code"]) == (409, "job_conflict")
    assert store.records.get(job_id).state is JobState.SUCCEEDED


def test_retry_of_a_failed_job(client: TestClient, store: Store, job_body: dict[str, Any]) -> None:
    job_id = _submit(client, job_body)["id"]
    store.claims.claim()
    store.attempts.fail(job_id, 1, InvalidParameter("no").failure(), RetryPolicy(3))
    response = client.post(f"/v1/jobs/{job_id}/retry")
    job = response.json()
    assert (response.status_code, job["state"], job["attempt"]) == (202, "queued", 1)
    assert (job["error"], job["last_error"]["detail"]) == (None, "no")
    assert client.post(f"/v1/jobs/{job_id}/retry").json() == job
    store.claims.claim()
    late = client.post(f"/v1/jobs/{job_id}/retry")
    assert (late.status_code, late.json()["code"]) == (409, "job_conflict")


def test_an_ended_job_is_deleted(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    job_id = _submit(client, job_body)["id"]
    refused = client.delete(f"/v1/jobs/{job_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_conflict")
    store.users(DEFAULT_TENANT).cancel(job_id)
    deleted = client.delete(f"/v1/jobs/{job_id}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 404
    assert client.get(f"/v1/jobs/{job_id}").status_code == 404
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_a_job_between_two_attempts_shows_what_it_waits_for(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    job_id = _submit(client, job_body)["id"]
    store.claims.claim()
    store.attempts.fail(job_id, 1, StorageUnavailable("S3 is away").failure(), RetryPolicy(3))
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["attempt"], job["error"]) == ("queued", 1, None)
    assert job["last_error"]["code"] == "storage_unavailable"
    assert datetime.fromisoformat(job["available_at"]) > datetime.fromisoformat(job["created_at"])


class TestIdempotencyKey:
    KEY: ClassVar = {"Idempotency-Key": "5d1c7c1e-2b0a-4b8e-9c55-0a3d9c1f2b11"}

    def test_the_same_request_gives_the_same_job(
        self, client: TestClient, store: Store, job_body: dict[str, Any]
    ) -> None:
        first = client.post("/v1/jobs", json=job_body, headers=self.KEY)
        again = client.post("/v1/jobs", json=job_body, headers=self.KEY)
        assert (first.status_code, again.status_code) == (201, 200)
        assert "Idempotent-Replayed" not in first.headers
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.headers["Location"] == first.headers["Location"]
        assert again.json() == first.json()
        assert len(store.records.list_jobs(limit=9)) == 1

    def test_also_once_it_could_not_be_accepted_any_more(
        self, client: TestClient, storage: Any, model_folder: Path, job_body: dict[str, Any]
    ) -> None:
        client.post("/v1/jobs", json=job_body, headers=self.KEY)
        (model_folder / "config.json").unlink()
        storage.trouble = StorageUnavailable()
        assert client.post("/v1/jobs", json=job_body, headers=self.KEY).status_code == 200

    def test_another_body_is_refused(
        self, client: TestClient, store: Store, job_body: dict[str, Any]
    ) -> None:
        client.post("/v1/jobs", json=job_body, headers=self.KEY)
        other = client.post("/v1/jobs", json=job_body | {"name": "other"}, headers=self.KEY)
        problem = other.json()
        assert (other.status_code, problem["code"]) == (422, "idempotency_key_reused")
        assert problem["param"] == "Idempotency-Key"
        assert len(store.records.list_jobs(limit=9)) == 1

    def test_a_refused_request_does_not_use_it_up(
        self, client: TestClient, storage: Any, job_body: dict[str, Any]
    ) -> None:
        storage.trouble = StorageUnavailable()
        assert client.post("/v1/jobs", json=job_body, headers=self.KEY).status_code == 503
        storage.trouble = None
        assert client.post("/v1/jobs", json=job_body, headers=self.KEY).status_code == 201

    def test_two_at_once_make_one_job(
        self, client: TestClient, store: Store, job_body: dict[str, Any]
    ) -> None:
        with ThreadPoolExecutor(4) as pool:
            asked = [
                pool.submit(client.post, "/v1/jobs", json=job_body, headers=self.KEY)
                for _ in range(4)
            ]
            answers = [each.result() for each in asked]
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
        (job,) = store.records.list_jobs(limit=9)
        assert {answer.json()["id"] for answer in answers} == {job.id}

    @pytest.mark.parametrize("key", [b"", b" ", b"x" * 256, b"tab\tbed"])
    def test_a_key_is_a_printable_name(
        self, client: TestClient, store: Store, job_body: dict[str, Any], key: bytes
    ) -> None:
        headers = httpx.Headers([(b"Idempotency-Key", key)])
        response = client.post("/v1/jobs", json=job_body, headers=headers)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
        assert response.json()["param"] == "Idempotency-Key"
        assert store.records.list_jobs(limit=9) == []


def test_events_can_be_followed(client: TestClient, store: Store, job_body: dict[str, Any]) -> None:
    job_id = _submit(client, job_body)["id"]
    store.claims.claim()
    store.attempts.record(job_id, 1, "note", "a word", {"size": 3})
    url = f"/v1/jobs/{job_id}/events"
    page = client.get(url, params={"limit": 2}).json()
    assert [event["type"] for event in page["events"]] == ["job.queued", "job.claimed"]
    rest = client.get(url, params={"after": page["next_after"]}).json()
    (note,) = rest["events"]
    assert (note["type"], note["message"], note["data"]) == ("note", "a word", {"size": 3})
    assert note["attempt"] == 1
    end = client.get(url, params={"after": rest["next_after"]}).json()
    assert end == {"events": [], "next_after": rest["next_after"]}


@pytest.mark.parametrize(
    ("param", "value"),
    [("after", "-1"), ("after", str(2**63)), ("limit", "0"), ("limit", "1001")],
)
def test_invalid_events_query(
    client: TestClient, job_body: dict[str, Any], param: str, value: str
) -> None:
    job_id = _submit(client, job_body)["id"]
    response = client.get(f"/v1/jobs/{job_id}/events", params={param: value})
    assert (response.status_code, response.json()["param"]) == (422, param)


@pytest.mark.parametrize("job_id", [UNKNOWN, "job-1", "..%2F..", "%00", "%F0%9F%A6%8A"])
@pytest.mark.parametrize(
    ("method", "suffix"),
    [
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("GET", "/events"),
        ("GET", "/artifacts"),
        ("GET", "/artifacts/keep-0.8"),
        ("GET", "/artifacts/keep-0.8/files/model.safetensors"),
        ("GET", "/report"),
    ],
)
def test_an_unknown_job(client: TestClient, job_id: str, method: str, suffix: str) -> None:
    body = {"priority": 1} if method == "PATCH" else None
    response = client.request(method, f"/v1/jobs/{job_id}{suffix}", json=body)
    expected = "not_found" if "%2F" in job_id else "job_not_found"
    assert (response.status_code, response.json()["code"]) == (404, expected)


def test_a_job_of_a_newer_version_is_shown_as_it_is_stored(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    newer, known = (_submit(client, job_body) for _ in range(2))
    rewrite_spec(store, store.records.get(newer["id"]), evaluation={"not_yet": 7}, method="newer")
    shown = client.get(f"/v1/jobs/{newer['id']}").json()
    assert shown["spec"].pop("method") == "newer"
    assert shown["spec"]["evaluation"].pop("not_yet") == 7
    assert shown["spec"] | {"method": newer["spec"]["method"]} == newer["spec"]
    assert {**shown, "spec": newer["spec"]} == newer
    listed = client.get("/v1/jobs")
    assert listed.status_code == 200
    assert [job["id"] for job in listed.json()["jobs"]] == [known["id"], newer["id"]]
    assert listed.json()["jobs"][0]["spec"] == known["spec"]
    assert listed.json()["jobs"][1]["spec"]["method"] == "newer"
    cancelled = client.post(f"/v1/jobs/{newer['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")


def test_a_retry_under_limits_that_this_version_does_not_know_is_refused(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    job = _submit(client, job_body)
    rewrite_spec(store, store.records.get(job["id"]), limits={"not_yet": 7})
    assert store.claims.claim() is None
    answer = client.post(f"/v1/jobs/{job['id']}/retry")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (503, "specification_unknown")
    assert problem["param"] == "limits.not_yet"
    assert "retry-after" not in answer.headers  # it does not pass by itself


def test_list_filters_by_all_that_a_job_is_known_by(
    client: TestClient, job_body: dict[str, Any]
) -> None:
    mine = job_body | {"name": "mine", "method": "svd", "labels": {"team": "ml", "note": "a=b c"}}
    first, other, last = (_submit(client, body) for body in (mine, job_body, mine))
    query: dict[str, Any] = {
        "state": ["queued", "running"],
        "method": ["svd", "afm"],
        "name": "mine",
        "label": ["team=ml", "note=a=b c"],
        "created_after": first["created_at"],
        "limit": 1,
    }
    page = client.get("/v1/jobs", params=query).json()
    assert [job["id"] for job in page["jobs"]] == [last["id"]]
    query["cursor"] = page["next_cursor"]
    page = client.get("/v1/jobs", params=query).json()
    assert [job["id"] for job in page["jobs"]] == [first["id"]]
    assert page["next_cursor"] is None
    query = {"created_before": other["created_at"].replace("Z", "+00:00")}
    page = client.get("/v1/jobs", params=query).json()
    assert [job["id"] for job in page["jobs"]] == [first["id"]]


@pytest.mark.parametrize(
    ("labels", "param"),
    [
        ({"Team": "ml"}, "labels.Team"),
        ({"team": 7}, "labels.team"),
        ({"team": None}, "labels.team"),
        ({"team": "a\tb"}, "labels.team"),
        ({"team": "x" * 64}, "labels.team"),
        ({f"l{number}": "" for number in range(17)}, "labels"),
        ({"model": "x" * 64, "source": ""}, "labels.model"),
        (["team"], "labels"),
    ],
)
def test_invalid_labels(
    client: TestClient, job_body: dict[str, Any], labels: object, param: str
) -> None:
    response = client.post("/v1/jobs", json=job_body | {"labels": labels})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "invalid_parameter")
    assert problem["param"] == param


class TestChanges:
    def test_the_job_shows_them(self, client: TestClient, job_body: dict[str, Any]) -> None:
        job = _submit(client, job_body | {"labels": {"team": "ml", "stage": "trial"}})
        patch = {"priority": 5, "labels": {"stage": None, "owner": "Ada"}}
        response = client.patch(f"/v1/jobs/{job['id']}", json=patch)
        changed = response.json()
        assert response.status_code == 200
        assert changed["spec"]["priority"] == 5
        assert changed["spec"]["labels"] == {"team": "ml", "owner": "Ada"}
        assert client.get(f"/v1/jobs/{job['id']}").json() == changed
        event = client.get(f"/v1/jobs/{job['id']}/events").json()["events"][-1]
        assert event["type"] == "job.changed"

    def test_a_merge_patch_may_be_called_so(
        self, client: TestClient, job_body: dict[str, Any]
    ) -> None:
        job = _submit(client, job_body)
        header = {"Content-Type": "application/merge-patch+json"}
        response = client.patch(f"/v1/jobs/{job['id']}", content=b'{"priority": 3}', headers=header)
        assert response.json()["spec"]["priority"] == 3

    @pytest.mark.parametrize(
        ("patch", "param"),
        [
            ({"priority": 101}, "priority"),
            ({"priority": "high"}, "priority"),
            ({"name": "other"}, "name"),
            ({"labels": {"Team": "ml"}}, "labels.Team"),
            ({"labels": {"team": 1}}, "labels.team"),
            ({"labels": {f"l{number}": None for number in range(33)}}, "labels"),
            ([], None),
        ],
    )
    def test_what_cannot_be_changed_is_named(
        self, client: TestClient, job_body: dict[str, Any], patch: object, param: str | None
    ) -> None:
        job = _submit(client, job_body)
        response = client.patch(f"/v1/jobs/{job['id']}", json=patch)
        assert (response.status_code, response.json()["param"]) == (422, param)
        assert client.get(f"/v1/jobs/{job['id']}").json() == job

    def test_the_priority_of_a_job_that_runs_is_a_conflict(
        self, client: TestClient, store: Store, job_body: dict[str, Any]
    ) -> None:
        job_id = _submit(client, job_body)["id"]
        assert store.claims.claim()
        response = client.patch(f"/v1/jobs/{job_id}", json={"priority": 5})
        problem = response.json()
        assert (response.status_code, problem["code"]) == (409, "job_conflict")
        assert problem["param"] == "priority"
        response = client.patch(f"/v1/jobs/{job_id}", json={"labels": {"seen": "yes"}})
        assert response.json()["spec"]["labels"] == {"seen": "yes"}
