"""Where a job's model and texts come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from service.domain.spec.fields import Body

MAX_WILDCARD_NAMES = 16
"""Each costs time for every file that the pattern is compared with."""

COMMIT_PATTERN = r"^[0-9a-f]{40}$"
DATASET_ID_PATTERN = r"^ds-[0-9a-z]{26}$"
REPOSITORY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"
S3_URI_PATTERN = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$"

TEXT_FIELD = "text"
"""The field of rows that holds their text, unless a user names another."""


def _refuse_many_wildcards(pattern: str) -> str:
    wild = [name for name in pattern.split("/") if name != "**" and set(name) & set("*?[")]
    if len(wild) > MAX_WILDCARD_NAMES:
        raise PydanticCustomError(
            "invalid_parameter",
            "has wildcards in {count} names; at most {most} are allowed",
            {"count": len(wild), "most": MAX_WILDCARD_NAMES},
        )
    return pattern


Pattern = Annotated[
    str, Field(min_length=1, max_length=512), AfterValidator(_refuse_many_wildcards)
]


class LocalPath(Body):
    """A folder or file that every machine of the cluster sees under the same path."""

    source: Literal["local"]
    path: str = Field(min_length=1, max_length=4096, description="Absolute path.")


class S3Prefix(Body):
    """A prefix (or one object) in an S3 bucket that the service's credentials can read."""

    source: Literal["s3"]
    uri: str = Field(pattern=S3_URI_PATTERN, max_length=2048, examples=["s3://models/llama-3"])


class HubModel(Body):
    """A repository of the model hub, pinned to a commit."""

    source: Literal["hub"]
    id: str = Field(pattern=REPOSITORY_PATTERN, max_length=200)
    revision: str = Field(pattern=COMMIT_PATTERN, description="A full commit hash, never a branch.")


class LocalData(LocalPath):
    """Text files below a local folder, or one file.

    Each file, JSONL line or Parquet row is a document.
    """

    pattern: Pattern = "**/*"
    text_field: str = Field(default=TEXT_FIELD, min_length=1, max_length=200)


class S3Data(S3Prefix):
    """Text files below an S3 prefix."""

    pattern: Pattern = "**/*"
    text_field: str = Field(default=TEXT_FIELD, min_length=1, max_length=200)


class HubData(HubModel):
    """Text, JSONL or Parquet files of a hub dataset, pinned to a commit."""

    pattern: Pattern = "**/*"
    text_field: str = Field(default=TEXT_FIELD, min_length=1, max_length=200)


class DatasetData(Body):
    """A dataset that was uploaded to this service."""

    source: Literal["dataset"]
    id: str = Field(pattern=DATASET_ID_PATTERN, examples=["ds-01kah7m0q8v5n2c4x6z9b3d1fg"])


ModelSource = Annotated[LocalPath | S3Prefix | HubModel, Field(discriminator="source")]
DataSource = Annotated[LocalData | S3Data | HubData | DatasetData, Field(discriminator="source")]
