"""An estimate says what it knows, what would be refused and what it does not know; it runs nothing.

The tests take some seconds together; what transformers sees is tested with the inspection.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.services import Services
from service.client.versions import VERSION
from service.domain.costs.machines import cluster_of
from service.domain.costs.steps import step_costs
from service.domain.costs.times import step_times
from service.domain.job import DEFAULT_TENANT
from service.domain.placement import Machine, Placement
from service.domain.prediction import PREDICTED, Prediction
from service.domain.spec.job import JobSpec
from service.domain.spec.sources import LocalPath
from service.domain.states import Step
from service.errors import ClusterUnavailable, WorkerLost
from service.estimates.models import model_of
from service.inputs.models import inspection
from service.inputs.models.sources import Headers, check_model
from service.settings import Settings
from service.store import tables
from service.store.store import Store
from tests.fixtures.jobs import at_once
from tests.fixtures.models import tiny_llama_config, tiny_model

GUARD_SECONDS = 60
"""A request that has no answer by then hangs."""

GPUS = Machine({"CPU": 64, "GPU": 8}, "H100", 10**12, 10**13, 80 * 10**9)


@pytest.fixture
def body(allowed_root: Path, text_folder: Path) -> dict[str, Any]:
    """A job with a tiny Llama in bfloat16."""
    folder = allowed_root / "llama"
    tiny_model(tiny_llama_config()).bfloat16().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return {
        "model": {"source": "local", "path": str(folder)},
        "calibration": {
            "data": {"source": "local", "path": str(text_folder)},
            "sequences": 32,
            "sequence_length": 64,
        },
        "targets": [{"keep": 0.8}, {"bytes_fraction": 0.6}, {"max_perplexity_increase": 0.1}],
    }


Ask = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def ask(client: TestClient) -> Ask:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        response = client.post("/v1/estimates", json=body)
        assert response.status_code == 200, response.json()
        found: dict[str, Any] = response.json()
        return found

    return answer


def problems(answer: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(each["code"], each["param"]) for each in answer["problems"]]


def unknown(answer: dict[str, Any], field: str) -> str:
    return " ".join(each["reason"] for each in answer["unknown"] if each["field"] == field)


def test_a_sound_job_is_described(ask: Ask, body: dict[str, Any], store: Store) -> None:
    real = tiny_model(tiny_llama_config())
    parameters = sum(each.numel() for each in real.parameters())
    answer = ask(body)
    assert answer["problems"] == []
    assert answer["model"]["parameters"] == parameters
    assert answer["model"]["dense_bytes"] == 2 * parameters
    assert answer["model"]["dtype"] == "bfloat16"
    assert answer["tokens"] == 32 * 64
    keep, fewer, quality = answer["targets"]
    assert keep["name"] == "keep-0.8"
    linear = answer["model"]["linear_parameters"]
    assert keep["size"]["parameters"] == parameters - linear + int(0.8 * linear)
    assert fewer["size"]["parameters"] == parameters
    assert quality["size"] is None
    assert "decide" in unknown(answer, "targets.2")
    assert answer["workers"] == {"workers": 4, "cpus": 2, "gpus": 0, "accelerator_type": None}
    assert answer["waits"] is None
    assert answer["memory"]["worker"] > 0
    assert answer["memory"]["worker_gpu"] is None
    assert answer["driver_memory"] > 0
    assert [each["step"] for each in answer["seconds"]["steps"]] == [*Step]
    assert answer["seconds"]["measured_jobs"] == 0
    assert "the cost model's machines, with cores" in unknown(answer, "seconds")
    assert store.records.list_jobs(limit=1) == []


def test_a_job_on_gpus(ask: Ask, body: dict[str, Any], cluster: Any) -> None:
    cluster.nodes += (GPUS,)
    answer = ask(body | {"accelerator_type": "H100"})
    assert answer["workers"] == {"workers": 8, "cpus": 8, "gpus": 1, "accelerator_type": "H100"}
    assert answer["memory"]["worker_gpu"] > 0
    assert answer["memory"]["too_little"] == {}
    cluster.nodes = (Machine(GPUS.resources, "H100", 10**12, 10**13, gpu_bytes=1000),)
    lacking = ask(body)["memory"]["too_little"]
    assert "GPU" in lacking["calibrate"]


def test_what_the_job_would_be_refused_for_is_listed_and_the_rest_is_said(
    ask: Ask, body: dict[str, Any], text_folder: Path
) -> None:
    (text_folder / "text.txt").write_bytes(b"")
    body["targets"] = [
        {"keep": 0.01},
        {"keep": 0.8},
        {"bytes_fraction": 0.05},
        {"bytes_fraction": 0.6, "precisions": "vllm-cpu"},
    ]
    body["evaluation"] = {"curve": [0.5, 0.02]}
    answer = ask(body | {"workers": 9})
    assert problems(answer) == [
        ("data_invalid", "calibration.data"),
        ("target_unreachable", "targets.0.keep"),
        ("target_unreachable", "targets.2.bytes_fraction"),
        ("target_unreachable", "targets.3.precisions"),
        ("target_unreachable", "evaluation.curve.1"),
        ("insufficient_resources", "workers"),
    ]
    assert [each["size"] is None for each in answer["targets"]] == [True, False, True, True]
    assert answer["workers"] is answer["memory"] is answer["seconds"] is None
    assert answer["driver_memory"] > 0
    assert "autoscaler" in unknown(answer, "workers")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda folder: (folder / "config.json").unlink(), "model_config_missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "model_invalid"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345"), "model_invalid"),
    ],
)
def test_a_refused_model_leaves_workers_and_texts(
    ask: Ask, body: dict[str, Any], spoil: Callable[[Path], object], code: str
) -> None:
    spoil(Path(body["model"]["path"]))
    answer = ask(body)
    assert problems(answer) == [(code, "model.path")]
    assert answer["model"] is answer["memory"] is answer["driver_memory"] is None
    assert answer["targets"] == []
    assert answer["workers"]["workers"] == 4
    assert unknown(answer, "model") == "Its files could not be read."


def test_another_architecture_is_not_guessed(ask: Ask, body: dict[str, Any]) -> None:
    path = Path(body["model"]["path"]) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "sheep"}))
    answer = ask(body)
    assert answer["model"] is None
    assert "model_type 'sheep' are not known" in unknown(answer, "model")


def test_a_hub_that_does_not_answer_is_not_known(
    ask: Ask, body: dict[str, Any], text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.inputs.checks.check_model", lambda *_: None)
    body["model"] = {"source": "hub", "id": "org/model", "revision": "0" * 40}
    answer = ask(body)
    assert answer["problems"] == []
    assert unknown(answer, "model") == "The hub does not answer."
    (text_folder / "text.txt").write_bytes(b"")
    answer = ask(body)
    assert problems(answer) == [("data_invalid", "calibration.data")]
    assert unknown(answer, "model") == "The hub does not answer."


def test_without_transformers_the_workers_look_first(
    ask: Ask, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unknown(ask(body), "model") == ""
    monkeypatch.setattr(inspection, "available", lambda: False)
    assert "transformers is not installed" in unknown(ask(body), "model")


def test_a_silent_ray_leaves_the_sizes(ask: Ask, body: dict[str, Any], cluster: Any) -> None:
    cluster.trouble = ClusterUnavailable("Ray does not answer.")
    answer = ask(body)
    assert answer["problems"] == []
    assert answer["waits"] == "Ray does not answer."
    assert answer["workers"] is answer["seconds"] is None
    assert answer["targets"][0]["size"] is not None


def test_a_body_that_is_no_job_is_refused_as_at_submission(
    client: TestClient, body: dict[str, Any]
) -> None:
    answers = [
        client.post(path, json=body | {"targets": [{"keep": 2}]})
        for path in ("/v1/jobs", "/v1/estimates")
    ]
    for response in answers:
        assert response.status_code == 422
        assert response.json()["param"] == "targets.0.keep"
    assert answers[0].json()["errors"] == answers[1].json()["errors"]


ON_CPUS = Placement(4, 2, 0)


def headers_of(body: dict[str, Any]) -> Headers:
    source = LocalPath.model_validate(body["model"])
    settings = Settings(allowed_roots=(Path(source.path).parent,))
    found = check_model(source, settings)
    assert found is not None
    return found


def run(
    store: Store,
    body: dict[str, Any],
    placement: Placement = ON_CPUS,
    *,
    seconds: float = 30,
    attempt: int = 1,
    version: str = VERSION,
    predicted: dict[str, Any] | None = None,
) -> None:
    """A job that has succeeded in an attempt, each of whose steps took so long."""
    job = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(body))
    store.claims.claim()
    for lost in range(1, attempt):
        store.attempts.fail(job.id, lost, WorkerLost().failure(), at_once(attempt))
        store.claims.claim()
    model = model_of(headers_of(body))
    cluster = cluster_of(placement, [])
    times = step_times(model, step_costs(model, job.spec, cluster), cluster)
    modelled = {step: each.seconds for step, each in times.items()}
    data = predicted or Prediction(placement, version, modelled, dict(modelled)).as_data()
    store.attempts.record(job.id, attempt, PREDICTED, "Predicted.", data)
    for step in Step:
        store.attempts.progress(job.id, attempt, step, 1, 1, "things")
    store.attempts.succeed(job.id, attempt, {})
    steps = tables.steps
    with store._database.writing() as connection:
        for row in connection.execute(steps.select().where(steps.c.job_id == job.id)).all():
            later = row.started_at.timestamp() + seconds
            end = row.started_at.fromtimestamp(later, row.started_at.tzinfo)
            mine = (steps.c.job_id == job.id) & (steps.c.step == row.step)
            connection.execute(steps.update().where(mine).values(finished_at=end))


def test_what_earlier_jobs_took_corrects_the_seconds(
    ask: Ask, body: dict[str, Any], store: Store
) -> None:
    before = ask(body)["seconds"]
    run(store, body, seconds=30)
    after = ask(body)
    assert after["seconds"]["measured_jobs"] == 1
    assert before["measured_jobs"] == 0
    assert after["seconds"]["sum"] == pytest.approx(30 * (len(Step) - 1))  # all but recover
    assert "cost model" not in unknown(after, "seconds")
    twice = ask(body | {"workers": 4, "calibration": body["calibration"] | {"sequences": 64}})
    steps = [
        {each["step"]: each["seconds"] for each in answer["seconds"]["steps"]}
        for answer in (after, twice)
    ]
    assert steps[1]["calibrate"] == pytest.approx(2 * steps[0]["calibrate"], rel=0.05)
    assert steps[1]["publish"] == pytest.approx(30)


@pytest.mark.parametrize(
    ("changes", "placement", "run_as"),
    [
        ({}, Placement(4, 2, 1), {}),
        ({"mixed_precision": "bf16"}, ON_CPUS, {}),
        ({}, ON_CPUS, {"attempt": 2}),
        ({}, ON_CPUS, {"version": "0.0.9"}),
    ],
    ids=["GPUs", "precision", "resumed", "version"],
)
def test_jobs_that_computed_otherwise_correct_nothing(
    ask: Ask,
    body: dict[str, Any],
    store: Store,
    changes: dict[str, Any],
    placement: Placement,
    run_as: dict[str, Any],
) -> None:
    run(store, body | changes, placement, **run_as)
    assert ask(body)["seconds"]["measured_jobs"] == 0


def test_a_job_that_predicted_nothing_corrects_nothing(
    ask: Ask, body: dict[str, Any], store: Store
) -> None:
    run(store, body, predicted={"placement": {"workers": 4}})
    assert ask(body)["seconds"]["measured_jobs"] == 0


def test_jobs_before_it_are_waited_for(ask: Ask, body: dict[str, Any], store: Store) -> None:
    for _ in range(3):
        store.users(DEFAULT_TENANT).create(JobSpec.model_validate(body))
    store.claims.claim()
    assert ask(body)["waits"] == "1 of 1 places for running jobs are taken; in the queue: 2."


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"max_running_jobs": 3}, None),
        ({"max_running_jobs": 2}, 2),
        ({"max_running_jobs": 3, "max_running_jobs_per_tenant": 2}, 2),
    ],
)
def test_free_places_go_to_the_queue_first(
    ask: Ask,
    body: dict[str, Any],
    services: Services,
    limits: dict[str, int],
    most: int | None,
) -> None:
    for _ in range(2):
        services.store.users(DEFAULT_TENANT).create(JobSpec.model_validate(body))
    services.store.claims.claim()
    changed = services.settings.model_copy(update=limits)
    services.estimates._settings = changed
    taken = most and f"1 of {most} places for running jobs are taken; in the queue: 1."
    assert ask(body)["waits"] == taken


def test_a_slow_ray_holds_up_nothing_else(
    client: TestClient, body: dict[str, Any], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answers = Event(), Event()

    def wait() -> None:
        asked.set()
        answers.wait()

    monkeypatch.setattr(cluster, "check", wait)
    with ThreadPoolExecutor() as pool:
        try:
            estimated = pool.submit(client.post, "/v1/estimates", json=body)
            assert asked.wait(GUARD_SECONDS)
            assert pool.submit(client.get, "/healthz").result(GUARD_SECONDS).status_code == 200
            assert not estimated.done()
        finally:
            answers.set()
        assert estimated.result().status_code == 200
