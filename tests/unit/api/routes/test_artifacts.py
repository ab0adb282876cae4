"""The routes of artifacts and of the report."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.testclient import TestClient

from service.domain.job import DEFAULT_TENANT, Artifact, FileEntry
from service.domain.manifest import Manifest
from service.domain.spec import JobSpec
from service.errors import EigenpressError, StorageUnavailable
from service.store.store import Store

WEIGHTS = FileEntry("model.safetensors", 1000, "ab" * 32)
FOLDER = "1-00c0ffee/"
MANIFEST = Manifest.of([WEIGHTS], FOLDER).to_json()


@pytest.fixture
def succeeded(store: Store, storage: Any, job_body: dict[str, Any]) -> str:
    """A job with one artifact of one file, and its manifest in the bucket."""
    job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
    store.claims.claim()
    prefix = f"jobs/{job_id}/artifacts/keep-0.8/{FOLDER}"
    storage.objects[f"jobs/{job_id}/artifacts/keep-0.8/manifest.json"] = MANIFEST
    store.attempts.published(job_id, 1, 0, Artifact("keep-0.8", prefix, (WEIGHTS,)))
    store.attempts.succeed(job_id, 1, {"loss": 1.5})
    return job_id


def test_files_have_sizes_hashes_and_urls(client: TestClient, succeeded: str) -> None:
    (artifact,) = client.get(f"/v1/jobs/{succeeded}/artifacts").json()["artifacts"]
    prefix = f"jobs/{succeeded}/artifacts/keep-0.8/"
    assert artifact["name"] == "keep-0.8"
    assert artifact["uri"] == f"s3://eigenpress/{prefix}{FOLDER}"
    assert artifact["bytes"] == 1000 + len(MANIFEST)
    weights, manifest = artifact["files"]
    assert (weights["path"], weights["size"], weights["sha256"]) == (
        WEIGHTS.path,
        WEIGHTS.size,
        WEIGHTS.sha256,
    )
    assert manifest["path"] == "manifest.json"
    assert manifest["size"] == len(MANIFEST)
    assert manifest["sha256"] == hashlib.sha256(MANIFEST).hexdigest()
    for file, folder in zip(artifact["files"], (FOLDER, ""), strict=True):
        url = urlsplit(file["url"])
        assert url.path == f"/eigenpress/{prefix}{folder}{file['path']}"
        assert parse_qs(url.query)["X-Amz-Expires"] == ["3600"]


def test_expiry_is_stated(client: TestClient, succeeded: str) -> None:
    before = datetime.now(UTC)
    (artifact,) = client.get(f"/v1/jobs/{succeeded}/artifacts").json()["artifacts"]
    expires = datetime.fromisoformat(artifact["expires_at"])
    assert before <= expires - timedelta(seconds=3600) <= datetime.now(UTC)


def test_an_artifact_that_was_deleted_is_gone(
    client: TestClient, storage: Any, succeeded: str
) -> None:
    storage.objects.clear()
    response = client.get(f"/v1/jobs/{succeeded}/artifacts")
    assert (response.status_code, response.json()["code"]) == (410, "object_missing")


@pytest.mark.parametrize(
    "standing",
    [
        MANIFEST[:-1],
        MANIFEST.replace(b"1000", b"1001"),
        Manifest.of([WEIGHTS], "2-00c0ffee/").to_json(),
    ],
)
def test_a_manifest_that_is_not_the_published_one_is_no_artifact(
    client: TestClient, storage: Any, succeeded: str, standing: bytes
) -> None:
    storage.objects[f"jobs/{succeeded}/artifacts/keep-0.8/manifest.json"] = standing
    response = client.get(f"/v1/jobs/{succeeded}/artifacts")
    assert (response.status_code, response.json()["code"]) == (410, "artifact_corrupt")
    assert "manifest.json" in response.json()["detail"]


def test_an_artifact_of_the_first_format_is_handed_out(
    client: TestClient, store: Store, storage: Any, job_body: dict[str, Any]
) -> None:
    job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
    store.claims.claim()
    prefix = f"jobs/{job_id}/artifacts/keep-0.8/"
    storage.objects[prefix + "manifest.json"] = Manifest.of([WEIGHTS], "").to_json()
    store.attempts.published(job_id, 1, 0, Artifact("keep-0.8", prefix, (WEIGHTS,)))
    store.attempts.succeed(job_id, 1, {"loss": 1.5})
    (artifact,) = client.get(f"/v1/jobs/{job_id}/artifacts").json()["artifacts"]
    paths = [urlsplit(file["url"]).path for file in artifact["files"]]
    assert paths == [f"/eigenpress/{prefix}{name}" for name in (WEIGHTS.path, "manifest.json")]


def test_no_artifacts_while_the_bucket_is_away(
    client: TestClient, storage: Any, succeeded: str
) -> None:
    trouble: EigenpressError = StorageUnavailable()
    storage.trouble = trouble
    response = client.get(f"/v1/jobs/{succeeded}/artifacts")
    assert (response.status_code, response.json()["code"]) == (503, trouble.code)


def test_the_report(client: TestClient, succeeded: str) -> None:
    assert client.get(f"/v1/jobs/{succeeded}/report").json() == {"loss": 1.5}


@pytest.mark.parametrize("what", ["artifacts", "report"])
def test_nothing_before_success(
    client: TestClient, store: Store, job_body: dict[str, Any], what: str
) -> None:
    job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
    for state in ("queued", "running", "cancelling"):
        response = client.get(f"/v1/jobs/{job_id}/{what}")
        assert (response.status_code, response.json()["code"]) == (409, "job_conflict")
        assert state in response.json()["detail"]
        if state == "queued":
            store.claims.claim()
        else:
            store.users(DEFAULT_TENANT).cancel(job_id)
