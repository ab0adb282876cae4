"""`service.client.request` makes only bodies that the server's own model accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.client.request import ValueInvalid, evaluation_dataset, job_body, source
from service.domain.spec.job import JobSpec
from service.domain.spec.sources import DatasetData, HubModel, LocalData, LocalPath, S3Prefix

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_path_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    (tmp_path / "models" / "m").mkdir(parents=True)
    assert LocalPath(**source("models/m")).path == str(tmp_path / "models/m")
    assert LocalPath(**source("~/m")).path == "/home/ada/m"
    assert LocalPath(**source("/data/m.gguf")).path == "/data/m.gguf"


def test_a_bucket_and_the_hub_are_recognised() -> None:
    assert S3Prefix(**source("s3://models/llama")).uri == "s3://models/llama"
    assert DatasetData(**source("dataset:ds-" + "0" * 26)).source == "dataset"
    hub = HubModel(**source(f"hub:org/name@{COMMIT}"))
    assert (hub.id, hub.revision) == ("org/name", COMMIT)


@pytest.mark.parametrize(
    "text",
    ["", "hub:org/name", "hub:org/name@main", "http://host/model", "gs://bucket/m", "S3://b/m"],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueInvalid):
        source(text)


def test_a_bare_id_of_the_hub_is_answered_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueInvalid, match=r"there is no .*org/name; .* is hub:org/name$"):
        source("org/name")


@pytest.mark.parametrize("text", ["/data", "=/data", "name="])
def test_an_evaluation_text_has_a_name_and_a_place(text: str) -> None:
    with pytest.raises(ValueInvalid, match="NAME=DATA"):
        evaluation_dataset(text)


def test_only_what_was_typed_is_sent() -> None:
    body = job_body(
        model=source("/m"), data={**source("/d"), "pattern": None}, keep=[0.8], workers=None
    )
    assert body == {
        "model": {"source": "local", "path": "/m"},
        "calibration": {"data": {"source": "local", "path": "/d"}},
        "targets": [{"keep": 0.8}],
    }
    JobSpec.model_validate_json(json.dumps(body))


def test_everything_that_can_be_typed_reaches_the_job() -> None:
    body = job_body(
        name="first",
        model=source("/m"),
        data={**source("/d"), "pattern": "*.py", "text_field": "body"},
        calibration={"sequences": 16, "sequence_length": 64, "batch_size": 2},
        keep=[0.8, 0.6],
        scope="model",
        max_perplexity_increase=[0.1],
        method="afm",
        allocation="uniform",
        evaluation=[evaluation_dataset("prose=s3://texts/prose")],
        dtype="bfloat16",
        workers=3,
    )
    spec = JobSpec.model_validate_json(json.dumps(body))
    assert [target.name for target in spec.targets] == [
        "keep-0.8-of-model",
        "keep-0.6-of-model",
        "increase-0.1",
    ]
    assert isinstance(spec.calibration.data, LocalData)
    assert spec.calibration.data.pattern == "*.py"
    assert spec.calibration.batch_size == 2
    assert spec.evaluation.datasets[0].name == "prose"
    assert (spec.method, spec.allocation, spec.workers) == ("afm", "uniform", 3)


def test_sizes_in_bytes_reach_the_job() -> None:
    body = job_body(
        model=source("/m"),
        data=source("/d"),
        bytes_fraction=[0.3, 0.4],
        scope="model",
        precisions="transformers",
        embedding_bits=8,
    )
    assert [each.name for each in JobSpec.model_validate_json(json.dumps(body)).targets] == [
        "bytes-0.3-of-model-transformers-embeddings-8",
        "bytes-0.4-of-model-transformers-embeddings-8",
    ]
