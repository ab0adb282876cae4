"""The bodies of responses about a job's artifacts."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from api.schemas import examples
from api.schemas.schema import Schema


class ArtifactFile(Schema):
    """One file of an artifact."""

    path: str = Field(description="Relative to the artifact.", examples=["model.safetensors"])
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="Of the file's bytes, in hexadecimal.")
    url: str = Field(description="Presigned: anybody who has it can GET the file.")


class Artifact(Schema):
    """A compressed model in the bucket."""

    model_config = examples.example(examples.ARTIFACT)

    name: str = Field(examples=["keep-0.8"])
    uri: str = Field(description="For users who have credentials for the bucket.")
    bytes: int = Field(description="Of all files together.")
    files: list[ArtifactFile] = Field(description="All of them, manifest.json last.")
    expires_at: datetime = Field(description="When the URLs expire; ask again for fresh ones.")


class ArtifactList(Schema):
    """A job's artifacts, one per target, in the order of the targets."""

    model_config = examples.example(examples.ARTIFACT_LIST)

    artifacts: list[Artifact]
