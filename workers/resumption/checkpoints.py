"""Checkpoints in the bucket, so that a later attempt need not repeat the computation.

    jobs/{job}/checkpoints/{fingerprint[:16]}/
        parts-{sha256}.json                                    the parts of the fingerprint
        calibration/{worker}/{attempt}-{8 hex}/                a checkpoint: its files and, last,
        solved/{group}/{attempt}-{8 hex}/                      its manifest-{sha256}.json
        journal/{attempt}-{number}-{sha256}.json

A checkpoint is never changed: each is written to a folder of its own, and exists once its manifest
does. The manifest states the size and sha256 of every file and has its own sha256 in its name, so
that no incomplete checkpoint is used. A checkpoint is an optimisation: a damaged one is refused by
name, and its part is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Protocol

from service.domain.job import FileEntry
from service.domain.manifest import FOLDER_PATTERN, checkpoints_prefix, folder_attempt, new_folder
from service.errors import EigenpressError, ObjectMissing
from service.settings import Settings
from service.storage.s3 import ObjectStorage, StoredObject

FORMAT = 1
FINGERPRINT_DIGITS = 16
TRANSFERS = 4
"""How many files of a checkpoint are written or read at a time, each whole in memory."""

WRITING_PATIENCE_SECONDS = 10
"""How long to retry writing a checkpoint when the bucket is unavailable."""

log = logging.getLogger("eigenpress.checkpoints")

_SEALED = re.compile(r"/(?P<name>[^/]+)-(?P<sha256>[0-9a-f]{64})\.json$")


class Objects(Protocol):
    """The part of the object storage that checkpoints use; all methods raise its errors."""

    def put_bytes(self, key: str, data: bytes) -> object: ...

    def get_bytes(self, key: str) -> bytes: ...

    def list_objects(self, prefix: str) -> Iterator[StoredObject]: ...

    def delete(self, keys: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where an attempt's checkpoints are; attempts with one fingerprint share them."""

    job_id: str
    attempt: int
    fingerprint: str

    @property
    def prefix(self) -> str:
        return checkpoints_prefix(self.job_id) + self.fingerprint[:FINGERPRINT_DIGITS] + "/"


@dataclass(frozen=True)
class Refusal:
    """A checkpoint that cannot be used: the damaged object, and the reason."""

    key: str
    reason: str


