"""The clients agree with the OpenAPI document, and the application's answers with their types."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import httpx
import pytest

from api.app import create_app
from api.event_stream import OpenStreams
from api.feed import Feed
from api.services import Services
from service.client import (
    access,
    answers,
    datasets,
    operations,
    tenant_credentials,
    webhooks,
)
from service.client.async_client import AsyncClient
from service.client.calls import Call
from service.client.client import ApiProblem, ApiUnreachable, Client
from service.client.versions import USER_AGENT, VERSION
from service.domain.job import DEFAULT_TENANT, Artifact, FileEntry
from service.domain.manifest import Manifest, manifest_key
from service.domain.spec.job import JobSpec
from service.domain.states import JobState, Step
from service.settings import Settings
from service.store.store import Store

DOCUMENT = create_app(Settings()).openapi()
TAGS = {"jobs", "results", "estimates", "datasets", "webhooks", "access"}
ELSEWHERE = {"upload_dataset"}
"""One of browsers alone, and one whose body is a file: see test_datasets."""
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
JOB = "job-1"

CALLS: dict[str, Call[Any]] = {
    "submit": operations.submit({}, "key"),
    "estimate": operations.estimate({}),
    "list_jobs": operations.jobs(5, "c", [JobState.QUEUED], ["svd"], "n", {"team": "ml"}, NOW, NOW),
    "get_job": operations.job(JOB),
    "change": operations.change(JOB, 1, {"team": None}),
    "cancel": operations.cancel(JOB),
    "retry": operations.retry(JOB),
    "delete": operations.delete(JOB),
    "events": operations.events(JOB, 1, 2),
    "logs": operations.logs(JOB, 1, "driver", 2, 99),
    "artifacts": operations.artifacts(JOB),
    "artifact": operations.artifact(JOB, "keep-0.8"),
    "artifact_file": operations.file_url(JOB, "keep-0.8", "a/b", "GET"),
    "artifact_file_head": operations.file_url(JOB, "keep-0.8", "a/b", "HEAD"),
    "report": operations.report(JOB),
    "report_page": operations.report_page(JOB),
    "list_datasets": datasets.datasets(5, "c"),
    "get_dataset": datasets.dataset("ds-1"),
    "delete_dataset": datasets.delete("ds-1"),
    "create_webhook": webhooks.create("https://x.example", ["job.failed"], "CI"),
    "list_webhooks": webhooks.webhooks(5, "c"),
    "get_webhook": webhooks.webhook("whk-1"),
    "change_webhook": webhooks.change("whk-1", enabled=False),
    "delete_webhook": webhooks.delete("whk-1"),
    "rotate_webhook": webhooks.rotate("whk-1"),
    "test_webhook": webhooks.test("whk-1"),
    "list_deliveries": webhooks.deliveries("whk-1", 5, "c"),
    "redeliver": webhooks.redeliver("whk-1", "msg-1"),
    "create_key": access.create_key("reader"),
    "list_keys": access.keys(5, "c", "t"),
    "current_key": access.current_key(),
    "revoke_key": access.revoke_key("k"),
    "create_tenant": access.create_tenant("t", {}),
    "list_tenants": access.tenants(5, "c"),
    "get_tenant": access.tenant("t"),
    "tenant_usage": access.tenant_usage("t"),
    "change_tenant": access.change_tenant("t", {}),
    "put_credential": tenant_credentials.put_hub("t", "n", "hf_token"),
    "list_credentials": tenant_credentials.credentials("t"),
    "get_credential": tenant_credentials.credential("t", "n"),
    "delete_credential": tenant_credentials.delete("t", "n"),
    "list_audit": access.audit(5, "c", "t"),
}
"""By the operation's id in the document: the call with all of its parameters."""

OPERATIONS = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if set(operation["tags"]) & TAGS and operation["operationId"] not in ELSEWHERE
}


def names(operation: dict[str, Any], place: str) -> set[str]:
    return {each["name"] for each in operation.get("parameters", ()) if each["in"] == place}


def test_the_clients_have_every_operation() -> None:
    assert CALLS.keys() == OPERATIONS.keys()
    defined = {each.__name__ for each in vars(operations).values() if inspect.isfunction(each)}
    ours = {name for name in defined if getattr(operations, name).__module__ == operations.__name__}
    assert {name for name in ours if not name.startswith("_")} <= methods_of(Client)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_request_is_the_documents(name: str) -> None:
    method, path, operation = OPERATIONS[name]
    call = CALLS[name]
    assert call.method == method
    pattern = re.sub(r"\\\{path\\\}", ".+", re.escape(path))
    assert re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", pattern), call.path)
    assert set(call.params) == names(operation, "query")
    # Last-Event-ID is for streams: see test_following.
    headers = names(operation, "header") - {"Last-Event-ID"}
    assert {each for each in call.headers if each != "Content-Type"} == headers
    assert (call.content is not None) is ("requestBody" in operation)


