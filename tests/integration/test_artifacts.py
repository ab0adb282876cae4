"""Publishing to a real bucket: whole or not at all, and once."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from service.artifacts import MANIFEST_NAME, Manifest, artifact_prefix, publish
from service.errors import ArtifactConflict, StorageUnavailable
from service.jobs import Artifact
from service.settings import Settings
from service.storage import ObjectStorage

NAME = "keep-0.8"


@pytest.fixture
def job_id(request: pytest.FixtureRequest) -> str:
    return f"job-{request.node.name}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "artifact"
    (root / "deep").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    (root / "deep" / "weights").write_bytes(os.urandom(1000))
    (root / "empty").touch()
    return root


def keys(storage: ObjectStorage, job_id: str) -> list[str]:
    prefix = artifact_prefix(job_id, NAME)
    return [stored.key.removeprefix(prefix) for stored in storage.list_objects(prefix)]


def test_what_is_published(storage: ObjectStorage, job_id: str, folder: Path) -> None:
    artifact = publish(storage, job_id, NAME, folder)
    assert (artifact.name, artifact.prefix) == (NAME, f"jobs/{job_id}/artifacts/{NAME}/")
    assert [entry.path for entry in artifact.files] == ["config.json", "deep/weights", "empty"]
    for entry in artifact.files:
        content = (folder / entry.path).read_bytes()
        assert (entry.size, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert storage.get_bytes(artifact.prefix + entry.path) == content
    manifest = Manifest.parse(storage.get_bytes(artifact.prefix + MANIFEST_NAME))
    assert [file.model_dump() for file in manifest.files] == [vars(e) for e in artifact.files]


def test_a_published_artifact_is_not_touched_again(
    storage: ObjectStorage, job_id: str, folder: Path
) -> None:
    artifact = publish(storage, job_id, NAME, folder)
    (folder / "config.json").write_text("other")
    with pytest.raises(ArtifactConflict, match="already published"):
        publish(storage, job_id, NAME, folder)
    assert storage.get_bytes(artifact.prefix + "config.json") == b"{}"


def test_of_two_publishers_one_wins(storage: ObjectStorage, job_id: str, tmp_path: Path) -> None:
    together = Barrier(2)

    def attempt(name: str) -> Artifact | None:
        root = tmp_path / name
        root.mkdir()
        (root / name).write_text(name)
        together.wait()
        try:
            return publish(storage, job_id, NAME, root)
        except ArtifactConflict:
            return None

    with ThreadPoolExecutor(2) as pool:
        winners = [artifact for artifact in pool.map(attempt, ("a", "b")) if artifact]
    assert len(winners) == 1
    manifest = Manifest.parse(storage.get_bytes(winners[0].prefix + MANIFEST_NAME))
    for file in manifest.files:
        assert storage.get_bytes(winners[0].prefix + file.path) == file.path.encode()


def test_what_a_dead_attempt_left_goes(storage: ObjectStorage, job_id: str, folder: Path) -> None:
    storage.put_bytes(artifact_prefix(job_id, NAME) + "model-00009.safetensors", b"half")
    storage.put_bytes(artifact_prefix(job_id, NAME) + "config.json", b"of another attempt")
    publish(storage, job_id, NAME, folder)
    assert keys(storage, job_id) == ["config.json", "deep/weights", "empty", MANIFEST_NAME]


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
        publish(storage, job_id, NAME, folder)
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
        publish(storage, job_id, NAME, folder)
    assert MANIFEST_NAME not in keys(storage, job_id)


def test_a_lost_answer_is_not_mistaken_for_a_rival(
    s3_settings: Settings, job_id: str, folder: Path
) -> None:
    class Forgetful(ObjectStorage):
        def put_bytes(self, key: str, data: bytes, *, only_if_absent: bool = False) -> bool:
            super().put_bytes(key, data, only_if_absent=only_if_absent)
            return super().put_bytes(key, data, only_if_absent=only_if_absent)

    storage = Forgetful.from_settings(s3_settings)
    assert publish(storage, job_id, NAME, folder).name == NAME


def test_a_rival_between_upload_and_manifest_wins(
    s3_settings: Settings, job_id: str, folder: Path
) -> None:
    class Late(ObjectStorage):
        def put_bytes(self, key: str, data: bytes, *, only_if_absent: bool = False) -> bool:
            super().put_bytes(key, b"the rival's")
            return super().put_bytes(key, data, only_if_absent=only_if_absent)

    storage = Late.from_settings(s3_settings)
    with pytest.raises(ArtifactConflict, match="Another attempt"):
        publish(storage, job_id, NAME, folder)
    manifest = storage.get_bytes(artifact_prefix(job_id, NAME) + MANIFEST_NAME)
    assert manifest == b"the rival's"


def test_links_are_not_published(storage: ObjectStorage, job_id: str, folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="no regular file"):
        publish(storage, job_id, NAME, folder)


def test_nothing_is_no_artifact(storage: ObjectStorage, job_id: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="files"):
        publish(storage, job_id, NAME, tmp_path)
