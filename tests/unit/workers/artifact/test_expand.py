"""Artifacts are expanded to dense checkpoints."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MistralConfig

from service.errors import ArtifactCorrupt
from tests.fixtures.models import save_tiny_model, tiny_llama_config, tiny_model
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.artifact.expand import CannotExpand, expand, main
from workers.compression.candidates import Width
from workers.compression.interpolation import Interpolation, interpolate
from workers.compression.rounding.grid import RoundedWeight, best_scales, nearest
from workers.compression.solve import Factors

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]


def artifact(folder: Path, config: Any, *, bias: bool, names: list[str] = NAMES) -> Path:
    """A checkpoint in which the named layers are random factors of rank 3."""
    source = save_tiny_model(folder / "source", config)
    model = tiny_model(config)
    generator = torch.Generator().manual_seed(0)

    def compressed(name: str) -> Interpolation:
        out, inner = model.get_submodule(name).weight.shape
        factors = Factors(
            torch.randn(3, inner, generator=generator) / 4,
            torch.randn(out, 3, generator=generator) / 4,
            torch.randn(out, generator=generator) if bias else None,
        )
        return interpolate(factors)

    ranks = dict.fromkeys(names, 3)
    write_checkpoint(source, folder / "artifact", ranks, partial(map, compressed), torch.float32)
    return folder / "artifact"


def same_logits(artifact: Path, dense: Path, *, trusted: bool = False) -> Any:
    """The dense model, once it is seen to compute what the artifact computes."""
    compressed = AutoModelForCausalLM.from_pretrained(artifact, trust_remote_code=True)
    model, loading = AutoModelForCausalLM.from_pretrained(
        dense, trust_remote_code=trusted, output_loading_info=True
    )
    assert not any(loading.values())
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens).logits, compressed(tokens).logits, rtol=1e-5, atol=1e-5
        )
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}, {"tie_word_embeddings": False}])
def test_the_dense_checkpoint_computes_the_same(
    tmp_path: Path, bias: bool, changes: dict[str, Any]
) -> None:
    folder = artifact(
        tmp_path, tiny_llama_config(**changes), bias=bias or "attention_bias" in changes
    )
    assert main([str(folder), str(tmp_path / "dense")]) == 0
    dense = same_logits(folder, tmp_path / "dense")
    assert type(dense).__name__ == "LlamaForCausalLM"
    assert (tmp_path / "dense" / "config.json").read_text().count("eigenpress") == 0


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_integers_become_the_weights_that_they_stand_for(tmp_path: Path, bits: int) -> None:
    config, width = tiny_llama_config(attention_bias=True), Width(bits)
    source = save_tiny_model(tmp_path / "source", config)
    model = tiny_model(config)

    def rounded(name: str) -> RoundedWeight:
        weight = model.get_submodule(name).weight.detach()
        scales = best_scales(weight, torch.ones(weight.shape[1]), width, torch.bfloat16)
        return nearest(weight, scales, width)

    folder = tmp_path / "artifact"
    forms = dict.fromkeys(NAMES, width)
    write_checkpoint(source, folder, forms, partial(map, rounded), torch.bfloat16)
    assert expand(folder, tmp_path / "dense")
    expanded = load_file(tmp_path / "dense" / "model.safetensors")
    before = load_file(source / "model.safetensors")
    assert expanded.keys() == before.keys()
    for name, tensor in expanded.items():
        layer = name.removesuffix(".weight")
        wanted = rounded(layer).dequantized() if layer in NAMES else before[name]
        assert torch.equal(tensor, wanted.bfloat16())
    same_logits(folder, tmp_path / "dense")
    written = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "quantization_config" not in written
    assert "eigenpress" not in written


def test_a_base_without_room_for_a_bias_gets_a_modelling_file_that_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = MistralConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    folder = artifact(tmp_path, config, bias=True, names=NAMES[:1])
    assert main([str(folder), str(tmp_path / "dense")]) == 0
    assert "load it with trust_remote_code=True" in capsys.readouterr().out
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "dense", trust_remote_code=False)
    same_logits(folder, tmp_path / "dense", trusted=True)


def test_tensors_that_the_model_does_not_use_are_kept(tmp_path: Path) -> None:
    folder = artifact(tmp_path, tiny_llama_config(), bias=False)
    file, extra = folder / "model.safetensors", {"mtp.fc.weight": torch.rand(4, 8)}
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    assert expand(folder, tmp_path / "dense")
    expanded = load_file(tmp_path / "dense" / "model.safetensors")
    assert torch.equal(expanded.pop("mtp.fc.weight"), extra["mtp.fc.weight"])
    assert expanded.keys() == load_file(tmp_path / "source" / "model.safetensors").keys()


def test_what_is_no_artifact_is_refused(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path / "nothing", tiny_llama):
        assert main([str(folder), str(tmp_path / "dense")]) == 1
        assert "is not an artifact of Eigenpress" in capsys.readouterr().err
    assert main([]) == 2


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    folder = artifact(tmp_path, tiny_llama_config(), bias=False)
    with pytest.raises(CannotExpand, match="exists already"):
        expand(folder, tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path, tiny_llama_config(), bias=False)
    config = json.loads((folder / "config.json").read_text())
    config["eigenpress"]["format"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CannotExpand, match="has the format 2"):
        expand(folder, tmp_path / "dense")


def test_a_missing_factor_is_found(tmp_path: Path) -> None:
    folder = artifact(tmp_path, tiny_llama_config(), bias=False)
    config = json.loads((folder / "config.json").read_text())
    config["eigenpress"]["layers"][NAMES[0]]["bias"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactCorrupt, match=r"lacks model\.layers\.0\.self_attn\.q_proj\.bias"):
        expand(folder, tmp_path / "dense")
