"""A client of the REST API, with one method for each operation on a job.

    ClientError
    ├── ApiProblem        the API answered with a problem (RFC 9457)
    └── ApiUnreachable    nothing answered

They are separate from `service.errors`, the errors of jobs: the job may be fine when only the
server cannot be reached.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

import httpx

from service.domain.states import TERMINAL, JobState

DEFAULT_URL = "http://127.0.0.1:8400"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
UPLOAD_SECONDS = 300.0
"""How long an upload waits for the server; at the end that checks and stores what is left."""
PIECE_BYTES = 2**18
REPEAT_SECONDS = 1.0
"""The pause before a submission is repeated."""

Json = dict[str, Any]


class ClientError(Exception):
    """A request to the API did not succeed."""


class ApiProblem(ClientError):
    """The API refused a request, or could not carry it out; `code` is stable, `detail` is not."""

    def __init__(self, code: str, detail: str, param: str | None, status: int) -> None:
        self.code = code
        self.detail = detail
        self.param = param
        self.status = status
        super().__init__(detail)


class ApiUnreachable(ClientError):
    """Nothing answered at the API's address; `sent` tells whether the request may have arrived."""

    def __init__(self, detail: str, *, sent: bool = False) -> None:
        self.sent = sent
        super().__init__(detail)


