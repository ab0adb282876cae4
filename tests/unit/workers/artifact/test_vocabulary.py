"""Rounded embeddings and output layers of every architecture load in plain transformers.

All of it takes about 10 seconds.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PhiConfig

from service.domain.spec.job import JobSpec
from service.errors import ArtifactCorrupt, TargetUnreachable
from tests.fixtures.models import ARCHITECTURES, save_tiny_model, tiny_llama_config, tiny_model
from workers.artifact.checkpoint_writer import check_roundable, write_checkpoint
from workers.artifact.expand import expand
from workers.compression.rounding.embeddings import WIDTH, rounded_rows, vocabulary_matrices
from workers.compression.rounding.grid import RoundedWeight
from workers.model import blocks
from workers.model.blocks import vocabulary
from workers.model.loading import parameter_count

FUSED = {"gpt2", "mixtral", "qwen3-moe"}
"""No layer of these can be stored as integers."""

CONFIGS: dict[str, Any] = {
    **{name: each for name, each in ARCHITECTURES.items() if name not in FUSED},
    "llama, untied": tiny_llama_config(tie_word_embeddings=False),
    "phi, whose output layer has a bias": PhiConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=1,
        num_attention_heads=4,
        partial_rotary_factor=0.5,
        tie_word_embeddings=False,
    ),
}
TOKENS = torch.arange(24).reshape(2, 12)


class Case:
    """An artifact of a tiny model whose vocabulary alone is rounded, and the same in memory."""

    def __init__(self, folder: Path, config: Any) -> None:
        self.source = save_tiny_model(folder / "source", config)
        self.folder = folder / "artifact"
        self.matrices = vocabulary(self.source)
        self.model = tiny_model(config)
        self.rounded = {each.name: self._rounded(each.name) for each in self.matrices}
        self.size = write_checkpoint(
            self.source,
            self.folder,
            dict.fromkeys(self.rounded, WIDTH),
            partial(map, self.rounded.__getitem__),
            torch.float32,
            self.matrices,
        )
        with torch.no_grad():
            for name, each in self.rounded.items():
                self.model.get_submodule(name).weight.copy_(each.dequantized())

    def _rounded(self, name: str) -> RoundedWeight:
        return rounded_rows(self.model.get_submodule(name).weight.detach(), torch.float32)


@pytest.fixture(params=list(CONFIGS))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, CONFIGS[request.param])


@torch.no_grad()
def test_it_computes_with_what_the_integers_stand_for(case: Case) -> None:
    model, loading = AutoModelForCausalLM.from_pretrained(case.folder, output_loading_info=True)
    assert not any(loading.values())
    assert model.get_input_embeddings().weight.dtype == torch.int8
    expected = case.model(TOKENS).logits
    torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
    generated = [
        each.generate(TOKENS[:1], max_new_tokens=4, do_sample=False) for each in (model, case.model)
    ]
    assert torch.equal(*generated)

    assert expand(case.folder, case.folder.with_name("dense"))
    dense, loading = AutoModelForCausalLM.from_pretrained(
        case.folder.with_name("dense"), output_loading_info=True
    )
    assert not any(loading.values())
    torch.testing.assert_close(dense(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)


def test_every_matrix_is_stored_once_and_takes_the_bytes_that_were_planned(case: Case) -> None:
    written = load_file(case.folder / "model.safetensors")
    dense = load_file(case.source / "model.safetensors")
    integers = {name: each for name, each in written.items() if each.dtype == torch.int8}
    assert integers.keys() == {f"{name}.weight" for name in case.rounded}
    for name, each in case.rounded.items():
        assert torch.equal(integers[f"{name}.weight"], each.codes)
    saved = sum(4 * each.rows * each.columns - each.stored_bytes(4) for each in case.matrices)
    taken, before = (sum(each.nbytes for each in some.values()) for some in (written, dense))
    assert before - taken == saved
    assert case.size.parameters == parameter_count(case.model)


@pytest.fixture
def tied(tmp_path: Path) -> Case:
    return Case(tmp_path, ARCHITECTURES["gemma3"])


def test_a_scale_that_is_missing_is_found(tied: Case, tmp_path: Path) -> None:
    file = tied.folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight_scale"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ArtifactCorrupt, match=r"lacks lm_head\.weight_scale"):
        expand(tied.folder, tmp_path / "dense")


def test_the_configuration_names_both_modules_of_a_tied_weight(tied: Case) -> None:
    config = json.loads((tied.folder / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    assert group["targets"] == ["model.embed_tokens", "lm_head"]
    assert group["format"] == "naive-quantized"  # of a group: layers have another one


def wanting(*targets: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {"source": "local", "path": "/model"},
            "calibration": {"data": {"source": "local", "path": "/text"}},
            "targets": list(targets),
        }
    )


LAYERS_ALONE = {"bytes_fraction": 0.5, "precisions": "transformers"}
EVERYTHING = LAYERS_ALONE | {"embedding_bits": 8}


def test_the_vocabulary_is_looked_at_if_a_target_rounds_it(tiny_llama: Path) -> None:
    assert check_roundable(tiny_llama, wanting({"keep": 0.5}, LAYERS_ALONE), []) == ()
    found = check_roundable(tiny_llama, wanting(LAYERS_ALONE, EVERYTHING), [])
    assert [each.modules for each in found] == [("model.embed_tokens", "lm_head")]


class Hashed(nn.Module):
    """An embedding of another kind."""


def test_an_embedding_of_another_kind_is_refused_by_name(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(model: Any) -> Any:
        model.model.embed_tokens = Hashed()
        return vocabulary_matrices(model)

    monkeypatch.setattr(blocks, "vocabulary_matrices", hashed)
    assert check_roundable(tiny_llama, wanting(LAYERS_ALONE), []) == ()
    with pytest.raises(TargetUnreachable) as caught:
        check_roundable(tiny_llama, wanting(LAYERS_ALONE, EVERYTHING), [])
    assert caught.value.param == "targets.1.embedding_bits"
    assert "model.embed_tokens is a Hashed, not an nn.Embedding" in caught.value.detail
