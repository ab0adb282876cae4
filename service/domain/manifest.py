"""An artifact in the bucket: files in the folder of one publication, and a manifest.

    jobs/{job}/artifacts/{name}/manifest.json          every file, its size and sha256
    jobs/{job}/artifacts/{name}/{attempt}-{token}/...  the files of one publication
    jobs/{job}/checkpoints/...                         what an attempt resumes from
    jobs/{job}/logs/attempt-{attempt}/...              the ends of its logs

The manifest names the folder, so the manifest alone defines the artifact.
`service.storage.publication` describes how one is published and removed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.domain.job import Artifact, FileEntry
from service.errors import ArtifactCorrupt

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 2**20
SHA256_PATTERN = r"^[0-9a-f]{64}$"
FOLDER_PATTERN = r"^[1-9][0-9]{0,8}-[0-9a-f]{8}/$"


class ManifestFile(BaseModel):
    """One file of the artifact, by its path within the artifact."""

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
    """Every file of an artifact, in the order of paths, and the attempt that published it.

    The first format had neither attempt nor folder: the files lay beside the manifest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1, 2] = 2
    attempt: int = Field(default=0, ge=0)
    folder: str = Field(default="", description="Folder of the files, relative to the manifest.")
    files: tuple[ManifestFile, ...] = Field(min_length=1)

    @field_validator("files")
    @classmethod
    def _paths_are_distinct(cls, files: tuple[ManifestFile, ...]) -> tuple[ManifestFile, ...]:
        if len({file.path for file in files}) != len(files):
            raise ValueError("a path is listed twice")
        return files

    @model_validator(mode="after")
    def _folder_is_the_attempts(self) -> Self:
        pattern = FOLDER_PATTERN if self.format == 2 else ""
        if re.fullmatch(pattern, self.folder) and folder_attempt(self.folder) == self.attempt:
            return self
        raise ValueError(f"'{self.folder}' is no folder of attempt {self.attempt}")

    @classmethod
    def of(cls, files: Sequence[FileEntry], folder: str) -> Manifest:
        """The manifest of these files in the folder of their publication."""
        return cls(
            format=2 if folder else 1,
            attempt=folder_attempt(folder),
            folder=folder,
            files=tuple(ManifestFile(path=f.path, size=f.size, sha256=f.sha256) for f in files),
        )

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
        """The bytes in the bucket; equal manifests give equal bytes, of every version."""
        dropped = {"attempt", "folder"} if self.format == 1 else None
        return self.model_dump_json(indent=2, exclude=dropped).encode() + b"\n"

    def artifact(self, job_id: str, name: str) -> Artifact:
        """The artifact that this manifest describes."""
        files = tuple(FileEntry(file.path, file.size, file.sha256) for file in self.files)
        return Artifact(name, artifact_prefix(job_id, name) + self.folder, files)


def artifacts_prefix(job_id: str) -> str:
    """The prefix of a job's artifacts in the bucket."""
    return f"jobs/{job_id}/artifacts/"


def checkpoints_prefix(job_id: str) -> str:
    """The prefix of a job's checkpoints in the bucket."""
    return f"jobs/{job_id}/checkpoints/"


def logs_prefix(job_id: str) -> str:
    """The prefix of what is kept of the logs of a job's attempts."""
    return f"jobs/{job_id}/logs/"


def artifact_prefix(job_id: str, name: str) -> str:
    """The prefix of one artifact's manifest and of the folders of its publications."""
    return f"{artifacts_prefix(job_id)}{name}/"


def manifest_key(job_id: str, name: str) -> str:
    """The key of the manifest, which makes one publication the artifact."""
    return artifact_prefix(job_id, name) + MANIFEST_NAME


def new_folder(attempt: int) -> str:
    """A folder for a publication that no other publication will use."""
    return f"{attempt}-{secrets.token_hex(4)}/"


def folder_attempt(folder: str) -> int:
    """The attempt that a publication's folder belongs to; 0 for the first format's "none"."""
    return int(folder.partition("-")[0] or 0)


def check_manifest(content: bytes, artifact: Artifact, job_id: str) -> None:
    """Raise `ArtifactCorrupt` unless these bytes are the manifest of this artifact."""
    folder = artifact.prefix.removeprefix(artifact_prefix(job_id, artifact.name))
    if content != Manifest.of(artifact.files, folder).to_json():
        raise ArtifactCorrupt(
            f"The {MANIFEST_NAME} of '{artifact.name}' in the bucket differs from the "
            "published one: it was damaged or replaced."
        )


def sha256_of(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