class Client:
    """Talks to one Eigenpress server. Safe to share between threads; close it or use `with`."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        timeout: float = 30.0,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        try:
            self._http = open_http(timeout, base_url=self.base_url, transport=transport)
        except httpx.InvalidURL as error:
            raise ApiUnreachable(f"{base_url} is not a URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(
        self,
        spec: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        patience_seconds: float = 60.0,
    ) -> Json:
        """Create a job, and no second one if an answer is lost. `spec` is a JobSpec as plain JSON.

        If a request may have had its effect but no answer came, it is repeated for up to
        `patience_seconds` under the same key (a new one if none is given), for which the server
        makes one job.
        """
        headers = {
            "Idempotency-Key": idempotency_key or str(uuid.uuid4()),
            "Content-Type": "application/json",
        }
        # httpx would fail on text without UTF-8; the server refuses it, and names the field.
        body = json.dumps(dict(spec))
        deadline = time.monotonic() + patience_seconds
        unknown = False
        while True:
            try:
                return self._object("POST", "/v1/jobs", content=body, headers=headers)
            except ClientError as error:
                unknown = unknown or _may_have_worked(error)
                patient = unknown and time.monotonic() < deadline
                if not (patient and _is_outage(error)):
                    raise
            time.sleep(REPEAT_SECONDS)

    def estimate(self, spec: Mapping[str, Any]) -> Json:
        """What a job would make and take, without running it; `spec` is as for `submit`."""
        return self._object("POST", "/v1/estimates", json=dict(spec))

    def job(self, job_id: str) -> Json:
        return self._object("GET", _path(job_id))

    def jobs(
        self, limit: int = 20, cursor: str | None = None, states: Collection[JobState] = ()
    ) -> Json:
        """One page, newest first: ``{"jobs": [...], "next_cursor": ... or None}``."""
        query: Json = {"limit": limit, "state": [str(state) for state in states]}
        if cursor:
            query["cursor"] = cursor
        return self._object("GET", "/v1/jobs", params=query)

    def cancel(self, job_id: str) -> Json:
        return self._object("POST", _path(job_id, "cancel"))

    def retry(self, job_id: str) -> Json:
        """Queue a failed job again."""
        return self._object("POST", _path(job_id, "retry"))

    def delete(self, job_id: str) -> None:
        """Delete an ended job, with its artifacts."""
        self._request("DELETE", _path(job_id))

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[Json]:
        """The job's events after the one with the id `after`, oldest first."""
        query = {"after": after, "limit": limit}
        return self._list("events", "GET", _path(job_id, "events"), params=query)

    def artifacts(self, job_id: str) -> list[Json]:
        """The published artifacts and their files, each with a URL that expires."""
        return self._list("artifacts", "GET", _path(job_id, "artifacts"))

    def report(self, job_id: str) -> Json:
        return self._object("GET", _path(job_id, "report"))

    def upload_dataset(
        self,
        file: Path,
        kind: str,
        *,
        name: str | None = None,
        text_field: str | None = None,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Json:
        """Upload a file of the format `kind`: ``text``, ``jsonl`` or ``parquet``.

        Calls `on_progress` with the bytes sent so far and those in all.
        """
        query = {"format": kind, "name": name, "text_field": text_field}
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return self._object(
                "POST",
                "/v1/datasets",
                params={key: value for key, value in query.items() if value is not None},
                content=_pieces(stream, size, on_progress),
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(size),
                },
                timeout=UPLOAD_SECONDS,
            )

    def datasets(self, limit: int = 20, cursor: str | None = None) -> Json:
        """One page, newest first: ``{"datasets": [...], "next_cursor": ... or None}``."""
        query: Json = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        return self._object("GET", "/v1/datasets", params=query)

    def dataset(self, dataset_id: str) -> Json:
        return self._object("GET", _dataset_path(dataset_id))

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete a dataset, unless a job that waits or runs uses it."""
        self._request("DELETE", _dataset_path(dataset_id))

    def wait(
        self,
        job_id: str,
        on_update: Callable[[Json], None] = lambda _job: None,
        *,
        poll_seconds: float = 0.5,
        patience_seconds: float = 60.0,
    ) -> Json:
        """Follow the job to its end, calling `on_update` at every look, and return it.

        An outage of the server, such as a restart, may last `patience_seconds`; only then is
        `ApiUnreachable`, or a problem with status 502, 503 or 504, raised.
        """
        last_answer = time.monotonic()
        while True:
            try:
                job = self.job(job_id)
            except ClientError as error:
                patient = time.monotonic() - last_answer < patience_seconds
                if not (patient and _is_outage(error)):
                    raise
            else:
                last_answer = time.monotonic()
                on_update(job)
                if job["state"] in TERMINAL:
                    return job
            time.sleep(poll_seconds)

    def _object(self, method: str, path: str, **options: Any) -> Json:
        body = self._request(method, path, **options)
        if not isinstance(body, dict):
            raise self._not_ours(200)
        return body

    def _list(self, key: str, method: str, path: str, **options: Any) -> list[Json]:
        items = self._object(method, path, **options).get(key)
        if not isinstance(items, list):
            raise self._not_ours(200)
        return items

    def _request(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ApiUnreachable(
                f"no answer from {self.base_url}: {reason}", sent=not isinstance(error, _UNSENT)
            ) from error
        if response.status_code == 204:
            return None
        body = _json(response)
        if response.is_success and body is not None:
            return body
        if isinstance(body, dict) and isinstance(body.get("code"), str):
            detail = str(body.get("detail") or body.get("title") or body["code"])
            raise ApiProblem(body["code"], detail, body.get("param"), response.status_code)
        raise self._not_ours(response.status_code)

    def _not_ours(self, status: int) -> ApiProblem:
        detail = f"{self.base_url} answers with HTTP {status}, but is not an Eigenpress server"
        return ApiProblem("unexpected_answer", detail, None, status)


def open_http(timeout: float, **options: Any) -> httpx.Client:
    """An HTTP client that uses the environment's proxies, except for this machine."""
    direct: dict[str, None] = {f"all://{host}": None for host in LOOPBACK_HOSTS}
    return httpx.Client(timeout=timeout, mounts=direct, **options)


def _path(job_id: str, *rest: str) -> str:
    return "/".join(["/v1/jobs", quote(job_id, safe="", errors="replace"), *rest])


def _dataset_path(dataset_id: str) -> str:
    return f"/v1/datasets/{quote(dataset_id, safe='', errors='replace')}"


def _pieces(
    stream: IO[bytes], size: int, on_progress: Callable[[int, int], None]
) -> Iterator[bytes]:
    """The first `size` bytes of a file, which may grow meanwhile."""
    done = 0
    while piece := stream.read(min(PIECE_BYTES, size - done)):
        yield piece
        done += len(piece)
        on_progress(done, size)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
"""Errors after which the server cannot have seen the request."""


def _is_outage(error: ClientError) -> bool:
    """Whether it may be temporary: nothing answered, or the status is 502, 503 or 504."""
    return isinstance(error, ApiUnreachable) or getattr(error, "status", None) in {502, 503, 504}


def _may_have_worked(error: ClientError) -> bool:
    """Whether the request may have had its effect though it failed."""
    if isinstance(error, ApiUnreachable):
        return error.sent
    return isinstance(error, ApiProblem) and (
        error.code == "database_unavailable" or error.status in {502, 504}
    )
