"""A client of the REST API for asyncio, with the methods of `service.client.client.Client`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Literal, Self, TypeVar

import httpx

from service.client import http, operations
from service.client.answers import Artifact, Estimate, Event, Job, JobPage, Json, LogPage
from service.client.calls import Call
from service.client.client import DEFAULT_URL
from service.client.errors import ApiUnreachable, ClientError
from service.client.operations import UNSET
from service.client.patience import Submitting, Watching, unwatched
from service.client.versions import VERSION_HEADER
from service.domain.states import TERMINAL, JobState

Answer = TypeVar("Answer")


class AsyncClient:
    """Talks to one Eigenpress server from an event loop; close it or use `async with`.

    Each method does what that of `Client` does.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        timeout: float = 30.0,
        *,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.server_version: str | None = None
        try:
            self._http = httpx.AsyncClient(
                timeout=timeout,
                mounts=http.DIRECT,
                base_url=self.base_url,
                headers=http.headers_of(key),
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise ApiUnreachable(f"{base_url} is not a URL: {error}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def send(self, call: Call[Answer]) -> Answer:
        try:
            response = await self._http.request(**http.arguments_of(call))
        except httpx.TransportError as error:
            raise http.unreachable(error, self.base_url) from error
        self.server_version = response.headers.get(VERSION_HEADER)
        return http.read(call, response, self.base_url)

    async def submit(
        self,
        spec: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        patience_seconds: float = 60.0,
    ) -> Job:
        call = operations.submit(spec, idempotency_key or str(uuid.uuid4()))
        patience = Submitting(patience_seconds)
        while True:
            try:
                return await self.send(call)
            except ClientError as error:
                pause = patience.pause_after(error)
            await asyncio.sleep(pause)

    async def estimate(self, spec: Mapping[str, Any]) -> Estimate:
        return await self.send(operations.estimate(spec))

    async def job(self, job_id: str) -> Job:
        return await self.send(operations.job(job_id))

    async def jobs(
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
        return await self.send(
            operations.jobs(
                limit, cursor, states, methods, name, labels, created_after, created_before
            )
        )

    async def change(
        self,
        job_id: str,
        *,
        priority: int | None = UNSET,
        labels: Mapping[str, str | None] | None = UNSET,
    ) -> Job:
        return await self.send(operations.change(job_id, priority, labels))

    async def cancel(self, job_id: str) -> Job:
        return await self.send(operations.cancel(job_id))

    async def retry(self, job_id: str) -> Job:
        return await self.send(operations.retry(job_id))

    async def delete(self, job_id: str) -> None:
        await self.send(operations.delete(job_id))

    async def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        return await self.send(operations.events(job_id, after, limit))

    async def logs(
        self,
        job_id: str,
        attempt: int | None = None,
        source: str = "driver",
        after: int = 0,
        limit: int | None = None,
    ) -> LogPage:
        return await self.send(operations.logs(job_id, attempt, source, after, limit))

    async def artifacts(self, job_id: str) -> list[Artifact]:
        return await self.send(operations.artifacts(job_id))

    async def artifact(self, job_id: str, name: str) -> Artifact:
        return await self.send(operations.artifact(job_id, name))

    async def file_url(
        self, job_id: str, name: str, path: str, method: Literal["GET", "HEAD"] = "GET"
    ) -> str:
        return await self.send(operations.file_url(job_id, name, path, method))

    async def report(self, job_id: str) -> Json:
        return await self.send(operations.report(job_id))

    async def report_page(self, job_id: str) -> str:
        """The report as one HTML file."""
        return await self.send(operations.report_page(job_id))

    async def wait(
        self,
        job_id: str,
        on_update: Callable[[Job], None] = unwatched,
        *,
        poll_seconds: float = 0.5,
        patience_seconds: float = 60.0,
    ) -> Job:
        patience = Watching(patience_seconds, poll_seconds)
        while True:
            try:
                job = await self.job(job_id)
            except ClientError as error:
                pause = patience.pause_after(error)
            else:
                pause = patience.pause_after_answer()
                on_update(job)
                if job["state"] in TERMINAL:
                    return job
            await asyncio.sleep(pause)
