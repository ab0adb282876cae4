"""Every invalid request is answered with a code and the field at fault."""

from __future__ import annotations

import inspect
import logging
from typing import Any, get_args, get_origin

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import service.errors
from api.errors import param_of, status_of
from service.domain.spec.job import JobSpec
from service.domain.spec.stored import UNION_FIELDS
from service.errors import Conflict, EigenpressError, InfrastructureError, NotFound, UserError
from service.store.store import Store
from service.store.users import Users

GONE = object()

TASK = {"kind": "multiple_choice", "name": "quiz", "data": {"source": "local", "path": "/quiz"}}

INVALID = [
    pytest.param("targets.0.keep", 0, "invalid_parameter", "targets.0.keep", id="keep-0"),
    pytest.param("targets.0.keep", 1, "invalid_parameter", "targets.0.keep", id="keep-1"),
    pytest.param("targets.0.keep", 1.5, "invalid_parameter", "targets.0.keep", id="keep-1.5"),
    pytest.param("targets.0.keep", -0.5, "invalid_parameter", "targets.0.keep", id="keep-negative"),
    pytest.param("targets.1.keep", "0.5", "invalid_parameter", "targets.1.keep", id="keep-text"),
    pytest.param("targets.0.keep", True, "invalid_parameter", "targets.0.keep", id="keep-true"),
    pytest.param("targets.0.keep", None, "invalid_parameter", "targets.0.keep", id="keep-null"),
    pytest.param("targets.0.keep", GONE, "invalid_parameter", "targets.0", id="keep-missing"),
    pytest.param("targets.0.kep", 0.5, "invalid_parameter", "targets.0.kep", id="keep-misspelt"),
    pytest.param("targets.0.size", 5, "invalid_parameter", "targets.0.size", id="like-a-tag"),
    pytest.param("targets.0", 0.5, "invalid_parameter", "targets.0", id="target-number"),
    pytest.param(
        "targets.0", {"max_perplexity_incraese": 0.1}, "invalid_parameter", "targets.0", id="typo"
    ),
    pytest.param(
        "targets.0.max_perplexity_increase", 0.1, "invalid_parameter", "targets.0", id="both-kinds"
    ),
    pytest.param(
        "targets.1",
        {"max_perplexity_increase": 0},
        "invalid_parameter",
        "targets.1.max_perplexity_increase",
        id="no-increase",
    ),
    pytest.param(
        "targets.1",
        {"max_perplexity_increase": 0.1, "scope": "model"},
        "invalid_parameter",
        "targets.1.scope",
        id="quality-with-scope",
    ),
    pytest.param(
        "targets.1",
        {"max_perplexity_increase": 0.1, "dataset": "wiki"},
        "invalid_parameter",
        "targets",
        id="unknown-dataset",
    ),
    pytest.param(
        "evaluation",
        {"enabled": False, "curve": [0.5]},
        "invalid_parameter",
        "evaluation.curve",
        id="curve-without-evaluation",
    ),
    pytest.param(
        "evaluation",
        {"curve": [0.5, 1]},
        "invalid_parameter",
        "evaluation.curve.1",
        id="curve-of-the-dense-model",
    ),
    pytest.param(
        "evaluation",
        {"tasks": [TASK, TASK]},
        "duplicate_task",
        "evaluation.tasks",
        id="duplicate-tasks",
    ),
    pytest.param(
        "evaluation",
        {"enabled": False, "tasks": [TASK]},
        "invalid_parameter",
        "evaluation.tasks",
        id="tasks-without-evaluation",
    ),
    pytest.param(
        "evaluation",
        {"tasks": [TASK | {"kind": "essay"}]},
        "invalid_parameter",
        "evaluation.tasks.0.kind",
        id="unknown-kind-of-task",
    ),
    pytest.param(
        "evaluation",
        {"tasks": [TASK, {"name": "quiz"}]},
        "invalid_parameter",
        "evaluation.tasks.1.kind",
        id="task-without-kind",
    ),
    pytest.param(
        "evaluation",
        {"tasks": [TASK | {"limit": 0}]},
        "invalid_parameter",
        "evaluation.tasks.0.limit",
        id="no-problems",
    ),
    pytest.param(
        "evaluation",
        {"tasks": [TASK | {"kind": "pass_at_1", "memory_bytes": 10}]},
        "invalid_parameter",
        "evaluation.tasks.0.memory_bytes",
        id="no-memory",
    ),
    pytest.param(
        "evaluation",
        {"tasks": [{"kind": "lm_eval", "name": "h", "tasks": ["arc_easy", "--help"]}]},
        "invalid_parameter",
        "evaluation.tasks.0.tasks.1",
        id="no-name-of-a-task",
    ),
    pytest.param(
        "evaluation",
        {"tasks": [{"kind": "lm_eval", "name": "h", "tasks": ["piqa", "arc_easy", "piqa"]}]},
        "duplicate_task",
        "evaluation.tasks.0.tasks",
        id="duplicate-tasks-of-the-harness",
    ),
    pytest.param("targets.0.keep", 0.6, "duplicate_target", "targets", id="duplicate-targets"),
    pytest.param("targets", [], "invalid_parameter", "targets", id="no-targets"),
    pytest.param("targets", {"keep": 0.5}, "invalid_parameter", "targets", id="targets-object"),
    pytest.param("method", "magic", "invalid_parameter", "method", id="unknown-method"),
    pytest.param("model", GONE, "invalid_parameter", "model", id="no-model"),
    pytest.param("model", "/models/x", "invalid_parameter", "model", id="model-text"),
    pytest.param("model.source", GONE, "invalid_parameter", "model.source", id="no-source"),
    pytest.param("model.source", "ftp", "invalid_parameter", "model.source", id="unknown-source"),
    pytest.param("model.path", GONE, "invalid_parameter", "model.path", id="no-path"),
    pytest.param("model.path", 5, "invalid_parameter", "model.path", id="path-number"),
    pytest.param("model.hub", 5, "invalid_parameter", "model.hub", id="unknown-field-like-a-tag"),
    pytest.param(
        "calibration.data.path", "", "invalid_parameter", "calibration.data.path", id="empty-path"
    ),
    pytest.param(
        "calibration.data.pattern",
        "a*/**/" * 17 + "x",
        "invalid_parameter",
        "calibration.data.pattern",
        id="many-wildcards",
    ),
    pytest.param(
        "calibration.sequences", 0, "invalid_parameter", "calibration.sequences", id="no-sequences"
    ),
    pytest.param("name", "a b", "invalid_parameter", "name", id="name-with-space"),
    pytest.param("colour", "red", "invalid_parameter", "colour", id="unknown-field"),
    pytest.param(
        "evaluation",
        {"datasets": [{"name": "a", "data": {"source": "s3", "uri": "nope"}}]},
        "invalid_parameter",
        "evaluation.datasets.0.data.uri",
        id="uri-within-datasets",
    ),
    pytest.param(
        "evaluation",
        {"datasets": [{"name": "held-out", "data": {"source": "s3", "uri": "s3://texts"}}]},
        "duplicate_dataset",
        "evaluation.datasets",
        id="duplicate-dataset",
    ),
]


