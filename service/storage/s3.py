"""Objects in an S3 bucket. Only this module and the one of its clients call boto3.

Every failure of a call to the bucket leaves this module as `StorageUnavailable`, `StorageFull`,
`StorageReadOnly`, `BucketMissing`, `StorageCredentialsInvalid`, `ObjectMissing` or `ObjectChanged`,
and after a bounded time: a server that is down costs seconds, and one that accepts a connection but
never answers costs `READ_SECONDS` per try. An operation that fails as `StorageUnavailable` is
retried for `patience_seconds`. Every operation may be repeated, because a conditional write
recognises its own bytes. An error of the local disk stays an `OSError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from s3transfer.exceptions import (
    RetriesExceededError,
    S3DownloadFailedError,
    S3ValidationError,
)
from s3transfer.subscribers import BaseSubscriber

from service.domain.credentials import S3Keys
from service.errors import (
    BucketMissing,
    EigenpressError,
    ObjectChanged,
    ObjectMissing,
    StorageCredentialsInvalid,
    StorageFull,
    StorageReadOnly,
    StorageUnavailable,
)
from service.retrying import retry
from service.settings import Settings
from service.storage.clients import ATTEMPTS, DOWNLOADS, Connector
from service.storage.etags import equal_parts, etag_of, is_digest, parts_of

READ_SECONDS = 30
PROBE_SECONDS = 5
DELETE_BATCH = 1000
"""The most keys that one DeleteObjects request takes."""

UPLOAD_MARKERS = ("KeyMarker", "UploadIdMarker")

DENIED = "AccessDenied"

FULL_CODES = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"})
"""The codes with which servers report a full bucket or full disks, whatever the status."""

READING = frozenset({"GetObject", "HeadBucket", "HeadObject", "ListObjectsV2"})
"""Operations that need no write permission."""

Result = TypeVar("Result")

_TRANSFER = TransferConfig(
    max_concurrency=DOWNLOADS,
    multipart_threshold=8 * 2**20,
    multipart_chunksize=8 * 2**20,
    num_download_attempts=ATTEMPTS,
    max_io_queue=64,  # blocks of io_chunksize that wait to be written
    io_chunksize=2**18,
    preferred_transfer_client="classic",  # the other one reads without conditions
)


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing; `etag` changes whenever the bytes do.

    Whether it is a digest of them, `service.storage.etags` tells.
    """

    key: str
    size: int
    etag: str


