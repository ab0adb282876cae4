"""A job whose inputs cannot work is refused, and leaves nothing in the database."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.services import Services
from service.domain.spec.job import JobSpec
from service.inputs import checks
from service.inputs.checks import SubmissionChecks
from service.store.store import Store
from service.store.users import Users

SLOW_SUBMITS = 40
"""As many as starlette has threads for plain functions."""

GUARD_SECONDS = 60
"""A request that has no answer by then hangs."""

Spoil = Callable[[Path, dict[str, Any]], object]
"""Makes the model's folder or the request's body bad."""


def _unknown_model(folder: Path, body: dict[str, Any]) -> None:
    body["model"]["path"] = str(folder / "nowhere")


def _no_config(folder: Path, _body: dict[str, Any]) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path, _body: dict[str, Any]) -> None:
    (folder / "config.json").write_text("{")


def _encoder(folder: Path, _body: dict[str, Any]) -> None:
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))


def _pickled(folder: Path, _body: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def _truncated(folder: Path, _body: dict[str, Any]) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5])


def _no_weights(folder: Path, _body: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()


def _outside(_folder: Path, body: dict[str, Any]) -> None:
    body["model"]["path"] = "/etc"


def _upwards(folder: Path, body: dict[str, Any]) -> None:
    body["model"]["path"] = f"{folder}/../../../../etc"


def _linked_outside(folder: Path, body: dict[str, Any]) -> None:
    link = folder.parent / "link"
    link.symlink_to("/etc")
    body["model"]["path"] = str(link)


def _text_outside(_folder: Path, body: dict[str, Any]) -> None:
    body["calibration"]["data"]["path"] = "/etc/passwd"


def _no_text(folder: Path, body: dict[str, Any]) -> None:
    body["calibration"]["data"]["path"] = str(folder / "nowhere")


def _no_second_text(folder: Path, body: dict[str, Any]) -> None:
    datasets = [
        {"name": "a", "data": body["calibration"]["data"]},
        {"name": "b", "data": {"source": "local", "path": str(folder / "nowhere")}},
    ]
    body["evaluation"] = {"datasets": datasets}


def _no_problems(folder: Path, body: dict[str, Any]) -> None:
    data = {"source": "local", "path": str(folder / "nowhere")}
    body["evaluation"] = {"tasks": [{"kind": "multiple_choice", "name": "quiz", "data": data}]}


def _code(_folder: Path, body: dict[str, Any]) -> None:
    task = {"kind": "pass_at_1", "name": "code", "data": body["calibration"]["data"]}
    body["evaluation"] = {"tasks": [task]}


def _zero_byte(_folder: Path, body: dict[str, Any]) -> None:
    body["model"]["path"] += "\0"


@pytest.mark.parametrize(
    ("spoil", "code", "param"),
    [
        (_unknown_model, "model_not_found", "model.path"),
        (_no_config, "model_config_missing", "model.path"),
        (_broken_config, "model_invalid", "model.path"),
        (_encoder, "not_a_causal_lm", "model.path"),
        (_pickled, "unsafe_weights", "model.path"),
        (_truncated, "model_invalid", "model.path"),
        (_no_weights, "model_invalid", "model.path"),
        (_outside, "path_not_allowed", "model.path"),
        (_upwards, "path_not_allowed", "model.path"),
        (_linked_outside, "path_not_allowed", "model.path"),
        (_text_outside, "path_not_allowed", "calibration.data.path"),
        (_no_text, "data_not_found", "calibration.data.path"),
        (_no_second_text, "data_not_found", "evaluation.datasets.1.data.path"),
        (_no_problems, "data_not_found", "evaluation.tasks.0.data.path"),
        (_code, "code_execution_forbidden", "evaluation.tasks.0"),
        (_zero_byte, None, "model.path"),
    ],
)
def test_a_bad_input_is_refused(
    client: TestClient,
    store: Store,
    model_folder: Path,
    job_body: dict[str, Any],
    spoil: Spoil,
    code: str | None,
    param: str,
) -> None:
    spoil(model_folder, job_body)
    response = client.post("/v1/jobs", json=job_body)
    problem = response.json()
    assert (response.status_code, problem["param"]) == (422, param), problem
    assert code is None or problem["code"] == code, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert store.records.list_jobs(limit=1) == []


def test_the_hub_is_not_asked_at_submission(client: TestClient, job_body: dict[str, Any]) -> None:
    job_body["model"] = {"source": "hub", "id": "org/model", "revision": "0" * 40}
    assert client.post("/v1/jobs", json=job_body).status_code == 201


def test_slow_submissions_hold_up_nothing_else(
    monkeypatch: pytest.MonkeyPatch, client: TestClient, job_body: dict[str, Any]
) -> None:
    submitted, listed = Semaphore(0), Event()
    run = SubmissionChecks.run

    async def noticed(self: SubmissionChecks, spec: JobSpec, users: Users) -> None:
        submitted.release()
        await run(self, spec, users)

    monkeypatch.setattr(SubmissionChecks, "run", noticed)
    monkeypatch.setattr(checks, "check_data", lambda *_: listed.wait())
    with ThreadPoolExecutor(SLOW_SUBMITS + 1) as pool:
        try:
            slow = [
                pool.submit(client.post, "/v1/jobs", json=job_body) for _ in range(SLOW_SUBMITS)
            ]
            for _ in slow:
                assert submitted.acquire(timeout=GUARD_SECONDS)
            for path in ("/healthz", "/v1/jobs"):
                assert pool.submit(client.get, path).result(GUARD_SECONDS).status_code == 200
            assert not any(submit.done() for submit in slow)
        finally:
            listed.set()
        assert [submit.result().status_code for submit in slow] == SLOW_SUBMITS * [201]


def test_a_check_that_takes_too_long_is_named_and_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch, services: Services, job_body: dict[str, Any]
) -> None:
    listed = Event()
    monkeypatch.setattr(checks, "check_data", lambda *_: listed.wait())
    hurried = services.settings.model_copy(update={"submission_check_seconds": 0.05})
    with SubmissionChecks(hurried, services.storage) as slow:
        app = create_app(hurried, lambda _: nullcontext(replace(services, checks=slow)))
        with TestClient(app) as client:
            response = client.post("/v1/jobs", json=job_body)
        listed.set()
    problem = response.json()
    assert (response.status_code, problem["code"]) == (503, "submission_check_timeout")
    assert problem["param"] == "calibration.data"
    assert problem["detail"].startswith("calibration.data: the check took longer than 0.05 seconds")
    assert int(response.headers["Retry-After"]) > 0
    assert services.store.records.list_jobs(limit=1) == []
