"""An artifact is published to a real bucket whole or not at all, and only once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError
from botocore.model import OperationModel

import service.storage.s3
from service.domain.manifest import (
    MANIFEST_NAME,
    Manifest,
    artifact_prefix,
    artifacts_prefix,
    manifest_key,
)
from service.errors import ArtifactConflict, AttemptStale, StorageUnavailable
from service.settings import Settings
from service.storage.publication import publish, remove_publications
from service.storage.s3 import ObjectStorage
from tests.fixtures.rivals import publish_by_rivals

NAME = "keep-0.8"
ROUNDS = 4


@pytest.fixture
def job_id(request: pytest.FixtureRequest) -> str:
    return f"job-{request.node.name}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "artifact")


def make_folder(root: Path, weights: bytes = b"") -> Path:
    (root / "deep").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    (root / "deep" / "weights").write_bytes(weights or os.urandom(1000))
    (root / "empty").touch()
    return root


def keys(storage: ObjectStorage, job_id: str) -> list[str]:
    prefix = artifact_prefix(job_id, NAME)
    return [stored.key.removeprefix(prefix) for stored in storage.list_objects(prefix)]


def standing(storage: ObjectStorage, job_id: str) -> Manifest:
    return Manifest.parse(storage.get_bytes(manifest_key(job_id, NAME)))


def test_what_is_published(storage: ObjectStorage, job_id: str, folder: Path) -> None:
    artifact = publish(storage, job_id, 3, NAME, folder)
    assert artifact.name == NAME
    assert artifact.prefix.startswith(f"jobs/{job_id}/artifacts/{NAME}/3-")
    assert [entry.path for entry in artifact.files] == ["config.json", "deep/weights", "empty"]
    for entry in artifact.files:
        content = (folder / entry.path).read_bytes()
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert storage.get_bytes(artifact.prefix + entry.path) == content
    manifest = standing(storage, job_id)
    assert manifest.attempt == 3
    assert manifest.artifact(job_id, NAME) == artifact


def test_the_same_publication_twice_is_one(
    storage: ObjectStorage, job_id: str, folder: Path
) -> None:
    artifact = publish(storage, job_id, 1, NAME, folder)
    before = keys(storage, job_id)
    assert publish(storage, job_id, 1, NAME, folder) == artifact
    assert keys(storage, job_id) == before


def test_an_attempt_publishes_an_artifact_once(
    storage: ObjectStorage, job_id: str, folder: Path
) -> None:
    artifact = publish(storage, job_id, 1, NAME, folder)
    (folder / "config.json").write_text("other")
    with pytest.raises(ArtifactConflict, match="with other files"):
        publish(storage, job_id, 1, NAME, folder)
    assert storage.get_bytes(artifact.prefix + "config.json") == b"{}"


def test_a_later_attempt_replaces_the_manifest_and_nothing_else(
    storage: ObjectStorage, job_id: str, folder: Path
) -> None:
    first = publish(storage, job_id, 1, NAME, folder)
    (folder / "config.json").write_text("other")
    second = publish(storage, job_id, 2, NAME, folder)
    assert standing(storage, job_id).artifact(job_id, NAME) == second
    assert storage.get_bytes(first.prefix + "config.json") == b"{}"


def test_an_earlier_attempt_is_stale(storage: ObjectStorage, job_id: str, folder: Path) -> None:
    artifact = publish(storage, job_id, 2, NAME, folder)
    before = keys(storage, job_id)
    with pytest.raises(AttemptStale, match=r"Attempt 2 has published .*; attempt 1 is over"):
        publish(storage, job_id, 1, NAME, folder)
    assert keys(storage, job_id) == before
    assert standing(storage, job_id).artifact(job_id, NAME) == artifact


@pytest.mark.parametrize("left", [b"{", b'{"format": 9}'])
def test_a_manifest_that_cannot_be_read_is_replaced(
    storage: ObjectStorage, job_id: str, folder: Path, left: bytes
) -> None:
    storage.put_bytes(manifest_key(job_id, NAME), left)
    artifact = publish(storage, job_id, 1, NAME, folder)
    assert standing(storage, job_id).artifact(job_id, NAME) == artifact


def test_of_many_publishers_one_wins_and_readers_see_it_whole(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    done = publish_by_rivals(storage, tmp_path, rounds=ROUNDS)
    assert done.refused >= ROUNDS // 2 * 31


def test_a_failed_upload_leaves_no_manifest(
    s3_settings: Settings, job_id: str, folder: Path
) -> None:
    class Failing(ObjectStorage):
        def put_file(self, key: str, path: Path) -> None:
            if key.endswith("empty"):
                raise StorageUnavailable
            super().put_file(key, path)

    storage = Failing.from_settings(s3_settings)
    with pytest.raises(StorageUnavailable):
        publish(storage, job_id, 1, NAME, folder)
    assert MANIFEST_NAME not in keys(storage, job_id)


def test_a_file_that_is_not_whole_in_the_bucket_leaves_no_manifest(
    s3_settings: Settings, job_id: str, folder: Path
) -> None:
    class Losing(ObjectStorage):
        def put_file(self, key: str, path: Path) -> None:
            super().put_file(key, path)
            self.put_bytes(key, path.read_bytes()[:-1])

    storage = Losing.from_settings(s3_settings)
    with pytest.raises(StorageUnavailable, match=r"'config\.json' was uploaded with 2 bytes"):
        publish(storage, job_id, 1, NAME, folder)
    assert MANIFEST_NAME not in keys(storage, job_id)


def test_links_are_not_published(storage: ObjectStorage, job_id: str, folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="not a regular file"):
        publish(storage, job_id, 1, NAME, folder)


def test_nothing_is_no_artifact(storage: ObjectStorage, job_id: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="files"):
        publish(storage, job_id, 1, NAME, tmp_path)


def test_dead_publications_go_and_the_kept_one_stays(
    storage: ObjectStorage, job_id: str, folder: Path
) -> None:
    publish(storage, job_id, 1, NAME, folder)
    dead = storage.bucket, artifact_prefix(job_id, NAME) + "1-00c0ffee/half"
    storage._client.create_multipart_upload(Bucket=dead[0], Key=dead[1])
    (folder / "config.json").write_text("other")
    kept = publish(storage, job_id, 2, NAME, folder)
    storage._client.create_multipart_upload(Bucket=dead[0], Key=kept.prefix + "begun-twice")
    publish(storage, job_id, 2, "stray", folder)

    assert remove_publications(storage, job_id, through=2, keep={kept.prefix}) == 3 + 4
    inner = kept.prefix.removeprefix(artifact_prefix(job_id, NAME))
    assert keys(storage, job_id) == [*(inner + f.path for f in kept.files), MANIFEST_NAME]
    assert not list(storage.list_objects(artifact_prefix(job_id, "stray")))
    assert unfinished(storage, job_id) == []
    assert remove_publications(storage, job_id, through=2, keep={kept.prefix}) == 0
    assert remove_publications(storage, job_id, through=2, keep=()) == 4
    assert keys(storage, job_id) == []


def test_what_a_later_attempt_does_is_not_touched(
    storage: ObjectStorage, job_id: str, folder: Path
) -> None:
    client, base = storage._client, artifact_prefix(job_id, NAME)
    client.create_multipart_upload(Bucket=storage.bucket, Key=base + "2-00c0ffee/half")
    client.create_multipart_upload(Bucket=storage.bucket, Key=base + "10-00c0ffee/half")
    artifact = publish(storage, job_id, 10, NAME, folder)
    before = keys(storage, job_id)
    assert remove_publications(storage, job_id, through=2, keep=()) == 0
    assert unfinished(storage, job_id) == [base + "10-00c0ffee/half"]
    assert keys(storage, job_id) == before
    assert standing(storage, job_id).artifact(job_id, NAME) == artifact


@pytest.mark.parametrize("allowed", range(10))
def test_no_manifest_outlives_its_files_wherever_a_removal_breaks_off(
    storage: ObjectStorage,
    job_id: str,
    folder: Path,
    allowed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`allowed` requests of the removal are answered; then the server is gone."""
    artifacts = [publish(storage, job_id, 1, name, folder) for name in ("a", "b")]
    monkeypatch.setattr(service.storage.s3, "DELETE_BATCH", 2)
    answered: list[str] = []

    def answer(model: OperationModel, **_: object) -> None:
        if len(answered) == allowed:
            raise EndpointConnectionError(endpoint_url="the server")
        answered.append(model.name)

    storage._client.meta.events.register("before-call.s3", answer)
    with pytest.raises(StorageUnavailable):
        remove_publications(storage, job_id, through=1, keep=())
    storage._client.meta.events.unregister("before-call.s3", answer)

    left = {stored.key for stored in storage.list_objects(artifacts_prefix(job_id))}
    for artifact in artifacts:
        if manifest_key(job_id, artifact.name) in left:
            assert {artifact.prefix + entry.path for entry in artifact.files} <= left
    removed = 2 * answered.count("DeleteObjects") + answered.count("DeleteObject")
    assert len(left) == 8 - removed
    assert remove_publications(storage, job_id, through=1, keep=()) == len(left)


def test_what_lies_beside_a_manifest_is_of_a_dead_attempt_unless_it_is_kept(
    storage: ObjectStorage, job_id: str
) -> None:
    """The first format had no folders."""
    base = artifact_prefix(job_id, NAME)
    for name in ("config.json", "deep/weights", MANIFEST_NAME):
        storage.put_bytes(base + name, b"{}")
    assert remove_publications(storage, job_id, through=9, keep={base}) == 0
    assert remove_publications(storage, job_id, through=1, keep=()) == 3


def unfinished(storage: ObjectStorage, job_id: str) -> list[str]:
    found = storage._client.list_multipart_uploads(
        Bucket=storage.bucket, Prefix=artifact_prefix(job_id, "")[:-1]
    )
    return [upload["Key"] for upload in found.get("Uploads", ())]
