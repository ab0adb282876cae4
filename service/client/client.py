"""A client of the REST API that blocks; `service.client.async_client` has one that does not.

A method is one operation of the API, which `service.client.operations` describes; answers are plain
JSON with the types of `service.client.answers`. All raise `ApiProblem` and `ApiUnreachable`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Literal, Self, TypeVar

import httpx

from service.client import http, operations
from service.client.answers import Artifact, Estimate, Event, Job, JobPage, Json, LogPage
from service.client.calls import Call
from service.client.errors import ApiProblem, ApiUnreachable, ClientError
from service.client.http import open_http
from service.client.operations import UNSET
from service.client.patience import Submitting, Watching, unwatched
from service.client.versions import VERSION_HEADER
from service.domain.states import TERMINAL, JobState

__all__ = [
    "DEFAULT_URL",
    "ApiProblem",
    "ApiUnreachable",
    "Client",
    "ClientError",
    "Json",
]

DEFAULT_URL = "http://127.0.0.1:8400"

Answer = TypeVar("Answer")


class Client:
    """Talks to one Eigenpress server. Safe to share between threads; close it or use `with`."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        timeout: float = 30.0,
        *,
        key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.server_version: str | None = None
        """The version that the server stated last; None before its first answer."""
        try:
            self._http = open_http(
                timeout,
                base_url=self.base_url,
                headers=http.headers_of(key),
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise ApiUnreachable(f"{base_url} is not a URL: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @property
    def connection(self) -> httpx.Client:
        """What requests go through, for streams (`service.client.following`)."""
        return self._http

    def send(self, call: Call[Answer]) -> Answer:
        """Make one request of `service.client.operations`."""
        try:
            response = self._http.request(**http.arguments_of(call))
        except httpx.TransportError as error:
            raise http.unreachable(error, self.base_url) from error
        self.server_version = response.headers.get(VERSION_HEADER)
        return http.read(call, response, self.base_url)

    def submit(
        self,
        spec: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        patience_seconds: float = 60.0,
    ) -> Job:
        """Create a job, and no second one if an answer is lost. `spec` is a JobSpec as plain JSON.

        If a request may have had its effect but no answer came, it is repeated for up to
        `patience_seconds` under the same key (a new one if none is given), for which the server
        makes one job.
        """
        call = operations.submit(spec, idempotency_key or str(uuid.uuid4()))
        patience = Submitting(patience_seconds)
        while True:
            try:
                return self.send(call)
            except ClientError as error:
                pause = patience.pause_after(error)
            time.sleep(pause)

    def estimate(self, spec: Mapping[str, Any]) -> Estimate:
        """What a job would make and take, without running it; `spec` is as for `submit`."""
        return self.send(operations.estimate(spec))

    def job(self, job_id: str) -> Job:
        return self.send(operations.job(job_id))

    def jobs(
        self,
        limit: int = 20,
        cursor: str | None = None,
        states: Collection[JobState] = (),
        *,
        methods: Collection[str] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> JobPage:
        """One page of the jobs that meet all conditions, newest first."""
        return self.send(
            operations.jobs(
                limit, cursor, states, methods, name, labels, created_after, created_before
            )
        )

    def change(
        self,
        job_id: str,
        *,
        priority: int | None = UNSET,
        labels: Mapping[str, str | None] | None = UNSET,
    ) -> Job:
        """Change what is given: None restores a priority or removes a label, or all labels."""
        return self.send(operations.change(job_id, priority, labels))

    def cancel(self, job_id: str) -> Job:
        return self.send(operations.cancel(job_id))

    def retry(self, job_id: str) -> Job:
        """Queue a failed job again."""
        return self.send(operations.retry(job_id))

    def delete(self, job_id: str) -> None:
        """Delete an ended job, with its artifacts."""
        self.send(operations.delete(job_id))

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """The job's events after the one with the id `after`, oldest first."""
        return self.send(operations.events(job_id, after, limit))

    def logs(
        self,
        job_id: str,
        attempt: int | None = None,
        source: str = "driver",
        after: int = 0,
        limit: int | None = None,
    ) -> LogPage:
        """A part of the log of an attempt, by default the last one; `text` is the content."""
        return self.send(operations.logs(job_id, attempt, source, after, limit))

    def artifacts(self, job_id: str) -> list[Artifact]:
        """The published artifacts and their files, each with a URL that expires."""
        return self.send(operations.artifacts(job_id))

    def artifact(self, job_id: str, name: str) -> Artifact:
        return self.send(operations.artifact(job_id, name))

    def file_url(
        self, job_id: str, name: str, path: str, method: Literal["GET", "HEAD"] = "GET"
    ) -> str:
        """A URL of one file of an artifact that needs no key, for this method, and expires."""
        return self.send(operations.file_url(job_id, name, path, method))

    def report(self, job_id: str) -> Json:
        return self.send(operations.report(job_id))

    def report_page(self, job_id: str) -> str:
        """The report as one HTML file."""
        return self.send(operations.report_page(job_id))

    def wait(
        self,
        job_id: str,
        on_update: Callable[[Job], None] = unwatched,
        *,
        poll_seconds: float = 0.5,
        patience_seconds: float = 60.0,
    ) -> Job:
        """Follow the job to its end, calling `on_update` at every look, and return it.

        An outage of the server, such as a restart, may last `patience_seconds`; only then is
        `ApiUnreachable`, or a problem with status 429, 502, 503 or 504, raised.
        """
        patience = Watching(patience_seconds, poll_seconds)
        while True:
            try:
                job = self.job(job_id)
            except ClientError as error:
                pause = patience.pause_after(error)
            else:
                pause = patience.pause_after_answer()
                on_update(job)
                if job["state"] in TERMINAL:
                    return job
            time.sleep(pause)
