"""`service.client.download` against a real HTTP server that fails as a test demands."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest

import service.client.download
from service.client.client import Client
from service.client.download import download_artifact
from service.domain.manifest import MANIFEST_NAME
from service.errors import ArtifactCorrupt, InvalidParameter, StorageUnavailable

JOB = "job-1"
NAME = "keep-0.8"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": bytes(range(256)) * 12_000,  # a few chunks
    "model-00002-of-00002.safetensors": b"weights" * 100_000,
    "tokenizer/merges.txt": b"",
}
LARGE = "model-00001-of-00002.safetensors"

Fault = Callable[["Handler", bytes], None]


def manifest_of(files: dict[str, bytes]) -> bytes:
    entries = [
        {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in files.items()
    ]
    place = {"attempt": 1, "folder": "1-00c0ffee/"}
    return json.dumps({"format": 2, **place, "files": entries}).encode()


class Bucket(ThreadingHTTPServer):
    """An artifact's files behind URLs that can expire, and the API route that lists them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {**FILES, MANIFEST_NAME: manifest_of(FILES)}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.ranges: dict[str, list[str | None]] = defaultdict(list)
        self.signature = 1
        self.listings = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def listing(self) -> dict[str, Any]:
        self.listings += 1
        files = [
            {
                "path": path,
                "sha256": hashlib.sha256(content).hexdigest(),
                "url": f"{self.url}/bucket/{path}?signature={self.signature}",
            }
            for path, content in self.objects.items()
        ]
        return {"artifacts": [{"name": NAME, "files": files}]}

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Bucket
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == f"/v1/jobs/{JOB}/artifacts":
            return self.reply(200, json.dumps(self.server.listing()).encode())
        path = unquote(url.path.removeprefix("/bucket/"))
        self.server.ranges[path].append(self.headers["Range"])
        if parse_qs(url.query)["signature"] != [str(self.server.signature)]:
            return self.reply(403, b"Request has expired")
        content = self.server.objects[path]
        if self.server.faults[path]:
            return self.server.faults[path].pop(0)(self, content)
        return self.serve(content)

    def serve(self, content: bytes, cut: int | None = None) -> None:
        """Send what the Range header asks for, or hang up after `cut` bytes of it."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if not asked:
            return self.reply(200, content)
        start = int(asked[1])
        if start >= len(content):
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.reply(206, content[start:], {"Content-Range": span}, cut)

    def reply(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_args: object) -> None:
        """Quiet."""


def cut_after(count: int) -> Fault:
    return lambda handler, content: handler.serve(content, cut=count)


def status(code: int) -> Fault:
    return lambda handler, _content: handler.reply(code, b"")


def corrupted(handler: Handler, content: bytes) -> None:
    handler.serve(content[:-1] + bytes([content[-1] ^ 1]))


def without_range(handler: Handler, content: bytes) -> None:
    handler.reply(200, content)


def hang_up(handler: Handler, _content: bytes) -> None:
    handler.close_connection = True


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(bucket: Bucket) -> Iterator[Client]:
    with Client(bucket.url) as client:
        yield client


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.client.download, "LONGEST_PAUSE_SECONDS", 0.001)


def content_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_every_file_arrives_and_nothing_else_is_left(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    folder = download_artifact(
        client,
        JOB,
        NAME,
        tmp_path / "out",
        on_progress=lambda done, all_: seen.append((done, all_)),
    )
    assert content_of(folder) == bucket.objects
    total = sum(len(content) for content in FILES.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_cut_connection_is_resumed_where_it_broke(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    bucket.faults[LARGE] = [cut_after(200_000), cut_after(300_000)]
    assert content_of(download_artifact(client, JOB, NAME, tmp_path)) == bucket.objects
    assert bucket.ranges[LARGE] == ["bytes=0-", "bytes=200000-", "bytes=500000-"]


def test_a_download_that_was_given_up_goes_on_when_started_again(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    bucket.faults[LARGE] = [cut_after(200_000), *[hang_up] * 50]
    with pytest.raises(StorageUnavailable, match=LARGE):
        download_artifact(client, JOB, NAME, tmp_path)
    assert MANIFEST_NAME not in content_of(tmp_path)
    assert LARGE not in content_of(tmp_path)
    bucket.faults.clear()
    bucket.ranges.clear()
    assert content_of(download_artifact(client, JOB, NAME, tmp_path)) == bucket.objects
    assert bucket.ranges[LARGE] == ["bytes=200000-"]
    assert bucket.ranges["config.json"] == []


def test_a_whole_folder_is_only_checked(bucket: Bucket, client: Client, tmp_path: Path) -> None:
    download_artifact(client, JOB, NAME, tmp_path)
    bucket.ranges.clear()
    download_artifact(client, JOB, NAME, tmp_path)
    assert set(bucket.ranges) == {MANIFEST_NAME}


def test_a_file_damaged_on_disk_is_fetched_anew(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    download_artifact(client, JOB, NAME, tmp_path)
    (tmp_path / LARGE).write_bytes(b"x" * len(FILES[LARGE]))
    assert content_of(download_artifact(client, JOB, NAME, tmp_path)) == bucket.objects


def test_bytes_corrupted_once_are_fetched_anew(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    bucket.faults[LARGE] = [corrupted]
    assert content_of(download_artifact(client, JOB, NAME, tmp_path)) == bucket.objects


def test_bytes_corrupt_in_the_bucket_are_refused_by_name(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    bucket.faults[LARGE] = [corrupted, corrupted]
    with pytest.raises(ArtifactCorrupt, match=f"{LARGE} does not match its sha256"):
        download_artifact(client, JOB, NAME, tmp_path)
    assert not {LARGE, MANIFEST_NAME} & set(content_of(tmp_path))


@pytest.mark.parametrize("change", [lambda b: b[:-5], lambda b: b + b"more"])
def test_an_object_of_another_length_is_refused(
    bucket: Bucket, client: Client, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    bucket.objects[LARGE] = change(bucket.objects[LARGE])
    with pytest.raises(ArtifactCorrupt, match="its manifest states"):
        download_artifact(client, JOB, NAME, tmp_path)


def test_a_server_without_range_sends_the_file_from_its_start(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    bucket.faults[LARGE] = [cut_after(200_000), without_range]
    assert content_of(download_artifact(client, JOB, NAME, tmp_path)) == bucket.objects


def test_expired_urls_are_renewed_once_for_all_files(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    def expire(handler: Handler, content: bytes) -> None:
        handler.server.signature += 1
        handler.serve(content)

    bucket.faults[MANIFEST_NAME] = [expire]
    assert content_of(download_artifact(client, JOB, NAME, tmp_path)) == bucket.objects
    assert bucket.listings == 2


@pytest.mark.parametrize("fault", [status(500), status(503), status(429), hang_up])
def test_a_bucket_that_stumbles_is_asked_again(
    bucket: Bucket, client: Client, tmp_path: Path, fault: Fault
) -> None:
    bucket.faults[LARGE] = [fault, fault]
    bucket.faults[MANIFEST_NAME] = [fault, fault]
    assert content_of(download_artifact(client, JOB, NAME, tmp_path)) == bucket.objects


@pytest.mark.parametrize("path", [LARGE, MANIFEST_NAME])
def test_a_bucket_that_stays_away_is_said_to(
    bucket: Bucket, client: Client, tmp_path: Path, path: str
) -> None:
    bucket.faults[path] = [status(503)] * 50
    with pytest.raises(StorageUnavailable, match=f"cannot download {path}: .*HTTP 503"):
        download_artifact(client, JOB, NAME, tmp_path)


@pytest.mark.parametrize(
    "path", ["../out", "/etc/passwd", "a/../../b", "a\\b", "./a", "a//b", MANIFEST_NAME]
)
def test_a_path_that_leads_out_of_the_folder_is_refused(
    bucket: Bucket, client: Client, tmp_path: Path, path: str
) -> None:
    bucket.objects = {path: b"", MANIFEST_NAME: manifest_of({path: b""})}
    with pytest.raises(ArtifactCorrupt, match="manifest cannot be read"):
        download_artifact(client, JOB, NAME, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("manifest", [b"", b"[]", b'{"files": [{"path": "a", "size": -1}]}'])
def test_a_manifest_that_is_none_is_refused(
    bucket: Bucket, client: Client, tmp_path: Path, manifest: bytes
) -> None:
    bucket.objects[MANIFEST_NAME] = manifest
    with pytest.raises(ArtifactCorrupt, match="manifest cannot be read"):
        download_artifact(client, JOB, NAME, tmp_path)


def test_a_manifest_that_the_api_finds_damaged_is_refused(tmp_path: Path) -> None:
    problem = {"code": "artifact_corrupt", "detail": "the manifest.json was damaged"}
    answer = httpx.MockTransport(lambda _: httpx.Response(410, json=problem))
    message = r"the manifest\.json was damaged"
    with (
        Client("http://api.test", transport=answer) as client,
        pytest.raises(ArtifactCorrupt, match=message),
    ):
        download_artifact(client, JOB, NAME, tmp_path)


def test_a_manifest_that_changes_on_the_way_is_refused(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    bucket.faults[MANIFEST_NAME] = [corrupted]
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.json does not match"):
        download_artifact(client, JOB, NAME, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_names_a_file_twice_is_refused(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    twice = json.loads(manifest_of({"a": b""}))
    twice["files"] *= 2
    bucket.objects[MANIFEST_NAME] = json.dumps(twice).encode()
    with pytest.raises(ArtifactCorrupt, match="a path is listed twice"):
        download_artifact(client, JOB, NAME, tmp_path)


def test_a_manifest_without_end_is_refused(
    bucket: Bucket, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.client.download, "MAX_MANIFEST_BYTES", 1000)
    bucket.objects[MANIFEST_NAME] = b" " * 1001
    with pytest.raises(ArtifactCorrupt, match="longer than 1,000 bytes"):
        download_artifact(client, JOB, NAME, tmp_path)


def test_a_file_the_bucket_lacks_is_refused(bucket: Bucket, client: Client, tmp_path: Path) -> None:
    del bucket.objects[LARGE]
    with pytest.raises(ArtifactCorrupt, match=f"{LARGE} is in the manifest but not in the bucket"):
        download_artifact(client, JOB, NAME, tmp_path)


def test_a_folder_of_another_artifact_is_left_alone(
    bucket: Bucket, client: Client, tmp_path: Path
) -> None:
    before = content_of(download_artifact(client, JOB, NAME, tmp_path))
    bucket.objects = {"other": b"o", MANIFEST_NAME: manifest_of({"other": b"o"})}
    with pytest.raises(InvalidParameter, match="holds another artifact"):
        download_artifact(client, JOB, NAME, tmp_path)
    assert content_of(tmp_path) == before


def test_an_artifact_that_is_not_there_is_named_with_those_that_are(
    client: Client, tmp_path: Path
) -> None:
    with pytest.raises(InvalidParameter, match=r"no artifact 'keep-0.5'; it has: keep-0.8"):
        download_artifact(client, JOB, "keep-0.5", tmp_path)
