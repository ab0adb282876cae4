"""Downloads an artifact from the bucket into a folder and checks every file.

Guaranteed: a file under its own name has the size and sha256 that the manifest states,
and `manifest.json` is written last, so a folder with a manifest is a whole artifact. An
interrupted download, even a killed one, resumes when it is started again: its bytes are kept in
``<name>.<start of its sha256>.part``, which cannot be mistaken for those of another version.

Not guaranteed: two downloads into one folder at the same time disturb each other. Neither ends with
wrong bytes, but either may fail.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.client.answers import ArtifactFile
from service.client.client import Client
from service.client.errors import ApiProblem
from service.client.http import open_http
from service.domain.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    ManifestFile,
    sha256_of,
)
from service.errors import ArtifactCorrupt, InvalidParameter, StorageUnavailable

REQUEST_SECONDS = 30.0
MAX_FRUITLESS_TRIES = 6
"""Requests in a row without a single byte before the download of a file fails."""
LONGEST_PAUSE_SECONDS = 8.0

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all), from several threads, one at a time."""


def download_artifact(
    client: Client,
    job_id: str,
    name: str,
    folder: Path,
    workers: int = 4,
    on_progress: Progress = lambda _done, _total: None,
) -> Path:
    """Bring the artifact `name` of a job into `folder`, `workers` files at a time.

    Raises
    ------
    InvalidParameter     the job has no such artifact, or `folder` holds another one
    ArtifactCorrupt      a file differs from its manifest even when fetched anew, or the manifest
                         is not the one that was published
    StorageUnavailable   the bucket stopped answering; start the download again to resume it
    ClientError          the API did not answer, or refused
    OSError              `folder` cannot be written
    """
    with open_http(REQUEST_SECONDS) as http:
        listing = _Listing(client, job_id, name)
        manifest = _fetch_manifest(http, listing)
        files = Manifest.parse(manifest).files
        claim = _claim(folder, manifest)
        tally = _Tally(sum(file.size for file in files), on_progress)
        _fetch_all(http, listing, files, folder, workers, tally)
    claim.replace(folder / MANIFEST_NAME)
    return folder


class _Listing:
    """The artifact's files as the API lists them; presigned URLs that have expired are renewed."""

    def __init__(self, client: Client, job_id: str, name: str) -> None:
        self._client = client
        self._job_id = job_id
        self._name = name
        self._lock = threading.Lock()
        self._by_path = self._ask()

    def url(self, path: str) -> str:
        return self._file(path)["url"]

    def sha256(self, path: str) -> str:
        return self._file(path)["sha256"]

    def _file(self, path: str) -> ArtifactFile:
        try:
            return self._by_path[path]
        except KeyError:
            raise ArtifactCorrupt(f"{path} is in the manifest but not in the bucket") from None

    def renew(self, path: str, refused: str) -> None:
        """Replace the URLs, unless another thread already did since `refused` was read."""
        with self._lock:
            if self.url(path) == refused:
                self._by_path = self._ask()

    def _ask(self) -> dict[str, ArtifactFile]:
        try:
            artifacts = self._client.artifacts(self._job_id)
        except ApiProblem as error:
            if error.code == ArtifactCorrupt.code:
                raise ArtifactCorrupt(error.detail) from error
            raise
        for artifact in artifacts:
            if artifact["name"] == self._name:
                return {file["path"]: file for file in artifact["files"]}
        names = ", ".join(artifact["name"] for artifact in artifacts) or "none"
        raise InvalidParameter(
            f"{self._job_id} has no artifact {self._name!r}; it has: {names}", param="name"
        )


class _Tally:
    """Counts the downloaded bytes, for the progress display."""

    def __init__(self, total: int, on_progress: Progress) -> None:
        self._total = total
        self._on_progress = on_progress
        self._here: dict[str, int] = {}
        self._lock = threading.Lock()

    def set(self, path: str, size: int) -> None:
        with self._lock:
            self._here[path] = size
            self._on_progress(sum(self._here.values()), self._total)


