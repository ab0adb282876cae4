"""No request breaks the API, whatever it says of jobs that exist, in each of their states.

schemathesis makes the requests from the OpenAPI document, valid and invalid ones. Every answer has
a status, headers and a body that the document describes.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import SecretStr
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from service.domain.job import DEFAULT_TENANT, Artifact, FileEntry
from service.domain.manifest import Manifest, manifest_key
from service.domain.spec import JobSpec
from service.domain.states import JobState, Step
from service.encryption import new_key
from service.errors import ModelInvalid, ObjectMissing
from service.inputs.models import sources as model_sources
from service.inputs.texts import sources as text_sources
from service.settings import Settings
from service.store.store import Store
from tests.fixtures.jobs import at_once
from tests.fixtures.webhooks import URL
from tests.unit.service.store.test_datasets import uploaded

EXAMPLES = 25
"""Requests for each operation; all of them take about 15 seconds."""

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
        update={"hub_endpoint": "http://127.0.0.1:9", "encryption_key": key, "credentials_key": key}
    )


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


def check_answer(client: TestClient, case: Case[Any]) -> None:
    """Send the request, and check the answer against the document."""
    request = case.as_transport_kwargs(base_url=str(client.base_url))
    del request["cookies"]  # no operation has any
    content = request.pop("data", None)  # as httpx calls it
    response = client.request(**request, content=content, follow_redirects=False)
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_breaks_the_api(
    client: TestClient, jobs: Jobs, store: Store, job_body: dict[str, Any], label: str
) -> None:
    operation = OPERATIONS[label]
    cases = st.one_of(*(operation.as_strategy(mode) for mode in GenerationMode))

    @examples(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
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
