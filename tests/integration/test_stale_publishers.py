"""Suspends publishers and removers before any call to the bucket, or makes their calls fail.

In every case the artifact of the current attempt is whole, and the remains of other attempts can be
removed.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import EndpointConnectionError

import service.storage.s3
from service.domain.job import Artifact
from service.domain.manifest import Manifest, artifact_prefix, manifest_key
from service.errors import EigenpressError
from service.settings import Settings
from service.storage.publication import publish, remove_publications
from service.storage.s3 import ObjectStorage

NAME = "keep-0.8"
PART_BYTES = 5 * 2**20
MAX_CALLS = 40


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of more than one small part go up in several."""
    config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
    monkeypatch.setattr(service.storage.s3, "_TRANSFER", config)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"job-{request.node.name}"


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """What the attempt publishes that is suspended: one file in one part, one in two."""
    folder = tmp_path / "stale"
    folder.mkdir()
    (folder / "config.json").write_text("stale")
    (folder / "model.safetensors").write_bytes(os.urandom(PART_BYTES + 1))
    return folder


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """What the attempt publishes that counts."""
    folder = tmp_path / "current"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(f"current {name}")
    return folder


class Interruption:
    """Something that happens once, at the n-th call of a storage to its server.

    Calls of other threads wait while it happens, as those of a suspended process do.
    """

    def __init__(
        self, storage: ObjectStorage, number: int, act: Callable[[], object], moment: str
    ) -> None:
        self._left = number
        self._act = act
        self._lock = threading.Lock()
        self._events, self._name = storage._client.meta.events, f"{moment}.s3"

    def __enter__(self) -> Interruption:
        self._events.register(self._name, self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        self._events.unregister(self._name, self._on_call)

    @property
    def happened(self) -> bool:
        return self._left < 0

    def _on_call(self, **_: object) -> None:
        with self._lock:
            self._left -= 1
            if self._left == -1:
                self._act()


def at_every_call(
    settings: Settings,
    act: Callable[[ObjectStorage, str], object],
    meanwhile: Callable[[str], object],
    check: Callable[[str], None],
    *,
    moment: str = "before-call",
    patience_seconds: float = 0,
) -> int:
    """Run `act` again and again, each time interrupted one call later; how many calls it makes.

    All three are given the interrupted act's own number, as a string.
    """
    storage = ObjectStorage.from_settings(settings, patience_seconds=patience_seconds)
    for number in range(MAX_CALLS):
        job = str(number)
        with (
            Interruption(storage, number, partial(meanwhile, job), moment) as interruption,
            suppress(EigenpressError),
        ):
            act(storage, job)
        if not interruption.happened:
            return number
        check(job)
    raise AssertionError(f"more than {MAX_CALLS} calls")


def is_whole(storage: ObjectStorage, job_id: str, artifact: Artifact) -> bool:
    manifest = Manifest.parse(storage.get_bytes(manifest_key(job_id, NAME)))
    return manifest.artifact(job_id, NAME) == artifact and all(
        hashlib.sha256(storage.get_bytes(artifact.prefix + file.path)).hexdigest() == file.sha256
        for file in artifact.files
    )


def leftovers(storage: ObjectStorage, job_id: str) -> list[str]:
    """All objects and unfinished uploads of the job's artifact."""
    prefix = artifact_prefix(job_id, NAME)
    found = storage._client.list_multipart_uploads(Bucket=storage.bucket, Prefix=prefix)
    uploads = [upload["Key"] for upload in found.get("Uploads", ())]
    return [*(stored.key for stored in storage.list_objects(prefix)), *uploads]


def objects_of(job_id: str, artifact: Artifact) -> list[str]:
    return [*(artifact.prefix + f.path for f in artifact.files), manifest_key(job_id, NAME)]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_stale_publisher_changes_nothing_that_counts(
    storage: ObjectStorage,
    s3_settings: Settings,
    prefix: str,
    stale: Path,
    current: Path,
    earlier: bool,
) -> None:
    """Attempt 2 is suspended; attempt 3 publishes, and what earlier ones left is removed."""
    published: dict[str, Artifact] = {}

    def act(suspended: ObjectStorage, job: str) -> None:
        if earlier:
            publish(storage, prefix + job, 1, NAME, current)
        publish(suspended, prefix + job, 2, NAME, stale)

    def meanwhile(job: str) -> None:
        published[job] = publish(storage, prefix + job, 3, NAME, current)
        remove_publications(storage, prefix + job, through=2, keep=())

    def check(job: str) -> None:
        assert is_whole(storage, prefix + job, published[job])
        remove_publications(storage, prefix + job, through=2, keep=())
        assert leftovers(storage, prefix + job) == objects_of(prefix + job, published[job])
        assert is_whole(storage, prefix + job, published[job])

    assert at_every_call(s3_settings, act, meanwhile, check) >= 9


def test_what_a_publisher_leaves_that_outlived_its_job_is_removed(
    storage: ObjectStorage, s3_settings: Settings, prefix: str, stale: Path
) -> None:
    def remove(job: str) -> None:
        remove_publications(storage, prefix + job, through=1, keep=())

    def check(job: str) -> None:
        remove(job)
        assert leftovers(storage, prefix + job) == []

    def act(suspended: ObjectStorage, job: str) -> None:
        publish(suspended, prefix + job, 1, NAME, stale)

    assert at_every_call(s3_settings, act, remove, check) >= 9


def test_a_stale_remover_touches_no_later_publication(
    storage: ObjectStorage, s3_settings: Settings, prefix: str, current: Path
) -> None:
    published: dict[str, Artifact] = {}

    def act(suspended: ObjectStorage, job: str) -> None:
        publish(storage, prefix + job, 1, NAME, current)
        half = artifact_prefix(prefix + job, NAME) + "1-00c0ffee/half"
        storage._client.create_multipart_upload(Bucket=storage.bucket, Key=half)
        remove_publications(suspended, prefix + job, through=1, keep=())

    def meanwhile(job: str) -> None:
        published[job] = publish(storage, prefix + job, 2, NAME, current)

    def check(job: str) -> None:
        assert is_whole(storage, prefix + job, published[job])
        assert leftovers(storage, prefix + job) == objects_of(prefix + job, published[job])

    assert at_every_call(s3_settings, act, meanwhile, check) >= 6


@pytest.mark.parametrize("moment", ["before-call", "after-call"])
def test_a_publication_survives_the_loss_of_any_request_or_answer(
    storage: ObjectStorage, s3_settings: Settings, prefix: str, stale: Path, moment: str
) -> None:
    published: dict[str, Artifact] = {}

    def act(unlucky: ObjectStorage, job: str) -> None:
        published[job] = publish(unlucky, prefix + job, 1, NAME, stale)

    def lose(_: str) -> None:
        raise EndpointConnectionError(endpoint_url="the server")

    def check(job: str) -> None:
        assert is_whole(storage, prefix + job, published[job])

    calls = at_every_call(s3_settings, act, lose, check, moment=moment, patience_seconds=60)
    assert calls >= 9


def test_a_removal_survives_the_loss_of_any_answer(
    storage: ObjectStorage, s3_settings: Settings, prefix: str, current: Path
) -> None:
    def act(unlucky: ObjectStorage, job: str) -> None:
        publish(storage, prefix + job, 1, NAME, current)
        remove_publications(unlucky, prefix + job, through=1, keep=())

    def lose(_: str) -> None:
        raise EndpointConnectionError(endpoint_url="the server")

    def check(job: str) -> None:
        assert leftovers(storage, prefix + job) == []

    calls = at_every_call(s3_settings, act, lose, check, moment="after-call", patience_seconds=60)
    assert calls >= 6
