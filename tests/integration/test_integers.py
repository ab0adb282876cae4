"""Artifacts with layers as integers, made by whole attempts: what they hold, and who loads them.

The attempts take about 20 seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from service.domain.job import Job
from service.domain.states import JobState
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage
from tests.fixtures.in_process import LocalInstallation, Moment, answer_for_ray
from tests.fixtures.models import save_tiny_model, tiny_llama_config

TARGETS: list[dict[str, Any]] = [
    {"bytes_fraction": 0.4},
    {"bytes_fraction": 0.3, "precisions": "transformers"},
    {"bytes_fraction": 0.7, "scope": "model"},
    {"keep": 0.7},
]


class Made:
    """What a job has published, in a folder."""

    def __init__(self, installation: LocalInstallation, job: Job, folder: Path) -> None:
        self.weights = installation.weights(job)
        report = installation.store.records.report(job.id)
        assert report is not None
        self.report = report
        self.folders: dict[str, Path] = {}
        storage = ObjectStorage.from_settings(installation.settings)
        for artifact in installation.store.records.artifacts(job.id):
            self.folders[artifact.name] = folder / artifact.name
            (folder / artifact.name).mkdir(parents=True)
            for file in artifact.files:
                key = f"{artifact.prefix}{file.path}"
                (folder / artifact.name / file.path).write_bytes(storage.get_bytes(key))

    def target(self, name: str) -> Mapping[str, Any]:
        return next(each for each in self.report["targets"] if each["name"] == name)


def create(installation: LocalInstallation) -> Job:
    model = installation.inputs / "wide-llama"
    if not model.exists():
        save_tiny_model(model, tiny_llama_config(hidden_size=64, intermediate_size=192))
    source = {"source": "local", "path": str(model)}
    return installation.create(model=source, targets=TARGETS, dtype="bfloat16")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, local_s3: LocalS3) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("integers")
    with pytest.MonkeyPatch.context() as patch:
        answer_for_ray(patch)
        installation = LocalInstallation(folder, local_s3, patch)
        job = create(installation)
        installation.attempt()
        done = installation.store.records.get(job.id)
        assert done.state is JobState.SUCCEEDED, done.failure
        yield Made(installation, job, folder / "made")
        installation.store.close()


def test_the_layers_take_the_bytes_that_were_asked_for(made: Made) -> None:
    for name, fraction in (("bytes-0.4", 0.4), ("bytes-0.3-transformers", 0.3)):
        target = made.target(name)
        assert target["size"]["linear_bytes_fraction"] <= fraction
        stored = load_file(made.folders[name] / "model.safetensors")
        in_layers = sum(each.nbytes for key, each in stored.items() if "_proj" in key)
        assert in_layers == target["size"]["linear_bytes"]
        assert target["size"]["parameters"] == made.report["model"]["parameters"]


def test_the_whole_model_takes_the_bytes_that_were_asked_for(made: Made) -> None:
    stored = load_file(made.folders["bytes-0.7-of-model"] / "model.safetensors")
    wanted = 0.7 * 2 * made.report["model"]["parameters"]
    assert 0.9 * wanted <= sum(each.nbytes for each in stored.values()) <= wanted


def test_vllm_s_widths_are_4_and_8_and_equal_where_it_joins_layers(made: Made) -> None:
    bits = {each["name"]: each["bits"] for each in made.target("bytes-0.4")["layers"]}
    assert set(bits.values()) <= {4, 8, None}
    for name, width in bits.items():
        for one, other in (("q_proj", "k_proj"), ("q_proj", "v_proj"), ("gate_proj", "up_proj")):
            if one in name:
                assert bits[name.replace(one, other)] == width


def test_transformers_loads_them_without_code(made: Made) -> None:
    for name in ("bytes-0.4", "bytes-0.3-transformers", "bytes-0.7-of-model"):
        folder = made.folders[name]
        assert not list(folder.glob("*.py"))
        config = json.loads((folder / "config.json").read_text())
        assert "auto_map" not in config
        assert config["quantization_config"]["quant_method"] == "compressed-tensors"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()
        assert made.target(name)["proof"]["logit_error"] < 1e-3


def test_low_rank_artifacts_of_the_same_job_are_what_they_were(made: Made) -> None:
    folder = made.folders["keep-0.7"]
    assert (folder / "modeling_eigenpress.py").exists()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_fewer_bytes_cost_more_loss(made: Made) -> None:
    names = ("bytes-0.7-of-model", "bytes-0.4", "bytes-0.3-transformers")
    predicted = [made.target(name)["predicted_loss_increase"] for name in names]
    assert predicted == sorted(predicted)
    assert predicted[0] >= 0


def test_killed_attempts_end_with_the_same_bytes(
    made: Made, local_installation: LocalInstallation
) -> None:
    job = create(local_installation)
    for end in (Moment("solve", 2), Moment("solve", 3), Moment("assemble", 2)):
        local_installation.attempt(end)
    local_installation.attempt(workers=2)
    assert local_installation.store.records.get(job.id).state is JobState.SUCCEEDED
    assert local_installation.weights(job) == made.weights
