"""The routes of artifacts and of the report."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from fastapi.testclient import TestClient

from service.domain.job import DEFAULT_TENANT, Artifact, FileEntry
from service.domain.manifest import Manifest
from service.domain.spec.job import JobSpec
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


def test_the_report_as_a_page(client: TestClient, succeeded: str) -> None:
    page = client.get(f"/v1/jobs/{succeeded}/report.html")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.text.startswith("<!doctype html>")


@pytest.mark.parametrize("what", ["artifacts", "report", "report.html"])
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


class TestOne:
    def test_is_as_in_the_list(self, client: TestClient, succeeded: str) -> None:
        listed = client.get(f"/v1/jobs/{succeeded}/artifacts").json()["artifacts"][0]
        one = client.get(f"/v1/jobs/{succeeded}/artifacts/keep-0.8").json()
        for answer in (listed, one):
            del answer["expires_at"]
            for file in answer["files"]:
                file["url"] = urlsplit(file["url"]).path
        assert one == listed

    @pytest.mark.parametrize("name", ["keep-0.9", "KEEP-0.8", "%00", "%2E%2E", "x" * 500])
    def test_no_other_name_is_found(self, client: TestClient, succeeded: str, name: str) -> None:
        for suffix in ("", "/files/model.safetensors"):
            response = client.get(f"/v1/jobs/{succeeded}/artifacts/{name}{suffix}")
            assert response.status_code == 404
            assert response.json()["code"] == "artifact_not_found"
            assert "it has: keep-0.8" in response.json()["detail"]

    def test_an_artifact_that_was_deleted_is_gone(
        self, client: TestClient, storage: Any, succeeded: str
    ) -> None:
        storage.objects.clear()
        response = client.get(f"/v1/jobs/{succeeded}/artifacts/keep-0.8")
        assert (response.status_code, response.json()["code"]) == (410, "object_missing")


class TestFiles:
    @pytest.fixture
    def files(self, succeeded: str) -> str:
        return f"/v1/jobs/{succeeded}/artifacts/keep-0.8/files"

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize(
        ("path", "folder"), [("model.safetensors", FOLDER), ("manifest.json", "")]
    )
    def test_are_redirected_to_their_one_object(
        self, client: TestClient, succeeded: str, files: str, method: str, path: str, folder: str
    ) -> None:
        response = client.request(method, f"{files}/{path}", follow_redirects=False)
        assert response.status_code == 302
        assert response.headers["cache-control"] == "no-store"
        url = urlsplit(response.headers["location"])
        assert url.netloc == "s3.test:8333"
        assert url.path == f"/eigenpress/jobs/{succeeded}/artifacts/keep-0.8/{folder}{path}"
        assert parse_qs(url.query)["X-Amz-Expires"] == ["3600"]

    def test_the_address_does_not_need_the_bucket(
        self, client: TestClient, storage: Any, files: str
    ) -> None:
        storage.trouble = StorageUnavailable()
        url = f"{files}/model.safetensors"
        assert client.get(url, follow_redirects=False).status_code == 302

    def test_a_path_may_have_folders_and_odd_characters(
        self, client: TestClient, store: Store, job_body: dict[str, Any]
    ) -> None:
        job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
        store.claims.claim()
        odd = FileEntry("a b/ü?#.json", 1, "0" * 64)
        prefix = f"jobs/{job_id}/artifacts/keep-0.8/{FOLDER}"
        store.attempts.published(job_id, 1, 0, Artifact("keep-0.8", prefix, (odd,)))
        store.attempts.succeed(job_id, 1, {})
        files = f"/v1/jobs/{job_id}/artifacts/keep-0.8/files"
        for spelling in ("a%20b/%C3%BC%3F%23.json", "a%20b%2F%c3%bc%3f%23.json"):
            answer = client.get(f"{files}/{spelling}", follow_redirects=False)
            assert (
                unquote(urlsplit(answer.headers["location"]).path)
                == f"/eigenpress/{prefix}{odd.path}"
            )

    @pytest.mark.parametrize(
        "path",
        [
            "other.json",
            "Model.safetensors",
            "model.safetensors/",
            "%2E/model.safetensors",
            "..%2Fmanifest.json",
            "%2E%2E/keep-0.8/manifest.json",
            "..%2f..%2fkeep-0.8%2fmanifest.json",
            f"{FOLDER}model.safetensors",
            "model.safetensors%00",
            "%2Fmodel.safetensors",
            "x" * 3000,
        ],
    )
    def test_no_other_path_is_found(self, client: TestClient, files: str, path: str) -> None:
        response = client.get(f"{files}/{path}", follow_redirects=False)
        assert response.status_code == 404
        assert response.json()["code"] in ("file_not_found", "not_found", "artifact_not_found")
        assert len(response.content) < 2000

    def test_nothing_before_success(
        self, client: TestClient, store: Store, job_body: dict[str, Any]
    ) -> None:
        job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
        for suffix in ("", "/files/model.safetensors"):
            response = client.get(
                f"/v1/jobs/{job_id}/artifacts/keep-0.8{suffix}", follow_redirects=False
            )
            assert (response.status_code, response.json()["code"]) == (409, "job_conflict")
