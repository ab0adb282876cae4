"""Objects in a real bucket, and all the ways in which requests to it can fail."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import EndpointConnectionError
from botocore.model import OperationModel
from botocore.response import StreamingBody
from pydantic import SecretStr

import service.storage.s3
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
from service.settings import Settings
from service.standalone.ports import choose_port
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage, StoredObject
from tests.fixtures.storage import grant, s3_settings_for, seaweed_shell
from tests.fixtures.waiting import wait_until

LARGE = 20 * 2**20  # above boto's multipart threshold
TEXT = StoredObject("key", 4, hashlib.md5(b"text", usedforsecurity=False).hexdigest())


def operations(storage: ObjectStorage, folder: Path) -> dict[str, Callable[[], object]]:
    """Every way to use the storage."""
    source = folder / "source"
    source.write_bytes(b"text")
    return {
        "check": storage.check,
        "put_file": lambda: storage.put_file("key", source),
        "put_bytes": lambda: storage.put_bytes("key", b"text"),
        "put_if_absent": lambda: storage.put_bytes("key", b"text", only_if_absent=True),
        "put_replacing": lambda: storage.put_bytes("key", b"text", replacing="etag"),
        "get_bytes": lambda: storage.get_bytes("key"),
        "get_range": lambda: storage.get_range("key", 0, 1),
        "get_files": lambda: storage.get_files({folder / "target": TEXT}),
        "list_objects": lambda: list(storage.list_objects("")),
        "delete": lambda: storage.delete(["deleted"]),  # the others run beside it
        "delete_version": lambda: storage.delete_version("key", "etag"),
        "abort_uploads": lambda: storage.abort_uploads("prefix/"),
    }


OPERATIONS = (
    "check",
    "put_file",
    "put_bytes",
    "put_if_absent",
    "put_replacing",
    "get_bytes",
    "get_range",
    "get_files",
    "list_objects",
    "delete",
    "delete_version",
    "abort_uploads",
)


@dataclass
class Outage:
    """What every operation came to that was begun while the server was away."""

    results: dict[str, Future[object]]


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    """A server is killed, everything is asked of it, and it is started again."""
    folder = tmp_path_factory.mktemp("outage")
    with (
        LocalS3(folder / "s3", port=choose_port(0, "test")) as server,
        ThreadPoolExecutor(len(OPERATIONS)) as pool,
    ):
        settings = s3_settings_for(server, folder)
        storage = ObjectStorage.from_settings(settings, patience_seconds=120)
        storage.put_bytes("key", b"text")
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        with pytest.raises(StorageUnavailable):
            ObjectStorage.from_settings(settings).get_bytes("key")
        calls = operations(storage, folder)
        del calls["check"]
        results = {name: pool.submit(call) for name, call in calls.items()}
        server.start()
        results["check"] = pool.submit(storage.check)
        yield Outage(results)


@pytest.fixture
def storage_with_patience(s3_settings: Settings) -> ObjectStorage:
    return ObjectStorage.from_settings(s3_settings, patience_seconds=60)


@pytest.fixture(scope="module")
def dead_server(tmp_path_factory: pytest.TempPathFactory) -> LocalS3:
    server = LocalS3(tmp_path_factory.mktemp("dead"))
    server.start()
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    return server


def listed(storage: ObjectStorage, key: str) -> StoredObject:
    (stored,) = storage.list_objects(key)
    return stored


def test_files_come_back_whole(storage: ObjectStorage, prefix: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(LARGE))
    storage.put_file(prefix + "large", source)
    storage.get_files({target: listed(storage, prefix + "large")})
    assert target.read_bytes() == source.read_bytes()


@dataclass
class Answers:
    """Counts the answers to GetObject; `change` may replace the body of each."""

    storage: ObjectStorage
    change: Callable[[int, bytes], bytes] = lambda _number, body: body
    count: int = 0

    def __post_init__(self) -> None:
        self.storage._client.meta.events.register("after-call.s3.GetObject", self._answer)

    def _answer(self, parsed: dict[str, Any], **_: object) -> None:
        if "Body" in parsed:
            number, self.count = self.count, self.count + 1
            body = self.change(number, parsed["Body"].read())
            parsed["Body"] = StreamingBody(io.BytesIO(body), parsed["ContentLength"])


def flipped(body: bytes) -> bytes:
    return bytes([body[0] ^ 1]) + body[1:]


@pytest.fixture(params=["small", "large", "unequal"])
def stored(
    request: pytest.FixtureRequest, storage: ObjectStorage, prefix: str, tmp_path: Path
) -> StoredObject:
    """An object that was uploaded at once, in parts, or in parts of several sizes."""
    key = prefix + "object"
    if request.param == "unequal":
        put_parts(storage, key, (5 * 2**20, 6 * 2**20, 5 * 2**20, 3))
    else:
        (tmp_path / "source").write_bytes(os.urandom(LARGE if request.param == "large" else 100))
        storage.put_file(key, tmp_path / "source")
    return listed(storage, key)


def put_parts(storage: ObjectStorage, key: str, sizes: Sequence[int]) -> None:
    client, where = storage._client, {"Bucket": storage.bucket, "Key": key}
    upload = {**where, "UploadId": client.create_multipart_upload(**where)["UploadId"]}
    parts = [
        {
            "PartNumber": number,
            "ETag": client.upload_part(PartNumber=number, Body=os.urandom(size), **upload)["ETag"],
        }
        for number, size in enumerate(sizes, 1)
    ]
    client.complete_multipart_upload(MultipartUpload={"Parts": parts}, **upload)


def test_what_arrives_damaged_once_is_fetched_again(
    storage: ObjectStorage, stored: StoredObject, tmp_path: Path
) -> None:
    answers = Answers(storage, lambda number, body: body if number else flipped(body))
    storage.get_files({tmp_path / "target": stored})
    first_time = answers.count // 2
    assert answers.count == 2 * first_time
    assert (tmp_path / "target").read_bytes() == storage.get_bytes(stored.key)


def test_what_arrives_damaged_twice_is_refused(
    storage: ObjectStorage, stored: StoredObject, tmp_path: Path
) -> None:
    Answers(storage, lambda _, body: flipped(body))
    with pytest.raises(StorageUnavailable, match=f"'{re.escape(stored.key)}' .* damaged"):
        storage.get_files({tmp_path / "target": stored})


def test_a_size_other_than_listed_is_refused(
    storage: ObjectStorage, stored: StoredObject, tmp_path: Path
) -> None:
    with pytest.raises(StorageUnavailable, match="damaged"):
        storage.get_files({tmp_path / "target": replace(stored, size=stored.size + 1)})


def test_an_etag_that_is_no_digest_is_not_compared(
    storage: ObjectStorage, stored: StoredObject, tmp_path: Path
) -> None:
    def encrypted(parsed: dict[str, Any], **_: object) -> None:
        parsed["ServerSideEncryption"] = "aws:kms"

    storage._client.meta.events.register("after-call.s3.HeadObject", encrypted)
    Answers(storage, lambda _, body: flipped(body))
    storage.get_files({tmp_path / "target": stored})


def test_an_object_that_was_replaced_is_refused(
    storage: ObjectStorage, stored: StoredObject, tmp_path: Path
) -> None:
    storage.put_bytes(stored.key, b"other")
    with pytest.raises(ObjectChanged, match=f"'{re.escape(stored.key)}' .* was replaced"):
        storage.get_files({tmp_path / "target": stored})
    assert [path.name for path in tmp_path.iterdir() if path.name != "source"] == []


def test_an_object_that_is_replaced_between_its_parts_is_refused(
    storage: ObjectStorage, with_settings: Callable[..., Settings], prefix: str, tmp_path: Path
) -> None:
    put_parts(storage, prefix + "object", [LARGE])
    stored = listed(storage, prefix + "object")
    rival = ObjectStorage.from_settings(with_settings())

    def replace_after_first(number: int, body: bytes) -> bytes:
        if not number:
            put_parts(rival, stored.key, [LARGE])
        return body

    Answers(storage, replace_after_first)
    with pytest.raises(ObjectChanged):
        storage.get_files({tmp_path / "target": stored})
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_cut_short_is_fetched_again_alone(
    storage: ObjectStorage, prefix: str, tmp_path: Path
) -> None:
    put_parts(storage, prefix + "object", [LARGE])
    answers = Answers(storage, lambda number, body: body[:-1] if number == 1 else body)
    storage.get_files({tmp_path / "target": listed(storage, prefix + "object")})
    assert answers.count == 3 + 1
    assert (tmp_path / "target").read_bytes() == storage.get_bytes(prefix + "object")


def test_bytes_come_back(storage: ObjectStorage, prefix: str) -> None:
    assert storage.put_bytes(prefix + "small", b"one")
    assert storage.put_bytes(prefix + "small", b"two")
    assert storage.get_bytes(prefix + "small") == b"two"


def test_only_the_first_conditional_write_wins(storage: ObjectStorage, prefix: str) -> None:
    def put(number: int) -> bool:
        return storage.put_bytes(prefix + "once", b"%d" % number, only_if_absent=True)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(8)))
    assert won.count(True) == 1
    assert storage.get_bytes(prefix + "once") == b"%d" % won.index(True)


def test_only_the_first_of_those_who_replace_a_version_wins(
    storage: ObjectStorage, prefix: str
) -> None:
    storage.put_bytes(prefix + "key", b"before")
    _, etag = storage.get_version(prefix + "key")

    def put(number: int) -> bool:
        return storage.put_bytes(prefix + "key", b"%d" % number, replacing=etag)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(8)))
    assert won.count(True) == 1
    assert storage.get_bytes(prefix + "key") == b"%d" % won.index(True)


def test_nothing_is_replaced_where_nothing_is(storage: ObjectStorage, prefix: str) -> None:
    assert not storage.put_bytes(prefix + "key", b"x", replacing="00")
    assert not list(storage.list_objects(prefix))


def test_bytes_that_stand_already_are_written(storage: ObjectStorage, prefix: str) -> None:
    """The answer to an earlier try may have been lost."""
    assert storage.put_bytes(prefix + "key", b"ours", only_if_absent=True)
    assert storage.put_bytes(prefix + "key", b"ours", only_if_absent=True)
    assert not storage.put_bytes(prefix + "key", b"theirs", only_if_absent=True)
    assert storage.put_bytes(prefix + "key", b"ours", replacing="00")
    assert not storage.put_bytes(prefix + "key", b"theirs", replacing="00")


def test_a_version_is_deleted_and_no_other(storage: ObjectStorage, prefix: str) -> None:
    storage.put_bytes(prefix + "key", b"1")
    _, first = storage.get_version(prefix + "key")
    storage.put_bytes(prefix + "key", b"2")
    content, second = storage.get_version(prefix + "key")
    assert content == b"2"
    assert not storage.delete_version(prefix + "key", first)
    assert storage.delete_version(prefix + "key", second)
    assert not storage.delete_version(prefix + "key", second)
    assert not list(storage.list_objects(prefix))


def test_listing_is_complete_and_ordered(storage: ObjectStorage, prefix: str) -> None:
    for name in ("b", "a", "deep/er/c"):
        storage.put_bytes(prefix + name, name.encode())
    listed = list(storage.list_objects(prefix))
    assert [(o.key, o.size) for o in listed] == [
        (prefix + "a", 1),
        (prefix + "b", 1),
        (prefix + "deep/er/c", 9),
    ]


def test_an_etag_changes_with_the_bytes(storage: ObjectStorage, prefix: str) -> None:
    def etag() -> str:
        (stored,) = storage.list_objects(prefix)
        assert isinstance(stored, StoredObject)
        return stored.etag

    storage.put_bytes(prefix + "x", b"1")
    before = etag()
    storage.put_bytes(prefix + "x", b"2")
    assert etag() != before


def test_a_listing_may_have_several_pages(storage: ObjectStorage, prefix: str) -> None:
    client, keys = storage._client, [f"{prefix}{number}" for number in range(5)]

    def in_twos(params: dict[str, object], model: OperationModel, **_: object) -> None:
        params["MaxKeys" if model.name == "ListObjectsV2" else "MaxUploads"] = 2

    for operation in ("ListObjectsV2", "ListMultipartUploads"):
        client.meta.events.register(f"provide-client-params.s3.{operation}", in_twos)
    for key in keys:
        storage.put_bytes(key, b"x")
        client.create_multipart_upload(Bucket=storage.bucket, Key=key)
    assert [stored.key for stored in storage.list_objects(prefix)] == keys
    storage.abort_uploads(prefix, lambda key: key != keys[3])
    left = client.list_multipart_uploads(Bucket=storage.bucket, Prefix=prefix)["Uploads"]
    assert [upload["Key"] for upload in left] == keys[3:4]
    storage.abort_uploads(prefix)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=storage.bucket, Prefix=prefix)


def test_deleting_takes_more_than_one_batch(
    storage: ObjectStorage, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.storage.s3, "DELETE_BATCH", 2)
    keys = [f"{prefix}{number}" for number in range(5)]
    for key in keys:
        storage.put_bytes(key, b"x")
    storage.delete(keys)
    assert not list(storage.list_objects(prefix))


def test_a_presigned_url_needs_no_credentials(storage: ObjectStorage, prefix: str) -> None:
    storage.put_bytes(prefix + "a b+ü", b"for everybody")
    url = storage.presign(prefix + "a b+ü", 60)
    assert httpx.get(url).headers["Content-Disposition"] == "attachment"
    assert httpx.get(url).content == b"for everybody"
    assert httpx.get(url.partition("?")[0]).status_code == 403
    ranged = httpx.get(url, headers={"Range": "bytes=4-6"})
    assert (ranged.status_code, ranged.content) == (206, b"eve")


def test_presigned_urls_name_the_public_endpoint(with_settings: Callable[..., Settings]) -> None:
    settings = with_settings(s3_public_endpoint_url="https://s3.example.org")
    url = ObjectStorage.from_settings(settings).presign("key", 60)
    assert url.startswith("https://s3.example.org/eigenpress/key?")


def test_a_missing_object_is_named(storage: ObjectStorage, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing, match="nowhere"):
        storage.get_bytes("nowhere")
    with pytest.raises(ObjectMissing, match="nowhere"):
        storage.get_files({tmp_path / "target": replace(TEXT, key="nowhere")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("operation", sorted({*OPERATIONS} - {"get_files"}))
def test_a_missing_bucket_is_named(s3_settings: Settings, tmp_path: Path, operation: str) -> None:
    """SeaweedFS answers `get_files`, a conditional read, as if only the object were missing."""
    storage = ObjectStorage.from_settings(s3_settings, "no-such-bucket")
    with pytest.raises(BucketMissing, match="no-such-bucket"):
        operations(storage, tmp_path)[operation]()


def test_an_impossible_bucket_is_missing(s3_settings: Settings) -> None:
    with pytest.raises(BucketMissing, match="NOT A BUCKET"):
        ObjectStorage.from_settings(s3_settings, "NOT A BUCKET").check()


@pytest.mark.parametrize("field", ["s3_access_key_id", "s3_secret_access_key"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_wrong_credentials_are_refused(
    with_settings: Callable[..., Settings], tmp_path: Path, field: str, operation: str
) -> None:
    storage = ObjectStorage.from_settings(with_settings(**{field: SecretStr("wrong")}))
    with pytest.raises(StorageCredentialsInvalid):
        operations(storage, tmp_path)[operation]()


def test_absent_credentials_are_invalid(
    with_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    storage = ObjectStorage.from_settings(
        with_settings(s3_access_key_id=None, s3_secret_access_key=None)
    )
    with pytest.raises(StorageCredentialsInvalid, match="no S3 credentials"):
        storage.check()
    with pytest.raises(StorageCredentialsInvalid):
        storage.presign("key", 60)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_dead_server_is_unavailable(dead_server: LocalS3, tmp_path: Path, operation: str) -> None:
    storage = ObjectStorage.from_settings(s3_settings_for(dead_server, tmp_path))
    with pytest.raises(StorageUnavailable, match="does not answer"):
        operations(storage, tmp_path)[operation]()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_silent_server_is_unavailable(
    tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.storage.s3, "READ_SECONDS", 0.2)
    monkeypatch.setattr(service.storage.s3, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        storage = canned_storage(silent.getsockname()[1], tmp_path)
        with pytest.raises(StorageUnavailable, match="does not answer"):
            operations(storage, tmp_path)[operation]()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, StorageUnavailable),
        (503, StorageUnavailable),
        (400, StorageUnavailable),
        (401, StorageCredentialsInvalid),
        (403, StorageCredentialsInvalid),
        (507, StorageFull),
    ],
)
def test_other_answers_become_our_errors(
    tmp_path: Path, status: int, error: type[EigenpressError]
) -> None:
    with canned_answers(status) as port, pytest.raises(error):
        canned_storage(port, tmp_path).put_bytes("key", b"x")


def test_a_conflict_that_never_ends_is_unavailable(tmp_path: Path) -> None:
    with canned_answers(409) as port, pytest.raises(StorageUnavailable, match="being written"):
        canned_storage(port, tmp_path).put_bytes("key", b"x", only_if_absent=True)


def test_an_endpoint_that_is_no_url_is_unavailable(with_settings: Callable[..., Settings]) -> None:
    with pytest.raises(StorageUnavailable, match="not an S3 endpoint"):
        ObjectStorage.from_settings(with_settings(s3_endpoint_url="not a url"))


def test_loopback_is_not_reached_through_a_proxy(
    s3_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    ObjectStorage.from_settings(s3_settings).check()


def test_local_disk_trouble_is_not_blamed_on_the_server(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        storage.put_file("key", tmp_path / "absent")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_outage_is_ridden_out(outage: Outage, operation: str) -> None:
    outage.results[operation].result()


def test_a_file_that_is_not_there_is_not_waited_for(storage_with_patience: ObjectStorage) -> None:
    with pytest.raises(ObjectMissing):
        storage_with_patience.get_bytes("nowhere")


@pytest.mark.parametrize("moment", ["before-call", "after-call"])
def test_a_write_whose_request_or_answer_is_lost_is_made_once(
    storage_with_patience: ObjectStorage, prefix: str, moment: str
) -> None:
    storage, failures = storage_with_patience, [EndpointConnectionError(endpoint_url="the server")]

    def lose(**_: object) -> None:
        if failures:
            raise failures.pop()

    storage._client.meta.events.register(f"{moment}.s3.PutObject", lose)
    assert storage.put_bytes(prefix + "key", b"ours", only_if_absent=True)
    assert not failures
    assert storage.get_bytes(prefix + "key") == b"ours"


def test_a_bucket_that_may_only_be_read_is_told_by_name(
    local_s3: LocalS3, with_settings: Callable[..., Settings], prefix: str, tmp_path: Path
) -> None:
    key, secret = "reader", "reader-secret"
    grant(local_s3, key, secret, "Read,List")
    keys = {"s3_access_key_id": SecretStr(key), "s3_secret_access_key": SecretStr(secret)}
    reader = ObjectStorage.from_settings(with_settings(**keys), patience_seconds=60)
    writer = ObjectStorage.from_settings(with_settings())
    writer.put_bytes(prefix + "key", b"text")
    wait_until(lambda: is_known(reader, prefix + "key"))
    calls = operations(reader, tmp_path)
    for operation in ("put_file", "put_bytes", "put_if_absent", "delete", "delete_version"):
        with pytest.raises(StorageReadOnly):
            calls[operation]()
    assert writer.get_bytes(prefix + "key") == b"text"


def is_known(storage: ObjectStorage, key: str) -> bool:
    try:
        return storage.get_bytes(key) == b"text"
    except StorageCredentialsInvalid:
        return False


def test_a_bucket_beyond_its_quota_is_said_to_be_full(tmp_path: Path) -> None:
    with LocalS3(tmp_path / "s3") as server:
        storage = ObjectStorage.from_settings(s3_settings_for(server, tmp_path))
        storage.put_bytes("large", os.urandom(2 * 2**20))
        seaweed_shell(server, f"s3.bucket.quota -name={server.bucket} -op=set -sizeMB=1")

        def is_refused() -> str:
            seaweed_shell(server, "lock", "s3.bucket.quota.enforce -apply", "unlock")
            try:
                storage.put_bytes("more", b"x")
            except StorageUnavailable as error:
                return error.detail
            return ""

        wait_until(is_refused)
        assert "its disks or its quota are full" in is_refused()
        assert len(storage.get_bytes("large")) == 2 * 2**20


def canned_storage(port: int, data_dir: Path) -> ObjectStorage:
    settings = Settings(
        data_dir=data_dir,
        s3_endpoint_url=f"http://127.0.0.1:{port}",
        s3_access_key_id=SecretStr("key"),
        s3_secret_access_key=SecretStr("secret"),
    )
    return ObjectStorage.from_settings(settings)


@contextmanager
def canned_answers(status: int) -> Iterator[int]:
    """The port of a server that answers every PUT with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_bucket_can_be_made_and_is_made_once(
    with_settings: Callable[..., Settings],
) -> None:
    storage = ObjectStorage.from_settings(with_settings(s3_bucket="another"))
    with pytest.raises(BucketMissing):
        storage.check()
    storage.create_bucket()
    storage.put_bytes("kept", b"x")
    storage.create_bucket()
    assert storage.get_bytes("kept") == b"x"