def _put(body: dict[str, Any], field: str, value: object) -> None:
    *path, last = field.split(".")
    place: Any = body
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if value is GONE:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value


@pytest.mark.parametrize(("field", "value", "code", "param"), INVALID)
def test_an_invalid_field_is_named(
    client: TestClient,
    store: Store,
    job_body: dict[str, Any],
    field: str,
    value: object,
    code: str,
    param: str,
) -> None:
    _put(job_body, field, value)
    response = client.post("/v1/jobs", json=job_body)
    problem = response.json()
    assert (response.status_code, problem["code"], problem["param"]) == (422, code, param)
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["detail"].startswith(f"{param}: ")
    assert problem["errors"][0] == {"code": code, "detail": problem["detail"], "param": param}
    assert store.records.list_jobs(limit=1) == []


def test_all_mistakes_are_listed_without_their_consequences(
    client: TestClient, job_body: dict[str, Any]
) -> None:
    job_body["targets"] = [{"keep": 7}]
    job_body["method"] = "magic"
    problem = client.post("/v1/jobs", json=job_body).json()
    assert {each["param"] for each in problem["errors"]} == {"targets.0.keep", "method"}


def test_a_target_of_no_kind_is_told_what_there_is(
    client: TestClient, job_body: dict[str, Any]
) -> None:
    job_body["targets"] = [{"max_perplexity_incraese": 0.1, "dataset": "wiki"}]
    detail = client.post("/v1/jobs", json=job_body).json()["detail"]
    assert detail == (
        "targets.0: set one of 'keep' for a number of parameters, 'bytes_fraction' or 'bytes' for "
        "a size in bytes, or 'max_perplexity_increase' for a quality; the target has the fields: "
        "'max_perplexity_incraese', 'dataset'"
    )


