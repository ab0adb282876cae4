"""Every operation of the API as a plain value: what to send, and how to read the answer.

Pure functions. `service.client.client` has the two clients that send these, one that blocks and one
for asyncio.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Literal

from service.client.answers import (
    Artifact,
    ArtifactList,
    Estimate,
    Event,
    EventPage,
    Job,
    JobPage,
    Json,
    LogPage,
)
from service.client.calls import Call, NotOurs, Reply, as_object, as_page, job_path, sending
from service.domain.states import JobState

UNSET: Any = object()
"""Stands for a field that a patch leaves as it is, where None takes it away."""


def submit(spec: Mapping[str, Any], idempotency_key: str) -> Call[Job]:
    headers = {"Idempotency-Key": idempotency_key}
    return sending("POST", "/v1/jobs", spec, headers)


def estimate(spec: Mapping[str, Any]) -> Call[Estimate]:
    return sending("POST", "/v1/estimates", spec)


def job(job_id: str) -> Call[Job]:
    return Call("GET", job_path(job_id), as_object)


def jobs(
    limit: int,
    cursor: str | None,
    states: Collection[JobState],
    methods: Collection[str],
    name: str | None,
    labels: Mapping[str, str] | None,
    created_after: datetime | None,
    created_before: datetime | None,
) -> Call[JobPage]:
    query = {
        "limit": limit,
        "cursor": cursor or None,
        "state": [str(state) for state in states],
        "method": list(methods),
        "name": name,
        "label": [f"{name}={value}" for name, value in (labels or {}).items()],
        "created_after": _time(created_after),
        "created_before": _time(created_before),
    }
    given = {key: value for key, value in query.items() if value not in (None, [])}
    return Call("GET", "/v1/jobs", as_object, given)


def change(job_id: str, priority: int | None, labels: Mapping[str, str | None] | None) -> Call[Job]:
    patch = {"priority": priority, "labels": labels}
    given = {name: value for name, value in patch.items() if value is not UNSET}
    return sending("PATCH", job_path(job_id), given)


def cancel(job_id: str) -> Call[Job]:
    return Call("POST", job_path(job_id, "cancel"), as_object)


def retry(job_id: str) -> Call[Job]:
    return Call("POST", job_path(job_id, "retry"), as_object)


def delete(job_id: str) -> Call[None]:
    return Call("DELETE", job_path(job_id), lambda _reply: None)


def events(job_id: str, after: int, limit: int) -> Call[list[Event]]:
    query = {"after": after, "limit": limit}
    page: Call[EventPage] = Call("GET", job_path(job_id, "events"), as_object, query)
    return _member(page, "events")


def logs(
    job_id: str, attempt: int | None, source: str, after: int, limit: int | None
) -> Call[LogPage]:
    query = {"attempt": attempt, "source": source, "after": after, "limit": limit}
    given = {name: value for name, value in query.items() if value is not None}
    return Call("GET", job_path(job_id, "logs"), as_object, given)


def artifacts(job_id: str) -> Call[list[Artifact]]:
    page: Call[ArtifactList] = Call("GET", job_path(job_id, "artifacts"), as_object)
    return _member(page, "artifacts")


def artifact(job_id: str, name: str) -> Call[Artifact]:
    return Call("GET", job_path(job_id, "artifacts", name), as_object)


def report(job_id: str) -> Call[Json]:
    return Call("GET", job_path(job_id, "report"), as_object)


def report_page(job_id: str) -> Call[str]:
    return Call("GET", job_path(job_id, "report.html"), as_page)


def file_url(job_id: str, name: str, path: str, method: Literal["GET", "HEAD"]) -> Call[str]:
    return Call(method, job_path(job_id, "artifacts", name, "files", *path.split("/")), _location)


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone().isoformat()


def _location(reply: Reply) -> str:
    if reply.status != 302 or "location" not in reply.headers:
        raise NotOurs
    return reply.headers["location"]


def _member(page: Call[Any], key: str) -> Call[Any]:
    def read(reply: Reply) -> list[Any]:
        items = as_object(reply).get(key)
        if not isinstance(items, list):
            raise NotOurs
        return items

    return Call(page.method, page.path, read, page.params)
