"""Publishing: a folder becomes an artifact in the bucket, and its manifest makes it one.

The manifest is written last, and only if there is none: a reader that finds it finds every file
that it names, and of two attempts that publish the same artifact one wins. Nothing else at the
prefix counts, and what a dead attempt left there goes once the manifest stands.

What this does not guarantee: an attempt that has lost its job, and does not know it yet, can
still overwrite a file. The caller therefore asks the store whether its attempt is the current
one before it publishes, and readers check every file's sha256.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.errors import ArtifactConflict, ArtifactCorrupt, StorageUnavailable
from service.jobs import Artifact, FileEntry

if TYPE_CHECKING:  # the client reads manifests too, and has no boto3
    from service.storage import ObjectStorage

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 2**20
SHA256_PATTERN = r"^[0-9a-f]{64}$"


class ManifestFile(BaseModel):
    """One file of the artifact, by its path relative to the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, max_length=1024)
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern=SHA256_PATTERN)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in path or "\0" in path:
            raise ValueError(f"'{path}' is not a plain relative path")
        if path == MANIFEST_NAME:
            raise ValueError("a manifest cannot list itself")
        return path


class Manifest(BaseModel):
    """Every file of an artifact, in the order of paths."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    files: tuple[ManifestFile, ...] = Field(min_length=1)

    @field_validator("files")
    @classmethod
    def _paths_are_distinct(cls, files: tuple[ManifestFile, ...]) -> tuple[ManifestFile, ...]:
        if len({file.path for file in files}) != len(files):
            raise ValueError("a path is listed twice")
        return files

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Read a manifest back. Raises `ArtifactCorrupt`."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise ArtifactCorrupt(f"The manifest is larger than {MAX_MANIFEST_BYTES} bytes.")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise ArtifactCorrupt(f"The manifest cannot be read: {error}") from error

    def to_json(self) -> bytes:
        """The bytes in the bucket; equal manifests give equal bytes."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def artifact_prefix(job_id: str, name: str) -> str:
    """Where an artifact lies in the bucket."""
    return f"jobs/{job_id}/artifacts/{name}/"


def publish(storage: ObjectStorage, job_id: str, name: str, folder: Path) -> Artifact:
    """Upload every file below `folder`, then the manifest.

    Raises `ArtifactConflict` if the artifact is there already, and the storage's errors.
    """
    entries = tuple(_describe(folder, path) for path in _regular_files(folder))
    manifest = Manifest(
        files=tuple(ManifestFile(path=e.path, size=e.size, sha256=e.sha256) for e in entries)
    )
    artifact = Artifact(name, artifact_prefix(job_id, name), entries)
    _refuse_if_published(storage, artifact)
    for entry in entries:
        storage.put_file(artifact.prefix + entry.path, folder / entry.path)
    _check_uploaded(storage, artifact)
    _seal(storage, artifact, manifest)
    _remove_strays(storage, artifact)
    return artifact


def sha256_of(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _regular_files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"{path} is no regular file and cannot be published")
    return paths


def _describe(folder: Path, path: Path) -> FileEntry:
    relative = PurePosixPath(path.relative_to(folder)).as_posix()
    return FileEntry(relative, path.stat().st_size, sha256_of(path))


def _refuse_if_published(storage: ObjectStorage, artifact: Artifact) -> None:
    if any(storage.list_objects(artifact.prefix + MANIFEST_NAME)):
        raise ArtifactConflict(f"'{artifact.name}' is already published.")


def _check_uploaded(storage: ObjectStorage, artifact: Artifact) -> None:
    sizes = {stored.key: stored.size for stored in storage.list_objects(artifact.prefix)}
    for entry in artifact.files:
        stored = sizes.get(artifact.prefix + entry.path)
        if stored != entry.size:
            _refuse_if_published(storage, artifact)  # a winner removes what is not its own
            raise StorageUnavailable(
                f"'{entry.path}' was uploaded with {entry.size} bytes; the bucket has {stored}."
            )


def _seal(storage: ObjectStorage, artifact: Artifact, manifest: Manifest) -> None:
    key, data = artifact.prefix + MANIFEST_NAME, manifest.to_json()
    if storage.put_bytes(key, data, only_if_absent=True):
        return
    # Not necessarily a rival: the first try may have succeeded and its answer been lost.
    if storage.get_bytes(key) != data:
        raise ArtifactConflict(f"Another attempt has published '{artifact.name}'.")


def _remove_strays(storage: ObjectStorage, artifact: Artifact) -> None:
    ours = {artifact.prefix + path for path in (MANIFEST_NAME, *(e.path for e in artifact.files))}
    found = (stored.key for stored in storage.list_objects(artifact.prefix))
    storage.delete([key for key in found if key not in ours])