class Refused(Exception):
    """An object of a checkpoint is missing or damaged."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.refusal = Refusal(key, reason)


@dataclass(frozen=True)
class Manifest:
    """One intact checkpoint; `content` describes it."""

    folder: str  # the prefix of its files
    files: tuple[FileEntry, ...]
    content: Mapping[str, Any]


class Checkpoints:
    """The checkpoints at one place. Two attempts may write at the same time."""

    def __init__(self, place: Place, reading: Objects, writing: Objects) -> None:
        """`reading` retries during an outage of the bucket; `writing` gives up soon."""
        self.place = place
        self._reading = reading
        self._writing = writing

    @classmethod
    def in_bucket(cls, place: Place, settings: Settings) -> Checkpoints:
        """The checkpoints in the installation's bucket."""
        return cls(
            place,
            _bucket(settings, settings.retry_timeout_seconds),
            _bucket(settings, min(settings.retry_timeout_seconds, WRITING_PATIENCE_SECONDS)),
        )

    def write(
        self, name: str, files: Mapping[str, Callable[[], bytes]], content: Mapping[str, Any]
    ) -> Manifest:
        """Write a checkpoint called `name`; each file is built just before it is written.

        After the first file that fails, no other is built.
        """
        folder = f"{self.place.prefix}{name}/{new_folder(self.place.attempt)}"

        failures: list[Exception] = []

        def put(path: str) -> FileEntry:
            if failures:
                raise failures[0]
            try:
                data = files[path]()
                self._writing.put_bytes(folder + path, data)
            except Exception as error:
                failures.append(error)
                raise
            return FileEntry(path, len(data), hashlib.sha256(data).hexdigest())

        with ThreadPoolExecutor(TRANSFERS) as pool:
            entries = tuple(pool.map(put, files))
        manifest = {
            "format": FORMAT,
            "fingerprint": self.place.fingerprint,
            "content": content,
            "files": [asdict(entry) for entry in entries],
        }
        self.put_sealed(folder + "manifest", manifest)
        return Manifest(folder, entries, content)

    def replace(
        self,
        name: str,
        files: Mapping[str, Callable[[], bytes]],
        content: Mapping[str, Any],
        *,
        also_kept: Iterable[Manifest] = (),
    ) -> Manifest | str:
        """Replace the earlier checkpoints of that name, except some; the reason if that fails."""
        try:
            written = self.write(name, files, content)
            self.delete_earlier(written, *also_kept)
        except EigenpressError as error:
            log.warning("the checkpoint %s was not written: %s", name, error)
            return str(error)
        return written

    def find(
        self, name: str, only: Container[str] | None = None
    ) -> tuple[list[Manifest], list[Refusal]]:
        """The intact and the damaged checkpoints below `name`, or only those named in `only`.

        Unfinished checkpoints are in neither list.
        """
        keys = [
            key
            for key in self.keys(f"{self.place.prefix}{name}/")
            if _is_manifest(key) and (only is None or self.name_of(key) in only)
        ]
        with ThreadPoolExecutor(TRANSFERS) as pool:
            opened = list(pool.map(self._manifest, keys))
        return (
            [each for each in opened if isinstance(each, Manifest)],
            [each for each in opened if isinstance(each, Refusal)],
        )

    def name_of(self, key: str) -> str:
        """The name of the checkpoint that the object belongs to."""
        return key.removeprefix(self.place.prefix).rsplit("/", 2)[0]

    def read(self, manifest: Manifest, use: Callable[[str, bytes], None]) -> None:
        """Pass every file of a checkpoint to `use`, which several threads call at once.

        Raises Refused at the first file that does not match the manifest; `use` may have been
        called with others.
        """

        def get(entry: FileEntry) -> None:
            key = manifest.folder + entry.path
            data = self._get(key)
            if len(data) != entry.size:
                raise Refused(key, f"it has {len(data)} bytes, not {entry.size}")
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise Refused(key, "its sha256 differs from the manifest's")
            use(entry.path, data)

        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(get, manifest.files))

    def put_sealed(self, name: str, value: object) -> None:
        """Write a JSON document under a key of `name` and its sha256, which reveals damage."""
        data = json.dumps(value, sort_keys=True).encode()
        self._writing.put_bytes(f"{name}-{hashlib.sha256(data).hexdigest()}.json", data)

    def sealed(self, name: str) -> Iterator[tuple[str, Any] | Refusal]:
        """Every JSON document below ``{name}/`` with its key, or a refusal."""
        for key in self.keys(f"{self.place.prefix}{name}/"):
            try:
                yield key, self.read_sealed(key)
            except Refused as error:
                yield error.refusal

    def read_sealed(self, key: str) -> Any:
        """The JSON document with this key. Raises Refused if it is missing or damaged."""
        sealed = _SEALED.search(key)
        data = self._get(key)
        if sealed is None or hashlib.sha256(data).hexdigest() != sealed["sha256"]:
            raise Refused(key, "its sha256 differs from the one in its name")
        return json.loads(data)

    def keys(self, prefix: str) -> list[str]:
        """The keys of all objects that begin with `prefix`, in order."""
        return [stored.key for stored in self._reading.list_objects(prefix)]

    def delete(self, folder: str) -> None:
        """Remove everything below `folder`, manifests first."""
        keys = [stored.key for stored in self._writing.list_objects(folder)]
        self.remove([key for key in keys if _is_manifest(key)])
        self.remove([key for key in keys if not _is_manifest(key)])

    def remove(self, keys: Sequence[str]) -> None:
        """Remove these objects."""
        self._writing.delete(keys)

    def delete_earlier(self, *kept: Manifest) -> None:
        """Remove all versions of a checkpoint by this and earlier attempts, except those `kept`.

        The versions of a later attempt stay, because this attempt may no longer be current.
        """
        parent = _parent(kept[0].folder)
        keys = [stored.key for stored in self._writing.list_objects(parent)]
        for folder in sorted({_folder(key) for key in keys} - {each.folder for each in kept}):
            name = folder.removeprefix(parent)
            if re.fullmatch(FOLDER_PATTERN, name) and folder_attempt(name) <= self.place.attempt:
                self.delete(folder)

    def _manifest(self, key: str) -> Manifest | Refusal:
        try:
            value = self.read_sealed(key)
        except Refused as error:
            return error.refusal
        if value["format"] != FORMAT or value["fingerprint"] != self.place.fingerprint:
            return Refusal(key, "it was written by another version or for another computation")
        files = tuple(FileEntry(**entry) for entry in value["files"])
        return Manifest(_folder(key), files, value["content"])

    def _get(self, key: str) -> bytes:
        try:
            return self._reading.get_bytes(key)
        except ObjectMissing as error:
            raise Refused(key, "it is missing") from error


@lru_cache(maxsize=4)
def _bucket(settings: Settings, patience_seconds: float) -> ObjectStorage:
    """A client of the bucket. To create one takes longer than to read a checkpoint."""
    return ObjectStorage.from_settings(settings, patience_seconds=patience_seconds)


def _is_manifest(key: str) -> bool:
    sealed = _SEALED.search(key)
    return sealed is not None and sealed["name"] == "manifest"


def _folder(key: str) -> str:
    return key.rpartition("/")[0] + "/"


def _parent(folder: str) -> str:
    return _folder(folder.rstrip("/"))
