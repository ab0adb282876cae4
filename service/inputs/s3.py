"""The objects that an ``s3://`` URI of a request names: one, or all below a prefix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.domain.credentials import NO_CREDENTIALS, Credentials, S3Keys
from service.domain.datasets import DATASETS_PREFIX
from service.errors import (
    BucketMissing,
    InvalidParameter,
    JobNotFound,
    ObjectChanged,
    ObjectMissing,
    PathNotAllowed,
    UserError,
)
from service.inputs.glob import is_plain
from service.settings import Settings
from service.storage.s3 import ObjectStorage, StoredObject
from service.store.users import Users

SCHEME = "s3://"
MAX_LISTED_OBJECTS = 100_000
OWN_PREFIXES = ("jobs/", DATASETS_PREFIX)
"""Where the service keeps checkpoints, artifacts and datasets in its own bucket; see
`service.domain.manifest` and `service.domain.datasets`."""
ARTIFACT = re.compile(r"jobs/[^/]+/artifacts/[^/]+/[^/]")


@dataclass(frozen=True)
class S3Listing:
    """The requested objects, by their paths below the URI."""

    uri: str
    storage: ObjectStorage
    objects: Mapping[str, StoredObject]
    is_one_object: bool
    """The URI names a single object, whose path is then the last part of its key."""
    keys: S3Keys | None = None
    """Those of a tenant that it was listed with."""

    @property
    def sizes(self) -> dict[str, int]:
        return {path: stored.size for path, stored in self.objects.items()}

    @property
    def identity(self) -> str:
        """Changes whenever the bytes of any object do. No tenant's is that of another reader."""
        etags = (f"{path}\t{stored.etag}" for path, stored in sorted(self.objects.items()))
        whose = () if self.keys is None else (f"tenant {self.keys.tenant}", str(self.keys.endpoint))
        return "\n".join((*whose, self.uri, *etags))

    def read(self, path: str) -> bytes:
        return self.storage.get_bytes(self.objects[path].key)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """The bytes of a part of an object, which must have these bytes."""
        return self.storage.get_range(self.objects[path].key, start, length)

    def fetch(
        self, paths: Iterable[str], folder: Path, changed: type[UserError], param: str
    ) -> None:
        """Download these objects to their own paths below `folder`, as they were listed.

        Raises `changed` about `param` for an object that has been replaced since.
        """
        wanted = {folder / path: self.objects[path] for path in paths}
        for target in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.storage.get_files(wanted)
        except ObjectChanged as error:
            raise changed(
                f"{error.detail} Submit the job again when nothing writes to {self.uri}.",
                param=param,
            ) from error


@contextmanager
def missing_as(not_found: type[UserError], param: str) -> Iterator[None]:
    """Raise `not_found` for a missing bucket or object: the mistake of the user who named it."""
    try:
        yield
    except (BucketMissing, ObjectMissing) as error:
        raise not_found(error.detail, param=param) from error


def list_source(
    uri: str,
    settings: Settings,
    wanted: Callable[[str], bool],
    param: str,
    patience_seconds: float = 0,
    credentials: Credentials = NO_CREDENTIALS,
) -> S3Listing:
    """List the one object at the URI, or the wanted ones below it.

    The tenant's keys for this place are used, else the installation's. Retries for
    `patience_seconds` while S3 is unavailable, here and when objects are fetched.
    Raises `PathNotAllowed` for a place that no job may read, `InvalidParameter` for keys that are
    not file paths and for more objects than `MAX_LISTED_OBJECTS`, and the storage's errors.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    _refuse_forbidden(bucket, key, settings, param)
    keys = credentials.for_s3(uri)
    storage = ObjectStorage.from_settings(
        settings, bucket, patience_seconds=patience_seconds, keys=keys
    )
    base = key if not key or key.endswith("/") else f"{key}/"
    objects: dict[str, StoredObject] = {}
    for count, stored in enumerate(storage.list_objects(key), start=1):
        if count > MAX_LISTED_OBJECTS:
            raise InvalidParameter(
                f"There are more than {MAX_LISTED_OBJECTS} objects below {uri}.", param=param
            )
        if stored.key == key and base != key:
            name = _file_path(key.rpartition("/")[2], param)
            return S3Listing(uri, storage, {name: stored}, True, keys)
        path = stored.key.removeprefix(base)
        # Skips ``data-old/`` when ``data`` was requested, and the empty markers of folders.
        if stored.key.startswith(base) and path and not path.endswith("/") and wanted(path):
            objects[_file_path(path, param)] = stored
    return S3Listing(uri, storage, objects, False, keys)


def _refuse_forbidden(bucket: str, key: str, settings: Settings, param: str) -> None:
    """Raise unless jobs may read what is at this key, or below it.

    In the service's own bucket that is an artifact, or what others have put beside the jobs.
    Buckets are compared by name, also where a tenant's keys are for another server.
    """
    place = key.removesuffix("/")
    if place and not is_plain(place):  # a server might resolve it to another place
        raise InvalidParameter(
            f"The key '{key}' has a name that is empty, '.' or '..'.", param=param
        )
    below = f"{place}/" if place else ""
    own = below.startswith(OWN_PREFIXES) or not below
    if bucket == settings.s3_bucket and own and not ARTIFACT.match(below):
        raise PathNotAllowed(
            f"{SCHEME}{bucket}/{key} holds everyone's jobs and datasets. Name a prefix of your "
            f"own outside {' and '.join(OWN_PREFIXES)}, a folder of one artifact, or a dataset.",
            param=param,
        )
    allowed = settings.allowed_s3_prefixes
    if allowed is not None and not f"{SCHEME}{bucket}/{below}".startswith(allowed):
        raise PathNotAllowed(
            f"{SCHEME}{bucket}/{key} lies outside the places that this server may read: "
            f"{', '.join(allowed) or 'none'}.",
            param=param,
        )


def refuse_others(uri: str, settings: Settings, users: Users, param: str) -> None:
    """Raise `PathNotAllowed` for an artifact of a job that these users cannot see.

    A job of another tenant, which exists, and one that does not, give the same error.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if bucket != settings.s3_bucket or not ARTIFACT.match(key):
        return
    try:
        users.get(key.split("/")[1])
    except JobNotFound as error:
        raise PathNotAllowed(f"{uri} is no artifact of a job of yours.", param=param) from error


def _file_path(path: str, param: str) -> str:
    if not is_plain(path):
        raise InvalidParameter(f"The object '{path}' cannot become a file.", param=param)
    return path