@pytest.mark.parametrize(
    ("target", "param"),
    [
        ({"bytes_fraction": 0.3, "keep": 0.5}, "targets.0"),
        ({"bytes_fraction": None}, "targets.0"),
        ({"bytes_fraction": 0.3, "bytes": 1000}, "targets.0"),
        ({"bytes_fraction": 1.5}, "targets.0.bytes_fraction"),
        ({"bytes": 0}, "targets.0.bytes"),
        ({"bytes": 1000, "precisions": "tensorrt"}, "targets.0.precisions"),
        ({"keep": 0.5, "precisions": "vllm"}, "targets.0.precisions"),
        ({"bytes": 1000, "embedding_bits": 8}, "targets.0.embedding_bits"),
        (
            {"bytes": 1000, "precisions": "vllm-cpu", "embedding_bits": 8},
            "targets.0.embedding_bits",
        ),
        (
            {"bytes": 1000, "precisions": "transformers", "embedding_bits": 4},
            "targets.0.embedding_bits",
        ),
        ({"keep": 0.5, "embedding_bits": 8}, "targets.0.embedding_bits"),
    ],
)
def test_a_size_in_bytes_that_cannot_be_is_named(
    client: TestClient, job_body: dict[str, Any], target: dict[str, Any], param: str
) -> None:
    job_body["targets"] = [target]
    answer = client.post("/v1/jobs", json=job_body)
    assert (answer.status_code, answer.json()["param"]) == (422, param)


def test_an_engine_without_8_bits_for_embeddings_is_named(
    client: TestClient, job_body: dict[str, Any]
) -> None:
    job_body["targets"] = [{"bytes_fraction": 0.3, "embedding_bits": 8}]
    assert client.post("/v1/jobs", json=job_body).json()["detail"] == (
        "targets.0.embedding_bits: 'vllm' has no integers for the embedding and the output layer: "
        "leave it at 16, or set 'precisions' to 'transformers' (got 8)"
    )


@pytest.mark.parametrize("field", [{"method": "impact"}, {"allocation": "uniform"}])
def test_bits_need_gradients_and_a_global_allocation(
    client: TestClient, job_body: dict[str, Any], field: dict[str, str]
) -> None:
    job_body["targets"] = [{"keep": 0.5}, {"bytes_fraction": 0.3}]
    answer = client.post("/v1/jobs", json=job_body | field).json()
    assert answer["param"] == "targets"
    assert "targets.1" in answer["detail"]


def test_a_quality_without_its_measure_is_refused(
    client: TestClient, job_body: dict[str, Any]
) -> None:
    job_body["targets"] = [{"max_perplexity_increase": 0.1, "dataset": "wiki"}]
    unknown = client.post("/v1/jobs", json=job_body).json()["detail"]
    job_body["evaluation"] = {"enabled": False}
    disabled = client.post("/v1/jobs", json=job_body).json()["detail"]
    assert unknown == (
        "targets: targets.0 names the dataset 'wiki', which the evaluation does not have; "
        "it has: held-out"
    )
    assert disabled == "targets: the target 'increase-0.1-wiki' needs the evaluation to be enabled"


def test_a_problem_has_the_members_of_the_standard_and_ours(
    client: TestClient, job_body: dict[str, Any]
) -> None:
    job_body["targets"][0]["keep"] = 1.5
    problem = client.post("/v1/jobs", json=job_body).json()
    problem.pop("errors")
    assert problem == {
        "type": "urn:eigenpress:problem:invalid_parameter",
        "title": "Invalid parameter",
        "status": 422,
        "detail": "targets.0.keep: Input should be less than 1 (got 1.5)",
        "code": "invalid_parameter",
        "param": "targets.0.keep",
        "instance": "/v1/jobs",
    }


def test_a_long_value_is_cut(client: TestClient, job_body: dict[str, Any]) -> None:
    job_body["name"] = "x" * 5000
    assert len(client.post("/v1/jobs", json=job_body).json()["detail"]) < 250