def methods_of(client: type) -> set[str]:
    found = inspect.getmembers(client, inspect.isfunction)
    return {name for name, _ in found if not name.startswith("_")}


def test_both_clients_have_the_same_methods() -> None:
    assert methods_of(Client) == methods_of(AsyncClient)
    for name in methods_of(Client):
        ours, theirs = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(ours) == inspect.signature(theirs), name
        assert asyncio.iscoroutinefunction(theirs), name


def typed_dicts() -> dict[str, Any]:
    return {name: kind for name, kind in vars(answers).items() if is_typeddict(kind)}


def test_each_type_has_the_fields_of_the_document() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name, kind in typed_dicts().items():
        assert set(get_type_hints(kind)) == set(schemas[name]["properties"]), name
    assert {"Job", "JobPage", "EventPage", "ArtifactList", "Estimate"} <= typed_dicts().keys()


class Application(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """The application, called without a socket; both clients may have it as their transport."""

    def __init__(self, services: Services) -> None:
        app = create_app(services.settings)

        async def with_services(scope: Any, receive: Any, send: Any) -> None:
            store = services.store
            state = {
                "services": services,
                "feed": Feed(store.news.after),
                "streams": OpenStreams(store.keys.valid),
            }
            await app(scope | {"state": state}, receive, send)

        self._asgi = httpx.ASGITransport(with_services)
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return await self._asgi.handle_async_request(request)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def answer() -> httpx.Response:
            response = await self.handle_async_request(request)
            content = await response.aread()
            return httpx.Response(response.status_code, headers=response.headers, content=content)

        return asyncio.run(answer())


@pytest.fixture
def application(services: Services) -> Application:
    return Application(services)


@pytest.fixture
def ours(application: Application) -> Iterator[Client]:
    with Client("http://eigenpress.test", key="secret", transport=application) as client:
        yield client


@pytest.fixture
def succeeded(store: Store, storage: Any, job_body: dict[str, Any]) -> str:
    job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
    store.claims.claim()
    store.attempts.progress(job_id, 1, Step.CALIBRATE, 1, 1, "passes")
    weights, folder = FileEntry("model.safetensors", 1000, "ab" * 32), "1-00c0ffee/"
    manifest = Manifest.of([weights], folder).to_json()
    storage.objects[manifest_key(job_id, "keep-0.8")] = manifest
    prefix = f"jobs/{job_id}/artifacts/keep-0.8/{folder}"
    store.attempts.published(job_id, 1, 0, Artifact("keep-0.8", prefix, (weights,)))
    store.attempts.succeed(job_id, 1, {"loss": 1.5})
    return job_id


def test_answers_have_their_types(ours: Client, succeeded: str, job_body: dict[str, Any]) -> None:
    job = ours.submit(job_body | {"labels": {"team": "ml"}, "name": "mine"})
    shown: list[tuple[Any, object]] = [
        (answers.Job, job),
        (answers.Job, ours.job(succeeded)),
        (answers.Job, ours.change(job["id"], priority=5, labels={"stage": "trial"})),
        (answers.JobPage, ours.jobs(labels={"team": "ml"}, name="mine", created_before=None)),
        (list[answers.Event], ours.events(succeeded)),
        (list[answers.Artifact], ours.artifacts(succeeded)),
        (answers.Artifact, ours.artifact(succeeded, "keep-0.8")),
        (answers.Estimate, ours.estimate(job_body)),
        (answers.Job, ours.cancel(job["id"])),
        (answers.Json, ours.report(succeeded)),
    ]
    for kind, answer in shown:
        assert answer, kind
        assert mismatches(answer, kind) == []
    ours.delete(job["id"])
    with pytest.raises(ApiProblem, match="only a failed one") as caught:
        ours.retry(succeeded)
    assert (caught.value.code, caught.value.status) == ("job_conflict", 409)


def mismatches(value: object, kind: Any, place: str = "answer") -> list[str]:
    """Where the value is not of the type, or has more than the type tells."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return []
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            return [f"{place}: {value!r} has not the keys of {kind.__name__}"]
        return [
            each for key in value for each in mismatches(value[key], hints[key], f"{place}.{key}")
        ]
    if origin is UnionType:
        return min((mismatches(value, each, place) for each in inner), key=len)
    if origin is list and isinstance(value, list):
        return [each for item in value for each in mismatches(item, inner[0], place)]
    if origin is dict and isinstance(value, dict):
        return [each for item in value.values() for each in mismatches(item, inner[1], place)]
    return [] if type(value) is kind else [f"{place}: {value!r} is not {kind}"]


def test_the_check_of_types_finds_what_is_wrong(ours: Client, succeeded: str) -> None:
    job = ours.job(succeeded)
    wrong: list[answers.Json] = [{"attempt": "1"}, {"more": 1}, {"steps": [{}]}, {"links": None}]
    for each in wrong:
        assert mismatches({**job, **each}, answers.Job)


def test_a_file_has_an_address(ours: Client, application: Application, succeeded: str) -> None:
    for method in ("GET", "HEAD"):
        url = ours.file_url(succeeded, "keep-0.8", "model.safetensors", method)
        assert url.startswith("http://s3.test:8333/eigenpress/jobs/")
        assert application.requests[-1].method == method
    with pytest.raises(ApiProblem) as caught:
        ours.file_url(succeeded, "keep-0.8", "other")
    assert (caught.value.code, caught.value.status) == ("file_not_found", 404)
    with pytest.raises(ApiProblem) as caught:
        ours.file_url(succeeded, "keep-0.8", "other", "HEAD")
    assert caught.value.status == 404


def test_requests_tell_client_and_key_and_answers_the_server(
    ours: Client, application: Application
) -> None:
    assert ours.server_version is None
    ours.jobs()
    assert ours.server_version == VERSION
    headers = application.requests[0].headers
    assert headers["User-Agent"] == USER_AGENT == f"eigenpress/{VERSION}"
    assert headers["Authorization"] == "Bearer secret"
    with Client("http://eigenpress.test", transport=application) as keyless:
        keyless.jobs()
    assert "Authorization" not in application.requests[-1].headers


def test_the_asynchronous_client_does_the_same(
    application: Application, store: Store, succeeded: str, job_body: dict[str, Any]
) -> None:
    async def use() -> None:
        async with AsyncClient("http://eigenpress.test", transport=application) as client:
            job = await client.submit(job_body, idempotency_key="one")
            assert (await client.submit(job_body, idempotency_key="one"))["id"] == job["id"]
            assert (await client.change(job["id"], priority=3))["spec"]["priority"] == 3
            assert [each["id"] for each in (await client.jobs())["jobs"]] == [job["id"], succeeded]
            assert (await client.jobs(states=[JobState.SUCCEEDED]))["next_cursor"] is None
            assert (await client.estimate(job_body))["tokens"]
            (artifact,) = await client.artifacts(succeeded)
            one = await client.artifact(succeeded, "keep-0.8")
            assert artifact["files"][0]["sha256"] == one["files"][0]["sha256"]
            assert await client.file_url(succeeded, "keep-0.8", "manifest.json")
            assert await client.report(succeeded) == {"loss": 1.5}
            assert (await client.events(job["id"]))[0]["type"] == "job.queued"
            seen: list[str] = []

            def cancel_at_once(job: answers.Job) -> None:
                seen.append(job["state"])
                if job["state"] == JobState.QUEUED:
                    store.users(DEFAULT_TENANT).cancel(job["id"])

            ended = await client.wait(job["id"], cancel_at_once, poll_seconds=0)
            assert (seen, ended["state"]) == (["queued", "cancelled"], "cancelled")
            await client.delete(job["id"])
            with pytest.raises(ApiProblem, match="There is no job"):
                await client.cancel(job["id"])
            with pytest.raises(ApiProblem, match="only a failed one"):
                await client.retry(succeeded)
            assert client.server_version == VERSION

    asyncio.run(use())


def test_an_outage_is_outlasted_without_blocking() -> None:
    away = [httpx.ReadTimeout("slow"), httpx.ConnectError("refused")]
    made = httpx.Response(200, json={"id": JOB, "state": "succeeded"})

    def answer(_: httpx.Request) -> httpx.Response:
        if away:
            raise away.pop(0)
        return made

    async def use() -> None:
        async with AsyncClient(transport=httpx.MockTransport(answer)) as client:
            assert (await client.submit({}))["id"] == JOB
            away.append(httpx.ConnectError("refused"))
            assert (await client.wait(JOB, poll_seconds=0))["state"] == "succeeded"
            away.append(httpx.ConnectError("refused"))
            with pytest.raises(ApiUnreachable, match="refused"):
                await client.job(JOB)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.client.patience.REPEAT_SECONDS", 0.0)
        asyncio.run(use())
