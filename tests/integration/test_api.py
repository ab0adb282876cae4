"""The API on a real bucket: refused submissions, and downloads of artifacts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.app import create_app
from service.domain.manifest import manifest_key
from service.settings import Settings
from service.standalone.ports import choose_port
from service.standalone.s3_server import LocalS3
from service.storage.publication import publish
from service.storage.s3 import ObjectStorage
from service.store.store import Store


@pytest.fixture
def settings(tmp_path: Path, allowed_root: Path, local_s3: LocalS3) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        allowed_roots=(allowed_root,),
        ray_address=f"http://127.0.0.1:{choose_port(0, '')}",
        s3_endpoint_url=local_s3.endpoint_url,
        s3_access_key_id=SecretStr(local_s3.access_key_id),
        s3_secret_access_key=SecretStr(local_s3.secret_access_key),
    )


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def store(settings: Settings, client: TestClient) -> Iterator[Store]:
    """Another process's view of the database that `client` works on."""
    assert client
    with closing(Store(settings.database)) as store:
        yield store


@pytest.fixture
def storage(settings: Settings) -> ObjectStorage:
    return ObjectStorage.from_settings(settings)


def _upload(storage: ObjectStorage, folder: Path, prefix: str) -> str:
    for path in folder.iterdir():
        storage.put_file(f"{prefix}/{path.name}", path)
    return f"s3://{storage.bucket}/{prefix}"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"s3_bucket": "no-such-bucket"}, "bucket_missing"),
        ({"s3_secret_access_key": SecretStr("wrong")}, "storage_credentials_invalid"),
        ({"s3_access_key_id": SecretStr("nobody")}, "storage_credentials_invalid"),
        ({"s3_endpoint_url": "http://127.0.0.1:9"}, "storage_unavailable"),
    ],
)
def test_a_job_is_refused_while_the_bucket_cannot_be_used(
    settings: Settings, job_body: dict[str, Any], change: dict[str, Any], code: str
) -> None:
    troubled = settings.model_copy(update=change)
    with TestClient(create_app(troubled)) as client:
        response = client.post("/v1/jobs", json=job_body)
        assert (response.status_code, response.json()["code"]) == (503, code)
        assert ("retry-after" in response.headers) is (code == "storage_unavailable")
        assert "wrong" not in response.text
        assert client.get("/v1/jobs").json()["jobs"] == []
        readiness = client.get("/readyz").json()
        assert readiness["database"]["ok"]
        assert not readiness["storage"]["ok"]


def test_a_job_is_accepted_while_ray_is_down(client: TestClient, job_body: dict[str, Any]) -> None:
    response = client.post("/v1/jobs", json=job_body)
    assert (response.status_code, response.json()["state"]) == (201, "queued")
    readiness = client.get("/readyz")
    assert readiness.status_code == 503
    checks = readiness.json()
    assert (checks["database"]["ok"], checks["storage"]["ok"]) == (True, True)
    assert not checks["cluster"]["ok"]
    assert checks["cluster"]["detail"]


def test_models_and_texts_in_the_bucket(
    client: TestClient,
    storage: ObjectStorage,
    model_folder: Path,
    text_folder: Path,
    job_body: dict[str, Any],
) -> None:
    job_body["model"] = {"source": "s3", "uri": _upload(storage, model_folder, "models/good")}
    data = {"source": "s3", "uri": _upload(storage, text_folder, "texts/good")}
    job_body["calibration"]["data"] = data
    assert client.post("/v1/jobs", json=job_body).status_code == 201


@pytest.mark.parametrize(
    ("removed", "added", "code"),
    [
        ("config.json", None, "model_config_missing"),
        ("model.safetensors", "pytorch_model.bin", "unsafe_weights"),
        (None, None, "model_not_found"),
    ],
)
def test_bad_models_in_the_bucket(
    client: TestClient,
    storage: ObjectStorage,
    model_folder: Path,
    job_body: dict[str, Any],
    removed: str | None,
    added: str | None,
    code: str,
) -> None:
    uri = f"s3://{storage.bucket}/models/nowhere"
    if removed:
        (model_folder / removed).unlink()
        if added:
            (model_folder / added).write_bytes(b"\x80\x02}q\x00.")
        uri = _upload(storage, model_folder, f"models/{code}")
    job_body["model"] = {"source": "s3", "uri": uri}
    response = client.post("/v1/jobs", json=job_body)
    problem = response.json()
    assert (response.status_code, problem["code"], problem["param"]) == (422, code, "model.uri")
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_no_text_in_the_bucket(
    client: TestClient, storage: ObjectStorage, job_body: dict[str, Any]
) -> None:
    job_body["calibration"]["data"] = {"source": "s3", "uri": f"s3://{storage.bucket}/no-texts"}
    problem = client.post("/v1/jobs", json=job_body).json()
    assert problem["code"] == "data_not_found"
    assert problem["param"].startswith("calibration.data.")


