"""Artifacts whose embedding and output layer are integers, made by whole attempts.

The attempts take about 20 seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from service.domain.job import Job
from service.domain.states import JobState, Step
from service.errors import TargetUnreachable
from service.standalone.s3_server import LocalS3
from tests.fixtures.in_process import LocalInstallation, Moment, answer_for_ray, prove_here
from tests.fixtures.models import ARCHITECTURES, save_tiny_model, tiny_llama_config
from tests.integration.test_integers import Made
from workers.artifact import checkpoint_writer
from workers.artifact.expand import expand
from workers.compression.errors import UnsupportedLayer

EIGHT = {"precisions": "transformers", "embedding_bits": 8}
TARGETS: list[dict[str, Any]] = [
    {"bytes_fraction": 0.45, "scope": "model", **EIGHT},
    {"bytes_fraction": 0.3, **EIGHT},
    {"bytes_fraction": 0.3, "precisions": "transformers"},
]
OF_MODEL, OF_LAYERS, AS_THEY_ARE = (
    "bytes-0.45-of-model-transformers-embeddings-8",
    "bytes-0.3-transformers-embeddings-8",
    "bytes-0.3-transformers",
)
WIDE = {"hidden_size": 64, "intermediate_size": 192}
CONFIGS: dict[str, Any] = {
    "tied": tiny_llama_config(**WIDE),
    "untied": tiny_llama_config(**WIDE, tie_word_embeddings=False),
    "gemma3": ARCHITECTURES["gemma3"],
}
TOKENS = torch.arange(40).reshape(2, 20)


def create(installation: LocalInstallation, name: str) -> Job:
    model = installation.inputs / name
    if not model.exists():
        save_tiny_model(model, CONFIGS[name])
    if name == "tied":  # some checkpoints hold a tied weight twice
        weights = load_file(model / "model.safetensors")
        copy = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
        save_file(weights | copy, model / "model.safetensors", {"format": "pt"})
    source = {"source": "local", "path": str(model)}
    return installation.create(model=source, targets=TARGETS, dtype="bfloat16")


@pytest.fixture(scope="module", params=list(CONFIGS))
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, local_s3: LocalS3
) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("embeddings")
    with pytest.MonkeyPatch.context() as patch:
        answer_for_ray(patch)
        prove_here(patch)
        installation = LocalInstallation(folder, local_s3, patch)
        job = create(installation, request.param)
        installation.attempt()
        done = installation.store.records.get(job.id)
        assert done.state is JobState.SUCCEEDED, done.failure
        yield Made(installation, job, folder / "made")
        installation.store.close()


def stored(made: Made, name: str) -> Mapping[str, Tensor]:
    return load_file(made.folders[name] / "model.safetensors")


def test_the_model_takes_the_bytes_that_were_asked_for(made: Made) -> None:
    wanted = 0.45 * 2 * made.report["model"]["parameters"]
    taken = sum(each.nbytes for each in stored(made, OF_MODEL).values())
    assert 0.99 * wanted <= taken <= wanted


def test_only_the_embedding_and_the_output_layer_differ(made: Made) -> None:
    one, other = stored(made, OF_LAYERS), stored(made, AS_THEY_ARE)
    outside = {name for name in one.keys() | other.keys() if "_proj" not in name}
    different = {
        n for n in outside if n not in other or one.get(n) is None or one[n].dtype != other[n].dtype
    }
    assert {name.partition(".weight")[0] for name in different if "scale" not in name} == {
        name.removesuffix(".weight")
        for name in other
        if name.endswith(("embed_tokens.weight", "lm_head.weight"))
    }
    assert all(
        torch.equal(one[name], other[name]) for name in (one.keys() & other.keys()) - different
    )
    for name in different & other.keys():
        assert one[name].dtype == torch.int8
    assert made.target(OF_LAYERS)["size"]["parameters"] == made.report["model"]["parameters"]


def test_plain_transformers_computes_what_the_integers_stand_for(
    made: Made, tmp_path: Path
) -> None:
    """Also without tied copies in memory: `expand` multiplies out by itself."""
    folder = made.folders[OF_MODEL]
    assert not list(folder.glob("*.py"))
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values())
    assert model.get_input_embeddings().weight.dtype == torch.int8
    assert expand(folder, tmp_path / "dense")
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    for name, tensor in stored(made, OF_MODEL).items():
        if tensor.dtype == torch.int8:
            scales = stored(made, OF_MODEL)[name.replace(".weight", ".weight_scale")]
            assert torch.equal(dense[name], (tensor.double() * scales.double()).bfloat16())
    with torch.no_grad():
        expanded = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
        logits, expected = model(TOKENS).logits, expanded(TOKENS).logits
    assert float((logits - expected).norm() / expected.norm()) < 0.02  # weights were rounded again
    assert made.target(OF_MODEL)["proof"]["logit_error"] < 1e-5
    assert made.target(OF_MODEL)["proof"]["same_predictions"] == 1


def test_perplexity_is_that_of_the_rounded_embedding(made: Made) -> None:
    rounded, others = (
        made.target(name)["perplexity"]["held-out"]["perplexity"]
        for name in (OF_LAYERS, AS_THEY_ARE)
    )
    assert rounded != others
    assert rounded == pytest.approx(others, rel=0.1)


def test_the_report_and_the_card_say_so(made: Made) -> None:
    assert made.target(OF_LAYERS)["embedding_bits"] == 8
    assert made.report["left_dense"] == []
    card = (made.folders[OF_LAYERS] / "README.md").read_text()
    assert "The embedding and the output layer have 8 bits." in card


def test_killed_attempts_end_with_the_same_bytes(local_installation: LocalInstallation) -> None:
    whole = create(local_installation, "tied")
    local_installation.attempt()
    killed = create(local_installation, "tied")
    for end in (Moment("assemble", 2), Moment("begin_measuring", 1)):
        local_installation.attempt(end)
    local_installation.attempt()
    assert local_installation.store.records.get(killed.id).state is JobState.SUCCEEDED
    assert local_installation.weights(killed) == local_installation.weights(whole)


def test_an_embedding_of_another_kind_ends_the_job(
    local_installation: LocalInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise UnsupportedLayer("model.embed_tokens is a Hashed, not an nn.Embedding")

    monkeypatch.setattr(checkpoint_writer, "vocabulary", refuse)
    create(local_installation, "untied")
    with pytest.raises(TargetUnreachable, match="embed_tokens is a Hashed") as caught:
        local_installation.attempt()
    assert caught.value.param == "targets.0.embedding_bits"


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_model_that_exceeds_the_memory_is_refused_at_the_start(
    local_installation: LocalInstallation, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("EIGENPRESS_MODEL_MEMORY_BYTES", "60000")
    job = create(local_installation, name)
    with pytest.raises(TargetUnreachable, match="and 60000 are free") as caught:
        local_installation.attempt()
    assert caught.value.param == "targets.0.embedding_bits"
    steps = local_installation.store.records.get(job.id).steps
    assert [each.step for each in steps] == [Step.RESOLVE]
