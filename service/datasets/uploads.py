"""Receives datasets: straight to the bucket in parts, checked as they pass, in bounded memory.

An upload begins with a row in the database that nobody sees, sends its parts, and ends with the
description and the completed row. One that is refused or breaks removes all of this again. If its
process dies, its lease expires, and a dispatcher's cleaner removes what there is.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from service.datasets.contents import (
    GZIP_MAGIC,
    TEXT_FIELD_PARAM,
    Check,
    Gunzip,
    JsonLinesCheck,
    ParquetStart,
    TextCheck,
)
from service.datasets.removal import remove_dataset
from service.domain.datasets import Dataset, Format, dataset_prefix, description_key
from service.errors import DataInvalid, DatasetTooLarge, EigenpressError
from service.inputs.texts.datasets import Description
from service.inputs.texts.text_files import READING_ERRORS, check_parquet, copy_checked
from service.storage.s3 import ObjectStorage
from service.store.datasets import Contents
from service.store.store import Store

PART_BYTES = 8 * 2**20
"""S3 takes 10,000 parts, each but the last of 5 MiB or more."""
LEASE_SECONDS = 900.0
RENEWAL_SECONDS = 60.0
RENEWAL_BYTES = PART_BYTES
"""A renewal also counts what has arrived: each upload outgrows its tenant's limit by no more."""

SUFFIXES: dict[Format, str] = {"text": ".txt", "jsonl": ".jsonl", "parquet": ".parquet"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What the user says of a file."""

    name: str | None
    format: Format
    text_field: str


class Upload:
    """One upload. Threads may call it, one after the other.

    `write` and `finish` raise DataInvalid, DatasetTooLarge, QuotaExceeded, UploadAbandoned and the
    errors of the storage and the database. After any of them, and if no more comes, call `abort`.
    """

    def __init__(
        self, wanted: Wanted, tenant: str, max_bytes: int, store: Store, storage: ObjectStorage
    ) -> None:
        self._wanted = wanted
        self._max_bytes = max_bytes
        self._datasets = store.datasets(tenant)
        self._stored = store.stored_datasets
        self._storage = storage
        self._check = _check_of(wanted)
        self._gunzip: Gunzip | None = None
        self._parts: _Parts | None = None  # begins with the first bytes
        self._lock = threading.Lock()  # an upload that is given up may still be writing
        self._id = self._datasets.begin(
            wanted.name, wanted.format, wanted.text_field, LEASE_SECONDS
        )
        self._renewed = time.monotonic()
        self._renewed_at_bytes = 0

    def write(self, data: bytes) -> None:
        """Check and store the next bytes of the file."""
        with self._lock:
            parts = self._parts or self._begin(data)
            for piece in self._checked(data):
                if parts.size + len(piece) > self._max_bytes:
                    raise too_large(self._max_bytes)
                parts.write(piece)
            if (
                time.monotonic() - self._renewed >= RENEWAL_SECONDS
                or parts.size - self._renewed_at_bytes >= RENEWAL_BYTES
            ):
                self._renew(parts.size)

    def finish(self) -> Dataset:
        """Check that the file may end here, and make the dataset visible."""
        with self._lock:
            if self._parts is None:
                raise DataInvalid("The body is empty: send the file as the body of the request.")
            if self._gunzip is not None:
                self._gunzip.finish()
            self._check.finish()
            self._renew(self._parts.size)
            self._parts.finish()
            counts: tuple[int, int | None] = self._check.documents, self._check.empty_rows
            if self._wanted.format == "parquet":
                counts = self._parquet_rows(self._parts), None
            digest = self._parts.sha256.hexdigest()
            description = Description(
                file=self._parts.file,
                bytes=self._parts.size,
                sha256=digest,
                text_field=self._wanted.text_field,
            )
            key = description_key(self._id)
            self._storage.put_bytes(key, description.model_dump_json().encode())
            contents = Contents(self._parts.size, *counts, digest)
            return self._datasets.complete(self._id, contents)

    def abort(self) -> None:
        """Remove all that was stored; what cannot be removed now is left to the cleaner."""
        with self._lock:
            try:
                self._datasets.give_up(self._id)
                remove_dataset(self._id, self._stored, self._storage)
            except EigenpressError as error:
                log.warning("%s: a cleaner removes the broken upload: %s", self._id, error)

    def _begin(self, first: bytes) -> _Parts:
        file = f"data{SUFFIXES[self._wanted.format]}"
        if first.startswith(GZIP_MAGIC) and self._wanted.format != "parquet":
            self._gunzip = Gunzip()
            file += "" if self._wanted.format == "text" else ".gz"
        self._parts = _Parts(self._storage, dataset_prefix(self._id), file)
        return self._parts

    def _checked(self, data: bytes) -> Iterator[bytes]:
        """Check the next bytes of the file; yields those to store."""
        if self._gunzip is None:
            self._check.feed(data)
            yield data
            return
        is_text = self._wanted.format == "text"  # which workers do not read compressed
        for piece in self._gunzip.expand(data):
            self._check.feed(piece)
            if is_text:
                yield piece
        if not is_text:
            yield data

    def _renew(self, received: int) -> None:
        self._datasets.renew(self._id, received, LEASE_SECONDS)
        self._renewed = time.monotonic()
        self._renewed_at_bytes = received

    def _parquet_rows(self, parts: _Parts) -> int:
        """The rows of the stored file, of which the footer is read."""
        read = partial(self._storage.get_range, parts.key)
        with TemporaryDirectory() as folder:
            file = Path(folder) / parts.file
            with file.open("wb") as copy:
                copy_checked(parts.file, parts.size, read, copy)
            try:
                return check_parquet(file, self._wanted.text_field, TEXT_FIELD_PARAM)
            except READING_ERRORS as error:
                raise DataInvalid(f"The file cannot be read: {error}.") from error


def too_large(max_bytes: int) -> DatasetTooLarge:
    return DatasetTooLarge(
        f"The dataset has more than {max_bytes} bytes. Upload it as several, compress it, or have "
        "the server's operator raise EIGENPRESS_MAX_DATASET_BYTES."
    )


def _check_of(wanted: Wanted) -> Check:
    match wanted.format:
        case "text":
            return TextCheck()
        case "jsonl":
            return JsonLinesCheck(wanted.text_field)
        case "parquet":
            return ParquetStart()


class _Parts:
    """An object that is sent in parts of `PART_BYTES`."""

    def __init__(self, storage: ObjectStorage, prefix: str, file: str) -> None:
        self.file = file
        self.key = prefix + file
        self.size = 0
        self.sha256 = hashlib.sha256()
        self._storage = storage
        self._upload_id = storage.begin_upload(self.key)
        self._etags: list[str] = []
        self._waiting = bytearray()

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self.sha256.update(data)
        self._waiting += data
        while len(self._waiting) >= PART_BYTES:
            self._send(bytes(self._waiting[:PART_BYTES]))
            del self._waiting[:PART_BYTES]

    def finish(self) -> None:
        self._send(bytes(self._waiting))
        self._storage.finish_upload(self.key, self._upload_id, self._etags)

    def _send(self, data: bytes) -> None:
        if data or not self._etags:
            number = len(self._etags) + 1
            self._etags.append(self._storage.put_part(self.key, self._upload_id, number, data))
