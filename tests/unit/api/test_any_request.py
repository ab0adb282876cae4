"""No request breaks the API, whatever it says of jobs that exist, in each of their states.

schemathesis makes the requests from the OpenAPI document, valid and invalid ones. Every answer has
a status, headers and a body that the document describes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from pydantic import SecretStr
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import delete

from api.access import PUBLIC
from api.app import create_app
from api.rates import Rates
from api.services import Services
from service.domain.job import DEFAULT_TENANT, Artifact, FileEntry
from service.domain.manifest import Manifest, manifest_key
from service.domain.spec.job import JobSpec
from service.domain.states import JobState, Step
from service.encryption import new_key
from service.errors import ModelInvalid, ObjectMissing
from service.inputs.models import sources as model_sources
from service.inputs.texts import sources as text_sources
from service.settings import Settings
from service.store.store import Store
from service.store.tables import metadata
from tests.fixtures.jobs import at_once
from tests.fixtures.webhooks import URL
from tests.unit.service.store.test_datasets import uploaded

EXAMPLES = int(os.environ.get("EIGENPRESS_TEST_EXAMPLES", "100"))
"""Requests for each operation with a key; all of them take about a minute. By hand, a thousand:
``EIGENPRESS_TEST_EXAMPLES=1000 .venv/bin/python -m pytest tests/unit/api/test_any_request.py``.
"""
WITHOUT_KEY = max(10, EXAMPLES // 10)
"""Requests for each operation without one: they end before their bodies matter."""
WORKFLOWS = max(10, EXAMPLES // 3)
"""Sequences of requests in which answers give the next requests their ids."""
FEW = 10
"""Sequences of two or three operations, which take every link between them."""
STEPS = 8
"""Requests of a sequence."""

ADMIN_KEY = "ep_" + 40 * "a"

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
WEIGHTS = FileEntry("model.safetensors", 1000, "ab" * 32)
SPECIFYING = ("POST /v1/jobs", "POST /v1/estimates")
"""The operations whose body is a job's specification."""
MAKING_KEYS = "POST /v1/keys"
FOUND = {"name": "keep-0.8", "path": WEIGHTS.path}
REPORT = {"targets": [{"name": "keep-0.8", "perplexity": None}]}

SCHEMA = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
OPERATIONS = {
    each.ok().label: each.ok() for each in SCHEMA.get_all_operations() if isinstance(each, Ok)
}


class Jobs:
    """A job in each state. Those that a request may have changed are made anew."""

    def __init__(self, store: Store, storage: Any, spec: JobSpec) -> None:
        self._store = store
        self._storage = storage
        self._spec = spec
        self._ids: dict[JobState, str] = {}

    def id_of(self, state: JobState) -> str:
        if not self._ids:
            self._make()
        return self._ids[state]

    def forget(self) -> None:
        self._ids = {}

    def _make(self) -> None:
        while self._store.claims.claim():
            pass  # so that no older job waits for the claims below
        self._ids = {
            JobState.SUCCEEDED: self._succeeded(),
            JobState.FAILED: self._failed(),
            JobState.CANCELLED: self._cancelled(),
            JobState.CANCELLING: self._cancelling(),
            JobState.RUNNING: self._running(),
            JobState.QUEUED: self._store.users(DEFAULT_TENANT).create(self._spec).id,
        }
        for state, job_id in self._ids.items():
            assert self._store.records.get(job_id).state is state

    def _running(self) -> str:
        job_id = self._store.users(DEFAULT_TENANT).create(self._spec).id
        self._store.claims.claim()
        self._store.attempts.progress(job_id, 1, Step.CALIBRATE, 1, 2, "sequences")
        self._store.attempts.record(job_id, 1, "texts.skipped", "Skipped.", {"files": ["a.png"]})
        return job_id

    def _succeeded(self) -> str:
        job_id, folder = self._running(), "1-00c0ffee/"
        manifest = Manifest.of([WEIGHTS], folder).to_json()
        self._storage.objects[manifest_key(job_id, "keep-0.8")] = manifest
        prefix = f"jobs/{job_id}/artifacts/keep-0.8/{folder}"
        self._store.attempts.published(job_id, 1, 0, Artifact("keep-0.8", prefix, (WEIGHTS,)))
        self._store.attempts.succeed(job_id, 1, REPORT)
        return job_id

    def _failed(self) -> str:
        job_id = self._running()
        failure = ModelInvalid("the tensor 'x' is not finite", param="model").failure()
        self._store.attempts.fail(job_id, 1, failure, at_once(1))
        return job_id

    def _cancelling(self) -> str:
        job_id = self._running()
        self._store.users(DEFAULT_TENANT).cancel(job_id)
        return job_id

    def _cancelled(self) -> str:
        job_id = self._store.users(DEFAULT_TENANT).create(self._spec).id
        self._store.users(DEFAULT_TENANT).cancel(job_id)
        return job_id


