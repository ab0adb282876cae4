"""Removes deleted datasets and what broken uploads have left."""

from __future__ import annotations

from service.domain.datasets import dataset_prefix
from service.storage.s3 import ObjectStorage
from service.store.datasets import StoredDatasets


def remove_dataset(dataset_id: str, stored: StoredDatasets, storage: ObjectStorage) -> None:
    """Remove a deleted dataset from the bucket, and then from the database.

    It may be repeated, and be done by several at once. Raises the errors of both.
    """
    prefix = dataset_prefix(dataset_id)
    storage.abort_uploads(prefix)
    storage.delete([stored_object.key for stored_object in storage.list_objects(prefix)])
    stored.remove(dataset_id)