class ObjectStorage:
    """One bucket. Safe to share between threads."""

    def __init__(
        self,
        settings: Settings,
        bucket: str,
        *,
        patience_seconds: float = 0,
        keys: S3Keys | None = None,
    ) -> None:
        self.bucket = bucket
        self._patience_seconds = patience_seconds
        self._whose = f"the credential '{keys.name}'" if keys else "the credentials"
        connect = Connector(settings, keys)
        endpoint = (keys and keys.endpoint) or settings.s3_endpoint_url
        self._where = endpoint or f"Amazon S3 ({connect.region})"
        with self._errors():
            self._client = connect(endpoint, READ_SECONDS)
            self._probe = connect(endpoint, PROBE_SECONDS)
            self._signer = connect(
                settings.s3_public_endpoint_url or settings.s3_endpoint_url, READ_SECONDS
            )

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        bucket: str | None = None,
        *,
        patience_seconds: float = 0,
        keys: S3Keys | None = None,
    ) -> ObjectStorage:
        """The installation's bucket, or another one: with the same credentials, or with `keys`."""
        return cls(
            settings, bucket or settings.s3_bucket, patience_seconds=patience_seconds, keys=keys
        )

    def check(self) -> None:
        """Raise, without retrying, unless the server accepts the credentials and has the bucket."""
        with self._errors():
            self._probe.head_bucket(Bucket=self.bucket)

    def create_bucket(self) -> None:
        """Create the bucket unless it exists."""
        with self._errors(), suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
            self._client.create_bucket(Bucket=self.bucket)

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file, in parallel parts when it is large."""

        def upload() -> None:
            with path.open("rb") as file:
                self._client.upload_fileobj(file, self.bucket, key, Config=_TRANSFER)

        self._retry(upload, key)

    def begin_upload(self, key: str) -> str:
        """Begin an object that is sent in parts; returns the id of the upload."""
        return self._retry(
            lambda: str(
                self._client.create_multipart_upload(Bucket=self.bucket, Key=key)["UploadId"]
            )
        )

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> str:
        """Send part `number`, counted from 1; returns its etag."""
        where = {"Bucket": self.bucket, "Key": key, "UploadId": upload_id, "PartNumber": number}
        return self._retry(lambda: _etag(self._client.upload_part(**where, Body=data)))

    def finish_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """Make the object of its parts, in this order. It appears whole or not at all."""
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, start=1)]
        where = {"Bucket": self.bucket, "Key": key}

        def finish() -> None:
            try:
                self._client.complete_multipart_upload(
                    **where, UploadId=upload_id, MultipartUpload={"Parts": parts}
                )
            except ClientError as error:
                if _code(error) != "NoSuchUpload":
                    raise
                self._client.head_object(**where)  # there if an earlier try did it

        self._retry(finish, key)

    def put_bytes(
        self, key: str, data: bytes, *, only_if_absent: bool = False, replacing: str | None = None
    ) -> bool:
        """Write a small object: always, only if there is none, or only if it has this etag.

        Returns False if the condition does not hold. An object that already has these bytes counts
        as written, because the answer to an earlier try may have been lost.
        """
        condition = {"IfMatch": replacing} if replacing else {}
        if only_if_absent:
            condition = {"IfNoneMatch": "*"}
        return self._retry(lambda: self._put(key, data, condition), key)

    def _put(self, key: str, data: bytes, condition: dict[str, str]) -> bool:
        for _ in range(ATTEMPTS):
            try:
                self._client.put_object(Bucket=self.bucket, Key=key, Body=data, **condition)
            except ClientError as error:
                if condition and _status(error) in (404, 412):
                    return self._has(key, data)
                if condition and _status(error) == 409:
                    continue  # another conditional write is under way: ask again who won
                raise
            return True
        raise StorageUnavailable(f"{self._where} keeps answering that '{key}' is being written.")

    def _has(self, key: str, data: bytes) -> bool:
        try:
            with self._errors(key):
                return self._get(key)[0] == data
        except ObjectMissing:
            return False

    def get_bytes(self, key: str) -> bytes:
        """The whole object in memory. Raises `ObjectMissing`."""
        return self.get_version(key)[0]

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """The bytes of a part of an object. Raises `ObjectMissing`."""
        part = f"bytes={start}-{start + length - 1}"

        def get() -> bytes:
            answer = self._client.get_object(Bucket=self.bucket, Key=key, Range=part)
            data: bytes = answer["Body"].read(length)  # a server may ignore the range
            return data

        return self._retry(get, key)

    def get_version(self, key: str) -> tuple[bytes, str]:
        """The whole object and its etag, read together. Raises `ObjectMissing`."""
        return self._retry(lambda: self._get(key), key)

    def _get(self, key: str) -> tuple[bytes, str]:
        answer = self._client.get_object(Bucket=self.bucket, Key=key)
        return answer["Body"].read(), _etag(answer)

    def get_files(self, wanted: Mapping[Path, StoredObject]) -> None:
        """Download each object of a listing to its path, where it appears when it is complete.

        Objects, and the parts of large ones, arrive side by side; each part is retried alone. Every
        request asks for the version of the listing, and what arrived is compared with its size and
        its ETag. Raises `ObjectMissing`, `ObjectChanged`, and `StorageUnavailable` also for bytes
        that arrived damaged twice.
        """
        with (
            ThreadPoolExecutor(DOWNLOADS, "download") as pool,
            create_transfer_manager(self._client, _TRANSFER) as transfers,  # an error cancels them
        ):
            for _ in pool.map(partial(self._get_file, transfers), wanted.values(), wanted):
                pass

    def _get_file(self, transfers: Any, stored: StoredObject, path: Path) -> None:
        def download() -> None:
            version = [_Version(stored.etag)]
            transfers.download(self.bucket, stored.key, str(path), subscribers=version).result()

        for _ in range(2):
            self._retry(download, stored.key)
            if self._is_intact(stored, path):
                return
        raise StorageUnavailable(
            f"{self._where} sends '{stored.key}' in bucket '{self.bucket}' damaged: the bytes do "
            f"not match its size and its ETag {stored.etag}. Upload it again if this persists."
        )

    def _is_intact(self, stored: StoredObject, path: Path) -> bool:
        """Whether the file has the object's size, and its digest if the server tells one."""
        if path.stat().st_size != stored.size:
            return False
        parts = parts_of(stored.etag)
        if parts is None:
            return stored.etag.lower() == etag_of(path) or not is_digest(
                stored.etag, self._describe(stored, 1)
            )
        first = self._describe(stored, 1)
        if not is_digest(stored.etag, first) or first.get("PartsCount") != parts:
            return True  # the server does not say where the parts begin
        sizes = equal_parts(stored.size, first["ContentLength"])
        if stored.etag.lower() == etag_of(path, sizes):
            return True
        sizes = [self._describe(stored, 1 + part)["ContentLength"] for part in range(parts)]
        return sum(sizes) != stored.size or stored.etag.lower() == etag_of(path, sizes)

    def _describe(self, stored: StoredObject, part: int) -> dict[str, Any]:
        """The headers of one part; empty if the server does not know parts."""

        def head() -> dict[str, Any]:
            try:
                answer: dict[str, Any] = self._client.head_object(
                    Bucket=self.bucket, Key=stored.key, PartNumber=part
                )
            except ClientError as error:
                if _status(error) in (400, 416, 501):
                    return {}
                raise
            return answer

        return self._retry(head, stored.key)

    def list_objects(self, prefix: str) -> Iterator[StoredObject]:
        """Every object whose key begins with `prefix`, in the order of keys."""
        for page in self._pages(self._client.list_objects_v2, prefix, "ContinuationToken"):
            for entry in page.get("Contents", ()):
                yield StoredObject(entry["Key"], entry["Size"], _etag(entry))

    def find(self, key: str) -> StoredObject:
        """The object with this key. Raises `ObjectMissing`."""
        answer = self._retry(lambda: self._client.head_object(Bucket=self.bucket, Key=key), key)
        return StoredObject(key, answer["ContentLength"], _etag(answer))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete these objects; those already gone are no error."""
        for start in range(0, len(keys), DELETE_BATCH):
            batch = keys[start : start + DELETE_BATCH]
            self._retry(partial(self._delete, batch))

    def _delete(self, keys: Sequence[str]) -> None:
        objects = [{"Key": key} for key in keys]
        answer = self._client.delete_objects(
            Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}
        )
        for refused in answer.get("Errors", ()):
            kind = StorageReadOnly if refused.get("Code") == DENIED else StorageUnavailable
            raise kind(f"{self._where} did not delete '{refused['Key']}': {refused.get('Message')}")

    def delete_version(self, key: str, etag: str) -> bool:
        """Delete the object if it still has this etag; False if it was replaced or is gone."""

        def delete() -> bool:
            try:
                self._client.delete_object(Bucket=self.bucket, Key=key, IfMatch=etag)
            except ClientError as error:
                if _status(error) in (404, 409, 412) and _code(error) != "NoSuchBucket":
                    return False
                raise
            return True

        return self._retry(delete)

    def abort_uploads(self, prefix: str, which: Callable[[str], bool] = lambda _key: True) -> None:
        """Abort the unfinished uploads of the keys below `prefix` that `which` selects."""
        uploads = [
            (upload["Key"], upload["UploadId"])
            for page in self._pages(self._client.list_multipart_uploads, prefix, *UPLOAD_MARKERS)
            for upload in page.get("Uploads", ())
            if which(upload["Key"])
        ]
        for key, upload_id in uploads:
            self._retry(partial(self._abort, key, upload_id))

    def presign(self, key: str, seconds: int, *, head: bool = False) -> str:
        """A URL that anybody may GET (or `head`) this one object from until it expires.

        A browser that opens it saves the object, and never shows it as a page of the bucket's.
        """
        saved = {} if head else {"ResponseContentDisposition": "attachment"}
        with self._errors(key):
            url: str = self._signer.generate_presigned_url(
                "head_object" if head else "get_object",
                Params={"Bucket": self.bucket, "Key": key, **saved},
                ExpiresIn=seconds,
            )
            return url

    def _pages(
        self, list_page: Callable[..., dict[str, Any]], prefix: str, *markers: str
    ) -> Iterator[dict[str, Any]]:
        """Every page of a listing; `markers` name the arguments for the start of the next."""
        start: dict[str, str] = {}
        while True:
            page = self._retry(partial(list_page, Bucket=self.bucket, Prefix=prefix, **start))
            yield page
            if not page.get("IsTruncated"):
                return
            # SeaweedFS names no key where it names an upload.
            start = {m: page[f"Next{m}"] for m in markers if page.get(f"Next{m}")}

    def _abort(self, key: str, upload_id: str) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)
        except ClientError as error:
            if _status(error) != 404 or _code(error) == "NoSuchBucket":  # it has ended
                raise

    def _retry(self, act: Callable[[], Result], key: str | None = None) -> Result:
        def once() -> Result:
            with self._errors(key):
                return act()

        return retry(once, on=StorageUnavailable, seconds=self._patience_seconds)

    @contextmanager
    def _errors(self, key: str | None = None) -> Iterator[None]:
        """Turn boto's errors into ours; `key` names the object that a 404 is about."""
        try:
            yield
        except ClientError as error:
            raise self._refusal(error, key) from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise StorageCredentialsInvalid(f"There are no S3 credentials: {error}") from error
        except ParamValidationError as error:
            raise BucketMissing(f"'{self.bucket}' cannot be a bucket: {error}") from error
        except S3DownloadFailedError as error:
            raise self._changed(key) from error
        except (
            BotoCoreError,
            Boto3Error,
            RetriesExceededError,
            S3ValidationError,
            ConnectionError,
            TimeoutError,
        ) as error:
            raise StorageUnavailable(f"{self._where} does not answer: {error}") from error

    def _changed(self, key: str | None) -> ObjectChanged:
        return ObjectChanged(
            f"The object '{key}' in bucket '{self.bucket}' was replaced while it was read."
        )

    def _refusal(self, error: ClientError, key: str | None) -> EigenpressError:
        code, status = _code(error), _status(error)
        if status == 507 or code in FULL_CODES:
            return StorageFull(
                f"{self._where} has no room left in bucket '{self.bucket}': remove objects from it "
                f"or raise its quota ({error})"
            )
        writes = error.operation_name not in READING
        if code == DENIED and writes:
            return StorageReadOnly(
                f"{self._where} denies these credentials write access to bucket "
                f"'{self.bucket}': grant it to them ({error})"
            )
        if status in (401, 403):
            return StorageCredentialsInvalid(
                f"{self._where} refuses {self._whose} for bucket '{self.bucket}': {error}"
            )
        if status == 404 and key and code != "NoSuchBucket":
            return ObjectMissing(f"There is no object '{key}' in bucket '{self.bucket}'.")
        if status == 404:
            return BucketMissing(f"{self._where} has no bucket '{self.bucket}'.")
        # SeaweedFS, for example, does not report full disks as such.
        hint = "; if it can be read but not written, its disks or its quota are full"
        return StorageUnavailable(f"{self._where} answers with an error: {error}{hint * writes}")


class _Version(BaseSubscriber):  # type: ignore[misc]
    """Has a download ask for one version of its object, by `If-Match`."""

    def __init__(self, etag: str) -> None:
        self._etag = etag

    def on_queued(self, future: Any, **_: Any) -> None:
        future.meta.provide_object_etag(f'"{self._etag}"')


def _status(error: ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


def _code(error: ClientError) -> str:
    code: str = error.response.get("Error", {}).get("Code", "")
    return code


def _etag(answer: dict[str, Any]) -> str:
    etag: str = answer["ETag"].strip('"')
    return etag