def a_webhook(store: Store) -> dict[str, str]:
    """The parameters of a path to a webhook that exists, and to its delivery."""
    webhooks = store.webhooks(DEFAULT_TENANT)
    for each in webhooks.list_webhooks(limit=100):
        webhooks.delete(each.id)
    made = webhooks.create(URL, "encrypted")
    return {"webhook_id": made.id, "delivery_id": webhooks.test(made.id).id}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Jobs may name a hub, which refuses every connection at once; webhooks may be made."""
    key = SecretStr(new_key())
    return settings.model_copy(
        update={
            "hub_endpoint": "http://127.0.0.1:9",
            "encryption_key": key,
            "credentials_key": key,
            "require_keys": True,
            "admin_key": SecretStr(ADMIN_KEY),
            "requests_per_minute": 1_000_000,
        }
    )


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    """A client with an administrator's key, which is for everything."""
    app = create_app(services.settings, lambda _: nullcontext(services))
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with TestClient(app, raise_server_exceptions=False, headers=headers) as client:
        yield client


@pytest.fixture
def stranger(services: Services) -> Iterator[TestClient]:
    """A client without a key."""
    rates = Rates(services.settings.requests_per_minute)
    app = create_app(services.settings, lambda _: nullcontext(replace(services, rates=rates)))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(autouse=True)