def test_a_flood_of_mistakes_is_bounded(client: TestClient, job_body: dict[str, Any]) -> None:
    job_body |= {f"{number:x<1000}": 1 for number in range(50)}
    response = client.post("/v1/jobs", json=job_body)
    assert response.status_code == 422
    assert len(response.json()["errors"]) == 20
    assert len(response.content) < 10_000


@pytest.mark.parametrize("field", [rb'"\ud800"', rb'"name"', rb'"method"', rb'"model"'])
def test_text_that_has_no_utf_8(client: TestClient, field: bytes) -> None:
    content = b"{" + field + rb': "\ud800"}'
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/jobs", content=content, headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"\xff", b"[" * 50_000, b'{"name": ' + b"9" * 5000 + b"}"],
    ids=["cut-off", "empty", "not-utf-8", "deeply-nested", "endless-number"],
)
def test_a_body_that_is_not_json(client: TestClient, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/jobs", content=content, headers=headers)
    expected = (400, "malformed_json") if content else (422, "invalid_parameter")
    assert (response.status_code, response.json()["code"]) == expected


@pytest.mark.parametrize("body", [b"[]", b"null", b"5"])
def test_a_body_that_is_no_object(client: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = client.post("/v1/jobs", content=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-yaml"}]
)
def test_a_body_under_another_media_type(client: TestClient, headers: dict[str, str]) -> None:
    """Refused also for safety: a browser sends JSON to a foreign server only if that allows it."""
    response = client.post("/v1/jobs", content=b"{}", headers=headers)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("path", ["/v1", "/v1/job", "/favicon.ico", "/static-offline-docs/x.js"])
def test_an_unknown_path(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert response.headers["content-type"] == "application/problem+json"


def test_a_wrong_method(client: TestClient) -> None:
    response = client.delete("/v1/jobs")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert "POST" in response.headers["allow"]


def test_a_defect_shows_nothing_of_its_cause(
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(Users, "list_jobs", fail)
    with caplog.at_level(logging.ERROR, logger="api"):
        response = client.get("/v1/jobs")
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "swordfish" not in response.text
    assert "Traceback" not in response.text
    assert "swordfish" in caplog.text


def test_param_of_leaves_out_what_the_user_did_not_write() -> None:
    data = ("body", "evaluation", "datasets", 3, "data", "hub", "revision")
    assert param_of(data) == "evaluation.datasets.3.data.revision"
    assert param_of(("body", "model", "local", "local")) == "model.local"
    assert param_of(("body", "targets", 0, "size", "size")) == "targets.0.size"
    assert param_of(("body", "targets", 0)) == "targets.0"
    assert param_of(("query", "limit")) == "limit"
    assert param_of(("body",)) is None


def test_every_union_of_the_specification_is_known() -> None:
    assert set(_union_fields(JobSpec)) == UNION_FIELDS


def _union_fields(model: type[BaseModel]) -> Any:
    for name, field in model.model_fields.items():
        if _is_union(field):
            yield name
        for kind in _models_in(field.annotation):
            yield from _union_fields(kind)


def _is_union(field: FieldInfo) -> bool:
    nested = [m for arg in get_args(field.annotation) for m in getattr(arg, "__metadata__", ())]
    return any(getattr(each, "discriminator", None) for each in (field, *nested))


def _models_in(annotation: Any) -> Any:
    if inspect.isclass(annotation) and get_origin(annotation) is None:
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for each in get_args(annotation):
        yield from _models_in(each)


def _errors() -> list[type[EigenpressError]]:
    found = [kind for _, kind in inspect.getmembers(service.errors, inspect.isclass)]
    return [kind for kind in found if issubclass(kind, EigenpressError)]


@pytest.mark.parametrize("kind", _errors())
def test_each_error_has_its_status(kind: type[EigenpressError]) -> None:
    families = {UserError: 422, InfrastructureError: 503, NotFound: 404, Conflict: 409}
    named = {
        "KeyMissing": 401,
        "KeyInvalid": 401,
        "ScopeInsufficient": 403,
        "ObjectMissing": 410,
        "ArtifactCorrupt": 410,
        "DatasetTooLarge": 413,
        "TooManyRequests": 429,
        "TooManyFollowers": 429,
        "QuotaExceeded": 429,
    }
    family = next((status for base, status in families.items() if issubclass(kind, base)), 500)
    assert status_of(kind) == named.get(kind.__name__, family)
