"""The bodies of responses about datasets."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from api.schemas.schema import Schema
from service.domain.datasets import Format

DATASET_ID_EXAMPLE = "ds-01kah7m0q8v5n2c4x6z9b3d1fg"


class Dataset(Schema):
    """A text that was uploaded and checked."""

    id: str = Field(examples=[DATASET_ID_EXAMPLE])
    name: str | None = None
    format: Format
    text_field: str = Field(description="The field of each row that holds its text or chat.")
    bytes: int = Field(description="As stored: a text's without compression.")
    documents: int = Field(
        description="Rows with text; of Parquet all rows, and a plain text is one document."
    )
    empty_rows: int | None = Field(
        default=None, description="Rows without text, which jobs skip; null for Parquet."
    )
    tokens: int | None = Field(
        default=None,
        description="Of all documents, by the tokenizer of the last job that took its text from "
        "here; null before the first.",
    )
    sha256: str = Field(description="Of the stored bytes, in hexadecimal.")
    created_at: datetime


class DatasetPage(Schema):
    """Datasets, newest first."""

    datasets: list[Dataset]
    next_cursor: str | None = Field(
        default=None, description="Pass as `cursor` for the next page; null on the last one."
    )
