"""A whole job with a mixture of experts, on two workers, with real Ray and real S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from service.domain.job import DEFAULT_TENANT
from service.domain.states import JobState
from service.storage.s3 import ObjectStorage
from tests.fixtures.installation import Installation, ended
from tests.fixtures.models import ARCHITECTURES, save_tiny_model
from workers.artifact.expand import expand


def test_a_mixture_of_experts_goes_the_whole_way(
    running_installation: Installation, tmp_path: Path
) -> None:
    installation = running_installation
    installation.inputs.mkdir(exist_ok=True)
    source = save_tiny_model(installation.inputs / "mixtral", ARCHITECTURES["mixtral"])
    spec = installation.spec(
        model={"source": "local", "path": str(source)},
        targets=[{"keep": 0.7}],
        evaluation={"sequences": 4, "decode_tokens": 4, "curve": [0.8]},
        workers=2,
    )
    job = installation.store.users(DEFAULT_TENANT).create(spec)
    job = installation.wait_for(job, ended)
    assert job.state is JobState.SUCCEEDED, job.failure
    report = installation.store.records.report(job.id)
    assert report is not None
    (target,) = report["targets"]
    experts = [layer for layer in target["layers"] if ".experts." in layer["name"]]
    assert len(experts) == 2 * 4 * 2
    assert any(layer["rank"] is not None for layer in experts)
    assert target["size"]["linear_fraction"] <= 0.7
    routers = [each["name"] for each in report["left_dense"] if "router" in each["reason"]]
    assert routers == [f"model.layers.{block}.mlp.gate.weight" for block in range(2)]

    storage = ObjectStorage.from_settings(installation.settings)
    (artifact,) = installation.store.records.artifacts(job.id)
    folder = tmp_path / "artifact"
    folder.mkdir()
    for file in artifact.files:
        (folder / file.path).write_bytes(storage.get_bytes(artifact.prefix + file.path))
    expand(folder, tmp_path / "dense")
    compressed, dense = load(folder), load(tmp_path / "dense")
    tokens = torch.arange(2, 34)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            compressed(tokens).logits, dense(tokens).logits, rtol=1e-5, atol=1e-5
        )


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