def empty_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs may name buckets; without a server for them the right answer would be 503."""

    def list_source(*_: object) -> None:
        raise ObjectMissing

    for sources in (model_sources, text_sources):
        monkeypatch.setattr(sources, "list_source", list_source)


@pytest.fixture
def jobs(store: Store, storage: Any, job_body: dict[str, Any]) -> Jobs:
    return Jobs(store, storage, JobSpec.model_validate(job_body))


def answer_to(client: TestClient, case: Case[Any]) -> Any:
    """What the application answers to the request."""
    request = case.as_transport_kwargs(base_url=str(client.base_url))
    del request["cookies"]  # no operation has any
    request["headers"].pop("Authorization", None)  # the client's own, or none
    content = request.pop("data", None)  # as httpx calls it
    return client.request(**request, content=content, follow_redirects=False)


def check_answer(client: TestClient, case: Case[Any]) -> Any:
    """Send the request, and check the answer against the document."""
    response = answer_to(client, case)
    case.validate_response(response, checks=CHECKS)
    return response


def deterministic(number: int, **others: Any) -> examples:
    """The same examples in every run."""
    return examples(
        max_examples=number,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        **others,
    )


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_breaks_the_api(
    client: TestClient, jobs: Jobs, store: Store, job_body: dict[str, Any], label: str
) -> None:
    operation = OPERATIONS[label]
    cases = st.one_of(*(operation.as_strategy(mode) for mode in GenerationMode))

    @deterministic(EXAMPLES)
    @given(case=cases, state=st.sampled_from(JobState), exists=st.booleans())
    def check(case: Case[Any], state: JobState, exists: bool) -> None:
        if exists and "job_id" in case.path_parameters:
            case.path_parameters["job_id"] = jobs.id_of(state)
            case.path_parameters |= {
                name: value for name, value in FOUND.items() if name in case.path_parameters
            }
        if exists and "dataset_id" in case.path_parameters:
            case.path_parameters["dataset_id"] = uploaded(store).id
        if exists and "webhook_id" in case.path_parameters:
            case.path_parameters |= a_webhook(store)
        elif exists and isinstance(case.body, dict) and label in SPECIFYING:
            case.body |= {name: job_body[name] for name in ("model", "calibration")}
        check_answer(client, case)
        if operation.method != "get":
            jobs.forget()

    check()


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_without_a_key_breaks_the_api(stranger: TestClient, label: str) -> None:
    operation = OPERATIONS[label]
    cases = st.one_of(*(operation.as_strategy(mode) for mode in GenerationMode))

    @deterministic(WITHOUT_KEY)
    @given(case=cases)
    def check(case: Case[Any]) -> None:
        response = check_answer(stranger, case)
        if operation.path not in PUBLIC - {"/metrics"}:
            assert response.status_code >= 400

    check()


@dataclass
class Walked:
    """What some sequences of requests did; each text ends with the first digit of the status."""

    answers: Counter[str] = field(default_factory=Counter)
    """By operation."""
    links: Counter[str] = field(default_factory=Counter)
    """By the link that gave the request its id."""


@pytest.fixture
def walk(
    client: TestClient, jobs: Jobs, store: Store, storage: Any, job_body: dict[str, Any]
) -> Callable[[Any, int], Walked]:
    """Makes so many sequences of requests for the operations of a schema."""

    def walk(schema: Any, number: int) -> Walked:
        walked = Walked()

        class Workflow(schema.as_state_machine()):  # type: ignore[misc]
            def setup(self) -> None:
                """Each begins with the same things, or the same requests had other answers."""
                storage.empty()
                with store._database.writing() as connection:
                    for table in reversed(metadata.sorted_tables):
                        connection.execute(delete(table))
                jobs.forget()
                jobs.id_of(JobState.SUCCEEDED)
                uploaded(store)
                a_webhook(store)

            def step(self, input: Any) -> Any:  # noqa: A002  (as it is called)
                output = super().step(input)
                if input.transition is not None and input.is_applied:
                    status = output.response.status_code // 100
                    walked.links[f"{input.transition.id} {status}"] += 1
                return output

            def call(self, case: Case[Any], **_: Any) -> Response:
                label = case.operation.label
                if label in SPECIFYING and isinstance(case.body, dict):
                    case.body = job_body | {"labels": case.body.get("labels", {})}
                if label == MAKING_KEYS and isinstance(case.body, dict):
                    case.body["tenant"] = DEFAULT_TENANT
                response = answer_to(client, case)
                walked.answers[f"{label} {response.status_code // 100}"] += 1
                return Response.from_any(response)

            def validate_response(self, response: Response, case: Case[Any], **_: Any) -> None:
                case.validate_response(response, checks=CHECKS)

        sequences = deterministic(number, stateful_step_count=STEPS)
        run_state_machine_as_test(Workflow, settings=sequences)
        return walked

    return walk


def test_no_sequence_of_requests_breaks_the_api(walk: Callable[[Any, int], Walked]) -> None:
    """What one answer names, the next requests take: made, read, changed, deleted."""
    answers = walk(SCHEMA, WORKFLOWS).answers
    done = {each for each in answers if each.endswith(" 2")}
    assert sum("{" in each for each in done) > 4, answers  # with an id from an answer before


@pytest.mark.parametrize(
    ("operations", "links"),
    [
        (
            ["submit", "cancel", "delete"],
            {
                "POST /v1/jobs -> [201] cancel -> POST /v1/jobs/{job_id}/cancel 2",
                "POST /v1/jobs -> [201] delete -> DELETE /v1/jobs/{job_id} 4",  # it waits
                "POST /v1/jobs -> [201] delete -> DELETE /v1/jobs/{job_id} 2",  # cancelled before
            },
        ),
        (
            ["create_key", "revoke_key"],
            {"POST /v1/keys -> [201] revoke_key -> DELETE /v1/keys/{key_id} 2"},
        ),
    ],
)
def test_the_links_of_what_was_made_lead_on(
    walk: Callable[[Any, int], Walked], operations: list[str], links: set[str]
) -> None:
    walked = walk(SCHEMA.include(operation_id=operations), FEW)
    assert links <= walked.links.keys(), walked


def test_every_operation_is_tried(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert len(OPERATIONS) == sum(map(len, paths.values()))


def test_jobs_have_results_to_ask_for(client: TestClient, jobs: Jobs) -> None:
    """So that the requests above see more than refusals."""
    path = f"/v1/jobs/{jobs.id_of(JobState.SUCCEEDED)}"
    (artifact,) = client.get(f"{path}/artifacts").json()["artifacts"]
    assert [file["path"] for file in artifact["files"]] == [WEIGHTS.path, "manifest.json"]
    assert client.get(f"{path}/report").json() == REPORT
    assert len(client.get(f"{path}/events").json()["events"]) >= 4