@dataclass(frozen=True)
class _Fetch:
    """The download of one file: its source, partial file and destination."""

    http: httpx.Client
    listing: _Listing
    file: ManifestFile
    final: Path
    tally: _Tally
    stop: threading.Event

    @property
    def part(self) -> Path:
        return self.final.with_name(f"{self.final.name}.{self.file.sha256[:12]}.part")

    def run(self) -> None:
        """Download the file, unless another one fails first; a failure stops the others."""
        try:
            if not self._is_whole(self.final):
                self.final.parent.mkdir(parents=True, exist_ok=True)
                self._complete_part()
                if self.stop.is_set():
                    return
                self.part.replace(self.final)
            self.tally.set(self.file.path, self.file.size)
        except BaseException:
            self.stop.set()
            raise

    def _complete_part(self) -> None:
        """Fill the part file; start it once more if an earlier run left wrong bytes in it."""
        for _ in range(2):
            self._fill_part()
            if self.stop.is_set() or self._is_whole(self.part):
                return
            self.part.unlink()
        raise ArtifactCorrupt(f"{self.file.path} does not match its sha256 in the manifest")

    def _fill_part(self) -> None:
        self.part.touch()
        fruitless = 0
        while not self.stop.is_set() and (before := self._part_size()) < self.file.size:
            problem = self._request_rest(before)
            fruitless = 0 if self._part_size() > before else fruitless + 1
            if fruitless == MAX_FRUITLESS_TRIES:
                raise StorageUnavailable(f"cannot download {self.file.path}: {problem}")
            if fruitless:
                self.stop.wait(_pause_seconds(fruitless))

    def _part_size(self) -> int:
        return self.part.stat().st_size

    def _request_rest(self, offset: int) -> str:
        """Request and store the bytes from `offset` on; returns a description of the answer."""
        url = self.listing.url(self.file.path)
        headers = {"Range": f"bytes={offset}-", "Accept-Encoding": "identity"}
        try:
            with self.http.stream("GET", url, headers=headers) as response:
                self._check_length(response)
                if response.status_code == httpx.codes.PARTIAL_CONTENT:
                    self._keep(response, offset)
                elif response.status_code == httpx.codes.OK:
                    self._keep(response, 0)  # a server that does not know Range sends it all
                elif response.is_client_error:
                    self.listing.renew(self.file.path, refused=url)
                return f"the bucket answers HTTP {response.status_code}"
        except httpx.TransportError as error:
            return str(error) or type(error).__name__

    def _check_length(self, response: httpx.Response) -> None:
        total = _object_bytes(response)
        if total is not None and total != self.file.size:
            raise ArtifactCorrupt(
                f"{self.file.path} has {total:,} bytes; its manifest states {self.file.size:,}"
            )

    def _keep(self, response: httpx.Response, offset: int) -> None:
        with self.part.open("r+b") as part:
            part.truncate(offset)
            part.seek(offset)
            for chunk in response.iter_raw():
                if offset + len(chunk) > self.file.size:
                    raise ArtifactCorrupt(f"{self.file.path} is longer than its manifest says")
                part.write(chunk)
                offset += len(chunk)
                self.tally.set(self.file.path, offset)
                if self.stop.is_set():
                    return

    def _is_whole(self, path: Path) -> bool:
        if not path.is_file() or path.stat().st_size != self.file.size:
            return False
        return sha256_of(path) == self.file.sha256


def _fetch_all(
    http: httpx.Client,
    listing: _Listing,
    files: tuple[ManifestFile, ...],
    folder: Path,
    workers: int,
    tally: _Tally,
) -> None:
    """Fetch every file. The first that fails, or Ctrl-C, stops the others at their next chunk."""
    stop = threading.Event()
    with ThreadPoolExecutor(workers, thread_name_prefix="download") as pool:
        fetches = [_Fetch(http, listing, file, folder / file.path, tally, stop) for file in files]
        pending = [pool.submit(fetch.run) for fetch in fetches]
        try:
            for future in pending:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_manifest(http: httpx.Client, listing: _Listing) -> bytes:
    for fruitless in range(1, MAX_FRUITLESS_TRIES + 1):
        url = listing.url(MANIFEST_NAME)
        try:
            with http.stream("GET", url) as response:
                if response.is_success:
                    return _checked(_bounded(response), listing.sha256(MANIFEST_NAME))
            problem = f"the bucket answers HTTP {response.status_code}"
            if response.is_client_error:
                listing.renew(MANIFEST_NAME, refused=url)
        except httpx.TransportError as error:
            problem = str(error) or type(error).__name__
        time.sleep(_pause_seconds(fruitless))
    raise StorageUnavailable(f"cannot download {MANIFEST_NAME}: {problem}")


def _bounded(response: httpx.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_MANIFEST_BYTES:
            raise ArtifactCorrupt(f"{MANIFEST_NAME} is longer than {MAX_MANIFEST_BYTES:,} bytes")
    return bytes(content)


def _checked(manifest: bytes, sha256: str) -> bytes:
    if hashlib.sha256(manifest).hexdigest() != sha256:
        raise ArtifactCorrupt(f"{MANIFEST_NAME} does not match the sha256 that the API states")
    return manifest


def _claim(folder: Path, manifest: bytes) -> Path:
    """Reserve the folder for this artifact with its manifest, under the name of a partial file."""
    claim = folder / f"{MANIFEST_NAME}.part"
    for known in (claim, folder / MANIFEST_NAME):
        if known.exists() and known.read_bytes() != manifest:
            raise InvalidParameter(f"{folder} holds another artifact; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{MANIFEST_NAME}.new"
    fresh.write_bytes(manifest)
    return fresh.replace(claim)  # atomically, so that a kill leaves no incomplete claim


def _object_bytes(response: httpx.Response) -> int | None:
    """The size of the whole object, if the answer states it."""
    if response.status_code == httpx.codes.OK:
        length = response.headers.get("Content-Length", "")
    else:  # 206: "bytes 5-9/10"; 416, where the object ends before the range: "bytes */10"
        length = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(length) if length.isdecimal() else None


def _pause_seconds(fruitless: int) -> float:
    return min(0.1 * 2.0**fruitless, LONGEST_PAUSE_SECONDS)
