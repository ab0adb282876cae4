"""Reads uploaded datasets from the service's own bucket.

Workers need not reach the database: beside its text a dataset has an object that says how to read
it. Whose dataset it is was checked when the job was submitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from service.domain.datasets import dataset_prefix, description_key
from service.inputs.cache import cached
from service.inputs.texts.text_files import copy_checked
from service.settings import Settings
from service.storage.s3 import ObjectStorage

EVERYTHING = "*"


@dataclass(frozen=True)
class FetchedText:
    """A text on this machine."""

    root: Path
    """A folder, or the one file."""
    pattern: str
    """Which files of the folder."""
    text_field: str
    """The field of rows that holds the text."""


class Description(BaseModel):
    """The object `dataset.json` of a dataset."""

    model_config = ConfigDict(frozen=True)

    file: str
    """The name of the object beside this one that holds the text."""
    bytes: int
    sha256: str
    text_field: str


def fetch_dataset(dataset_id: str, settings: Settings) -> FetchedText:
    """The dataset on this machine, downloaded once. Raises ObjectMissing if it is gone."""
    patience = settings.retry_timeout_seconds
    storage = ObjectStorage.from_settings(settings, patience_seconds=patience)
    described = _described(storage, dataset_id)

    def fill(folder: Path) -> None:
        key = dataset_prefix(dataset_id) + described.file
        storage.get_files({folder / described.file: storage.find(key)})

    folder = cached(settings, "data", f"{dataset_id}\n{described.sha256}", fill)
    return FetchedText(folder / described.file, EVERYTHING, described.text_field)


def beginning_of_dataset(dataset_id: str, settings: Settings, folder: Path) -> FetchedText:
    """What a check reads of the dataset, copied into `folder`. Raises ObjectMissing."""
    storage = ObjectStorage.from_settings(settings)
    described = _described(storage, dataset_id)
    read = partial(storage.get_range, dataset_prefix(dataset_id) + described.file)
    target = folder / described.file
    with target.open("wb") as copy:
        copy_checked(described.file, described.bytes, read, copy)
    return FetchedText(target, EVERYTHING, described.text_field)


def _described(storage: ObjectStorage, dataset_id: str) -> Description:
    return Description.model_validate_json(storage.get_bytes(description_key(dataset_id)))
