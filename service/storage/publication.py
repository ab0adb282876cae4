"""Publishing: a folder becomes an artifact in the bucket, and its manifest makes it one.

Every publication writes its files to a folder of its own, so no publisher touches another's files.
The manifest is written last, and only if there is none yet or an earlier attempt wrote it. So a
reader that finds a manifest finds every file that it names, one of several publishers of the same
attempt wins, and a stale attempt cannot replace a later attempt's artifact.

The store decides which artifacts are valid. It accepts none from an attempt that is no longer the
job's current one, and the files of such an attempt are removed after the job has ended.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from service.domain.job import Artifact, FileEntry
from service.domain.manifest import (
    FOLDER_PATTERN,
    MANIFEST_NAME,
    Manifest,
    artifact_prefix,
    artifacts_prefix,
    folder_attempt,
    manifest_key,
    new_folder,
    sha256_of,
)
from service.errors import (
    ArtifactConflict,
    ArtifactCorrupt,
    AttemptStale,
    ObjectMissing,
    StorageUnavailable,
)
from service.storage.s3 import ObjectStorage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _CurrentManifest:
    """The manifest in the bucket. One that cannot be read belongs to no attempt."""

    manifest: Manifest | None
    etag: str

    @property
    def attempt(self) -> int:
        return self.manifest.attempt if self.manifest else 0


def publish(storage: ObjectStorage, job_id: str, attempt: int, name: str, folder: Path) -> Artifact:
    """Upload every file below `folder`, then the manifest.

    An earlier attempt's manifest is replaced, so the caller first asks the store whether the job
    has the artifact already. Publishing the same files again, as the same attempt, changes nothing.

    Raises `AttemptStale` if a later attempt has published the artifact, `ArtifactConflict` if this
    one has published other files, and the storage's errors.
    """
    entries = tuple(_describe(folder, path) for path in _regular_files(folder))
    manifest = Manifest.of(entries, new_folder(attempt))
    artifact = manifest.artifact(job_id, name)
    if published := _published(_current_manifest(storage, job_id, name), artifact, manifest):
        return published
    for entry in entries:
        storage.put_file(artifact.prefix + entry.path, folder / entry.path)
    _check_uploaded(storage, artifact)
    return _seal(storage, job_id, artifact, manifest)


def remove_publications(
    storage: ObjectStorage, job_id: str, *, through: int, keep: Collection[str]
) -> int:
    """Remove the objects that attempts up to `through` have uploaded; return their number.

    These attempts must have ended. Artifacts whose `prefix` is in `keep` stay, but for unfinished
    uploads. The objects of later attempts are never touched, even if one publishes while this
    function runs. Manifests go first, so that no manifest outlives a file that it names, even if
    this function fails midway.
    """

    def has_ended(key: str) -> bool:
        return _Place.of(job_id, key).attempt <= through

    def is_dead(key: str) -> bool:
        place = _Place.of(job_id, key)
        return has_ended(key) and not place.is_manifest and place.prefix not in keep

    base = artifacts_prefix(job_id)
    places = [_Place.of(job_id, stored.key) for stored in storage.list_objects(base)]
    names = [place.name for place in places if place.is_manifest]
    removed = sum(_remove_manifest(storage, job_id, name, through, keep) for name in names)
    storage.abort_uploads(base, has_ended)
    keys = [stored.key for stored in storage.list_objects(base) if is_dead(stored.key)]
    storage.delete(keys)
    return removed + len(keys)


@dataclass(frozen=True)
class _Place:
    """Where an object lies among the artifacts of a job."""

    name: str
    prefix: str
    """The prefix of its publication, unless it is a manifest."""
    attempt: int
    is_manifest: bool

    @classmethod
    def of(cls, job_id: str, key: str) -> _Place:
        name, _, path = key.removeprefix(artifacts_prefix(job_id)).partition("/")
        folder = path[: path.find("/") + 1]
        if not re.fullmatch(FOLDER_PATTERN, folder):
            folder = ""  # the first format keeps files beside their manifest
        prefix = artifact_prefix(job_id, name) + folder
        return cls(name, prefix, folder_attempt(folder), path == MANIFEST_NAME)


def _regular_files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"{path} is not a regular file and cannot be published")
    return paths


def _describe(folder: Path, path: Path) -> FileEntry:
    relative = PurePosixPath(path.relative_to(folder)).as_posix()
    return FileEntry(relative, path.stat().st_size, sha256_of(path))


def _current_manifest(storage: ObjectStorage, job_id: str, name: str) -> _CurrentManifest | None:
    key = manifest_key(job_id, name)
    try:
        content, etag = storage.get_version(key)
    except ObjectMissing:
        return None
    try:
        return _CurrentManifest(Manifest.parse(content), etag)
    except ArtifactCorrupt as error:
        log.warning("%s counts for nothing: %s", key, error)
        return _CurrentManifest(None, etag)


def _published(
    current: _CurrentManifest | None, artifact: Artifact, manifest: Manifest
) -> Artifact | None:
    """The artifact if it is published already, None if this attempt may publish it."""
    if current is None or current.attempt < manifest.attempt:
        return None
    if current.attempt > manifest.attempt:
        raise AttemptStale(
            f"Attempt {current.attempt} has published '{artifact.name}'; attempt "
            f"{manifest.attempt} is over."
        )
    if current.manifest is None or current.manifest.files != manifest.files:
        raise ArtifactConflict(
            f"Attempt {manifest.attempt} has already published '{artifact.name}', with other files."
        )
    prefix = artifact.prefix.removesuffix(manifest.folder) + current.manifest.folder
    return Artifact(artifact.name, prefix, artifact.files)


def _check_uploaded(storage: ObjectStorage, artifact: Artifact) -> None:
    sizes = {stored.key: stored.size for stored in storage.list_objects(artifact.prefix)}
    for entry in artifact.files:
        stored = sizes.get(artifact.prefix + entry.path)
        if stored != entry.size:
            raise StorageUnavailable(
                f"'{entry.path}' was uploaded with {entry.size} bytes; the bucket has {stored}."
            )


def _seal(storage: ObjectStorage, job_id: str, artifact: Artifact, manifest: Manifest) -> Artifact:
    """Write the manifest unless another publisher has written one that must stay."""
    while True:
        current = _current_manifest(storage, job_id, artifact.name)
        if published := _published(current, artifact, manifest):
            return published
        if storage.put_bytes(
            manifest_key(job_id, artifact.name),
            manifest.to_json(),
            only_if_absent=current is None,
            replacing=current.etag if current else None,
        ):
            return artifact


def _remove_manifest(
    storage: ObjectStorage, job_id: str, name: str, through: int, keep: Collection[str]
) -> bool:
    """Remove the manifest of a dead publication; return whether there was one."""
    prefix = artifact_prefix(job_id, name)
    kept = {each.removeprefix(prefix) for each in keep if each.startswith(prefix)}
    while True:
        current = _current_manifest(storage, job_id, name)
        if current is None or current.attempt > through:
            return False
        # A damaged manifest may be the one to keep, so it stays; readers will report it.
        if kept and (current.manifest is None or current.manifest.folder in kept):
            return False
        if storage.delete_version(manifest_key(job_id, name), current.etag):
            return True
