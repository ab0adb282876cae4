"""Objects in an S3 bucket: the one place that speaks to boto3.

Whatever goes wrong on the way to the bucket leaves this module as `StorageUnavailable`,
`BucketMissing`, `StorageCredentialsInvalid` or `ObjectMissing`, and after a bounded time: a server
that is down costs seconds, one that accepts a connection and then says nothing `READ_SECONDS` per
try. Trouble with the local disk stays an `OSError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from service.artifacts import MANIFEST_NAME
from service.errors import (
    BucketMissing,
    EigenpressError,
    ObjectMissing,
    StorageCredentialsInvalid,
    StorageUnavailable,
)
from service.settings import Settings

CONNECT_SECONDS = 3
READ_SECONDS = 30
PROBE_SECONDS = 5
ATTEMPTS = 3
DELETE_BATCH = 1000
"""The most keys that one DeleteObjects request takes."""

_TRANSFER = TransferConfig(num_download_attempts=ATTEMPTS)


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing; `etag` changes whenever the bytes do, and is no hash of them."""

    key: str
    size: int
    etag: str


class ObjectStorage:
    """One bucket. Safe to share between threads."""

    def __init__(self, settings: Settings, bucket: str) -> None:
        self.bucket = bucket
        self._where = settings.s3_endpoint_url or f"Amazon S3 ({settings.s3_region})"
        connect = _Connector(settings)
        with self._errors():
            self._client = connect(settings.s3_endpoint_url, READ_SECONDS)
            self._probe = connect(settings.s3_endpoint_url, PROBE_SECONDS)
            self._signer = connect(
                settings.s3_public_endpoint_url or settings.s3_endpoint_url, READ_SECONDS
            )

    @classmethod
    def from_settings(cls, settings: Settings, bucket: str | None = None) -> ObjectStorage:
        """The installation's bucket, or another one reached with the same credentials."""
        return cls(settings, bucket or settings.s3_bucket)

    def check(self) -> None:
        """Raise unless the server answers, takes the credentials and has the bucket."""
        with self._errors():
            self._probe.head_bucket(Bucket=self.bucket)

    def create_bucket(self) -> None:
        """Make the bucket, unless it is there already."""
        with self._errors(), suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
            self._client.create_bucket(Bucket=self.bucket)

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file, in parallel parts when it is large."""
        with path.open("rb") as file, self._errors(key):
            self._client.upload_fileobj(file, self.bucket, key, Config=_TRANSFER)

    def put_bytes(self, key: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """Write a small object; False if `only_if_absent` and somebody was first."""
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        with self._errors(key):
            for _ in range(ATTEMPTS):
                try:
                    self._client.put_object(Bucket=self.bucket, Key=key, Body=data, **condition)
                except ClientError as error:
                    if only_if_absent and _status(error) == 412:
                        return False
                    if only_if_absent and _status(error) == 409:
                        continue  # another conditional write is under way: ask again who won
                    raise
                return True
        raise StorageUnavailable(f"{self._where} keeps answering that '{key}' is being written.")

    def get_bytes(self, key: str) -> bytes:
        """The whole object in memory. Raises `ObjectMissing`."""
        with self._errors(key):
            body: bytes = self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            return body

    def get_file(self, key: str, path: Path) -> None:
        """Download to `path`, which appears only once complete. Raises `ObjectMissing`."""
        with self._errors(key):
            self._client.download_file(self.bucket, key, str(path), Config=_TRANSFER)

    def list_objects(self, prefix: str) -> Iterator[StoredObject]:
        """Every object whose key begins with `prefix`, in the order of keys."""
        with self._errors():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
                for entry in page.get("Contents", ()):
                    yield StoredObject(entry["Key"], entry["Size"], entry["ETag"].strip('"'))

    def delete_prefix(self, prefix: str) -> int:
        """Delete every object below `prefix` and abort its unfinished uploads; the objects' number.

        Manifests go first and by themselves, so that none outlives a file that it names, wherever
        this breaks off. `prefix` ends with a slash: ``jobs/1/`` never takes ``jobs/10/`` with it.
        """
        if not prefix.strip("/") or not prefix.endswith("/"):
            raise ValueError(f"refusing to delete everything below {prefix!r}")
        keys = [stored.key for stored in self.list_objects(prefix)]
        manifests = [key for key in keys if key.rpartition("/")[2] == MANIFEST_NAME]
        self.delete(manifests)
        self._abort_uploads(prefix)
        rest = [stored.key for stored in self.list_objects(prefix)]  # and what was just completed
        self.delete(rest)
        return len(manifests) + len(rest)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete these objects; those already gone are no error."""
        for start in range(0, len(keys), DELETE_BATCH):
            objects = [{"Key": key} for key in keys[start : start + DELETE_BATCH]]
            with self._errors():
                answer = self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}
                )
            for refused in answer.get("Errors", ()):
                raise StorageUnavailable(
                    f"{self._where} did not delete '{refused['Key']}': {refused.get('Message')}"
                )

    def presign(self, key: str, seconds: int) -> str:
        """A URL that anybody may GET the object from until it expires."""
        with self._errors(key):
            url: str = self._signer.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=seconds
            )
            return url

    def _abort_uploads(self, prefix: str) -> None:
        with self._errors():
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
                for upload in page.get("Uploads", ()):
                    self._abort(upload["Key"], upload["UploadId"])

    def _abort(self, key: str, upload_id: str) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)
        except ClientError as error:
            if _status(error) != 404:  # it ended since it was listed
                raise

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
        except (BotoCoreError, Boto3Error, ConnectionError, TimeoutError) as error:
            raise StorageUnavailable(f"{self._where} does not answer: {error}") from error

    def _refusal(self, error: ClientError, key: str | None) -> EigenpressError:
        code, status = error.response.get("Error", {}).get("Code", ""), _status(error)
        if status in (401, 403):
            return StorageCredentialsInvalid(
                f"{self._where} refuses the credentials for bucket '{self.bucket}': {error}"
            )
        if status == 404 and key and code != "NoSuchBucket":
            return ObjectMissing(f"There is no object '{key}' in bucket '{self.bucket}'.")
        if status == 404:
            return BucketMissing(f"{self._where} has no bucket '{self.bucket}'.")
        return StorageUnavailable(f"{self._where} answers with an error: {error}")


class _Connector:
    """Makes clients that share credentials and differ in endpoint and patience."""

    def __init__(self, settings: Settings) -> None:
        key_id, secret = settings.s3_access_key_id, settings.s3_secret_access_key
        self._session = Session(
            aws_access_key_id=key_id.get_secret_value() if key_id else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            region_name=settings.s3_region,
        )

    def __call__(self, endpoint_url: str | None, read_seconds: int) -> Any:
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=read_seconds,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            signature_version="s3v4",
            s3={"addressing_style": "path" if endpoint_url else "auto"},
            # boto's own default sends trailing checksums, which many S3 servers do not know.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # A server on this machine is never reached through the environment's proxy.
            proxies={} if _is_loopback(endpoint_url) else None,
        )
        try:
            return self._session.client("s3", endpoint_url=endpoint_url, config=config)
        except ValueError as error:
            raise StorageUnavailable(f"{endpoint_url!r} is no S3 endpoint: {error}") from error


def _status(error: ClientError) -> int:
    status: int = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


def _is_loopback(endpoint_url: str | None) -> bool:
    host = urlsplit(endpoint_url or "").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