def test_artifacts_download_from_the_bucket_by_their_urls(
    client: TestClient,
    store: Store,
    storage: ObjectStorage,
    model_folder: Path,
    job_body: dict[str, Any],
) -> None:
    job_id = client.post("/v1/jobs", json=job_body).json()["id"]
    store.claims.claim()
    published = publish(storage, job_id, 1, "keep-0.8", model_folder)
    store.attempts.published(job_id, 1, 0, published)
    store.attempts.succeed(job_id, 1, {"kept": 0.8})

    (artifact,) = client.get(f"/v1/jobs/{job_id}/artifacts").json()["artifacts"]
    assert [file["path"] for file in artifact["files"]] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "manifest.json",
    ]
    with httpx.Client(trust_env=False) as bucket:
        for file in artifact["files"]:
            content = bucket.get(file["url"]).raise_for_status().content
            assert len(content) == file["size"]
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert client.get(f"/v1/jobs/{job_id}/report").json() == {"kept": 0.8}

    storage.delete([manifest_key(job_id, "keep-0.8")])
    response = client.get(f"/v1/jobs/{job_id}/artifacts")
    assert (response.status_code, response.json()["code"]) == (410, "object_missing")


def test_an_address_that_stays_leads_to_the_file_in_the_bucket(
    client: TestClient,
    store: Store,
    storage: ObjectStorage,
    model_folder: Path,
    job_body: dict[str, Any],
) -> None:
    """As `curl -L` follows it: with a range, with HEAD, and past other objects."""
    job_id = client.post("/v1/jobs", json=job_body).json()["id"]
    store.claims.claim()
    published = publish(storage, job_id, 1, "keep-0.8", model_folder)
    store.attempts.published(job_id, 1, 0, published)
    store.attempts.succeed(job_id, 1, {})
    files = f"/v1/jobs/{job_id}/artifacts/keep-0.8/files"
    content = (model_folder / "config.json").read_bytes()

    def location(method: str, path: str) -> str:
        answer = client.request(method, f"{files}/{path}", follow_redirects=False)
        assert answer.status_code == 302
        return answer.headers["location"]

    with httpx.Client(trust_env=False) as bucket:
        url = location("GET", "config.json")
        assert bucket.get(url).raise_for_status().content == content
        part = bucket.get(url, headers={"Range": "bytes=2-5"})
        assert (part.status_code, part.content) == (206, content[2:6])
        assert part.headers["Content-Range"] == f"bytes 2-5/{len(content)}"
        head = bucket.head(location("HEAD", "config.json"))
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(content)))
        assert bucket.get(location("GET", "manifest.json")).json()["format"] == 2
        other = url.replace("/config.json", "/tokenizer.json")
        assert bucket.get(other).status_code == 403  # the URL is for one object alone
        assert bucket.put(url, content=b"other").status_code == 403  # and for reading


def test_two_replicas_on_one_database_make_one_job_of_a_key(
    settings: Settings, postgres_url: str, job_body: dict[str, Any]
) -> None:
    shared = settings.model_copy(update={"database_url": postgres_url})
    key = {"Idempotency-Key": "the same"}
    with (
        TestClient(create_app(shared)) as one,
        TestClient(create_app(shared)) as other,
        ThreadPoolExecutor(8) as pool,
    ):
        # FastAPI builds an app's routes at its first request, which two threads cannot do at once.
        for replica in (one, other):
            assert replica.get("/v1/jobs").json()["jobs"] == []
        asked = [
            pool.submit(replica.post, "/v1/jobs", json=job_body, headers=key)
            for replica in (one, other) * 4
        ]
        answers = [each.result() for each in asked]
        assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
        (job_id,) = {answer.json()["id"] for answer in answers}
        for replica in (one, other):
            assert [job["id"] for job in replica.get("/v1/jobs").json()["jobs"]] == [job_id]
