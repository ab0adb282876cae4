"""Datasets: texts that users have uploaded, and the objects of the bucket that hold them.

datasets/{id}/data.txt, .jsonl, .jsonl.gz or .parquet    the text
datasets/{id}/dataset.json                                what a worker must know to read it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.domain.spec.evaluation import LmEval
from service.domain.spec.job import JobSpec
from service.domain.spec.sources import DatasetData, DataSource

Format = Literal["text", "jsonl", "parquet"]

DATASETS_PREFIX = "datasets/"
DESCRIPTION_NAME = "dataset.json"


@dataclass(frozen=True)
class Dataset:
    """A dataset as it stood when it was read; its upload is complete."""

    id: str
    name: str | None
    format: Format
    text_field: str
    """The field of each row that holds the text, or the messages of a chat."""
    bytes: int
    """As stored; a compressed file's are those of the file."""
    documents: int
    """Rows with text; of Parquet all rows, and of plain text one."""
    empty_rows: int | None
    """Rows without text, which are skipped; None where that is not known, as for Parquet."""
    sha256: str
    created_at: datetime
    tokens: int | None
    """Of its whole text, by the tokenizer of the job that last counted them."""


def dataset_prefix(dataset_id: str) -> str:
    return f"{DATASETS_PREFIX}{dataset_id}/"


def description_key(dataset_id: str) -> str:
    return dataset_prefix(dataset_id) + DESCRIPTION_NAME


def sources_of(spec: JobSpec) -> Iterator[tuple[str, DataSource]]:
    """All texts and problems that a job names, and the fields that name them."""
    yield "calibration.data", spec.calibration.data
    for number, dataset in enumerate(spec.evaluation.datasets):
        yield f"evaluation.datasets.{number}.data", dataset.data
    for number, task in enumerate(spec.evaluation.tasks):
        if not isinstance(task, LmEval):
            yield f"evaluation.tasks.{number}.data", task.data


def datasets_of(spec: JobSpec) -> dict[str, str]:
    """The ids of the datasets that a job names, by the fields that name them."""
    return {
        f"{param}.id": source.id
        for param, source in sources_of(spec)
        if isinstance(source, DatasetData)
    }
