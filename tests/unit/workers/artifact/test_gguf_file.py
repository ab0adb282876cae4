"""Artifacts become GGUF files of the same model. Each test takes less than a second."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, dequantize
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.fixtures.models import ARCHITECTURES, tiny_model, trained_tokenizer
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.artifact.expand import CannotExpand, expand
from workers.artifact.gguf_file import main, write_gguf
from workers.compression.candidates import Width
from workers.compression.checkpoint import Replacement
from workers.compression.interpolation import interpolate
from workers.compression.rounding.embeddings import rounded_rows
from workers.compression.rounding.grid import RoundedWeight, best_scales, nearest
from workers.compression.solve import Factors
from workers.model.blocks import vocabulary
from workers.model.gguf_conversion import convert_gguf

SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96}
BLOCK = "model.layers.0"
LOW_RANK = {f"{BLOCK}.self_attn.o_proj": 5, f"{BLOCK}.mlp.up_proj": 7}
INTEGERS = {
    f"{BLOCK}.self_attn.q_proj": Width(8),
    f"{BLOCK}.self_attn.k_proj": Width(4),
    f"{BLOCK}.self_attn.v_proj": Width(3),
    f"{BLOCK}.mlp.gate_proj": Width(5),
    f"{BLOCK}.mlp.down_proj": Width(6),
}


def tiny(architecture: str, **changes: Any) -> PretrainedConfig:
    """A configuration whose layers have whole blocks of inputs."""
    config = ARCHITECTURES[architecture]
    values = config.to_dict() | SIZES | changes
    if architecture == "qwen3":
        values["head_dim"] = 128  # transformers reads no other from a GGUF file
    elif architecture != "gpt-neox":
        values.pop("head_dim", None)
    return type(config).from_dict(values)


def artifact(
    folder: Path,
    config: PretrainedConfig,
    forms: Mapping[str, int | Width],
    *,
    dtype: torch.dtype = torch.bfloat16,
    bias: bool = False,
) -> tuple[Path, dict[str, Tensor]]:
    """An artifact of a tiny model with layers of these forms.

    Returns it, and the weights in float32 that its layers of integers stand for.
    """
    model = tiny_model(config)
    model.save_pretrained(folder / "source")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained_tokenizer(words, size=300, adds_bos=True).save_pretrained(folder / "source")
    generator, exact = torch.Generator().manual_seed(0), {}
    matrices = vocabulary(folder / "source")

    def made(name: str) -> Replacement:
        weight, form = model.get_submodule(name).weight.detach(), forms[name]
        if isinstance(form, Width):
            if any(name == matrix.name for matrix in matrices):
                rounded = rounded_rows(weight, dtype)
            else:
                scales = best_scales(weight, torch.ones(weight.shape[1]), form, dtype)
                rounded = nearest(weight, scales, form)
            exact[f"{name}.weight"] = rounded.dequantized()
            return rounded
        out, inputs = weight.shape
        basis = torch.randn(form, inputs, generator=generator) / 8
        rest = torch.randn(out, form, generator=generator)
        bias_ = torch.randn(out, generator=generator) if bias else None
        return interpolate(Factors(basis, rest, bias_))

    compressed = partial(map, made)
    write_checkpoint(folder / "source", folder / "artifact", forms, compressed, dtype, matrices)
    return folder / "artifact", exact


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(torch.arange(2, 26).reshape(2, 12)).logits
    return result


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "forms", [LOW_RANK, INTEGERS, LOW_RANK | INTEGERS], ids=["low rank", "integers", "both"]
)
def test_the_file_is_the_expanded_model(
    tmp_path: Path, architecture: str, forms: Mapping[str, int | Width]
) -> None:
    folder, exact = artifact(tmp_path, tiny(architecture, sliding_window=None), forms)
    nfc = architecture == "qwen2"  # by the class of its tokenizer
    notes = write_gguf(folder, tmp_path / "a.gguf")
    assert notes == (["The tokenizer normalizes texts to NFC. llama.cpp does not."] if nfc else [])
    expand(folder, tmp_path / "dense")
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    wanted.load_state_dict(exact, strict=False)  # expand rounds them to bfloat16
    convert_gguf(tmp_path / "a.gguf", tmp_path / "read")  # our own reader
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "read")
    tensors = read.state_dict()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(tensors[name], tensor), name
    torch.testing.assert_close(logits(read), logits(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dense_weights_keep_their_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    folder, _ = artifact(tmp_path, tiny("llama"), LOW_RANK, dtype=dtype)
    write_gguf(folder, tmp_path / "a.gguf")
    kinds = {each.name: each.tensor_type.name for each in GGUFReader(tmp_path / "a.gguf").tensors}
    kind = {torch.float16: "F16", torch.float32: "F32"}[dtype]
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == kind
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_integers_keep_their_bytes(tmp_path: Path) -> None:
    folder, _ = artifact(tmp_path, tiny("qwen2"), INTEGERS)
    write_gguf(folder, tmp_path / "a.gguf")
    reader = GGUFReader(tmp_path / "a.gguf")
    kinds = {each.name.removeprefix("blk.0."): each.tensor_type.name for each in reader.tensors}
    assert kinds["attn_q.weight"] == kinds["ffn_down.weight"] == "Q8_0"
    assert kinds["attn_k.weight"] == kinds["attn_v.weight"] == "Q4_0"
    assert kinds["ffn_gate.weight"] == "Q5_0"
    assert kinds["ffn_up.weight"] == "BF16"
    assert kinds["attn_q.bias"] == "F32"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "kind"), [(torch.bfloat16, "Q8_0"), (torch.float32, "F32")])
def test_an_embedding_of_8_bits_stands_for_the_same_weights(
    tmp_path: Path, dtype: torch.dtype, kind: str, *, tied: bool
) -> None:
    """Its integers stay so, unless its scales do not fit."""
    names = {"token_embd.weight": "model.embed_tokens"}
    if not tied:
        names["output.weight"] = "lm_head"
    forms = dict.fromkeys(names.values(), Width(8)) | {f"{BLOCK}.mlp.up_proj": 7}
    folder, exact = artifact(tmp_path, tiny("llama", tie_word_embeddings=tied), forms, dtype=dtype)
    notes = write_gguf(folder, tmp_path / "a.gguf")
    assert len(notes) == (kind == "F32")
    found = {each.name: each for each in GGUFReader(tmp_path / "a.gguf").tensors}
    assert ("output.weight" in found) != tied
    for name, layer in names.items():
        assert found[name].tensor_type.name == kind
        weight = dequantize(found[name].data, found[name].tensor_type)
        assert torch.equal(torch.tensor(weight), exact[f"{layer}.weight"])


def test_scales_that_do_not_fit_make_a_layer_dense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, exact = artifact(tmp_path, tiny("llama"), INTEGERS, dtype=torch.float32)
    assert main([str(folder), str(tmp_path / "a.gguf")]) == 0
    said = capsys.readouterr().out
    assert "5 layers of integers, such as model.layers.0.self_attn.q_proj, are dense" in said
    (found,) = (
        each
        for each in GGUFReader(tmp_path / "a.gguf").tensors
        if each.name == "blk.0.ffn_down.weight"
    )
    assert found.tensor_type.name == "F32"
    assert torch.equal(torch.tensor(found.data), exact[f"{BLOCK}.mlp.down_proj.weight"])


def test_biases_of_the_means_are_in_the_file(tmp_path: Path) -> None:
    """transformers does not read them, and llama.cpp does."""
    folder, _ = artifact(
        tmp_path, tiny("llama"), LOW_RANK | {f"{BLOCK}.self_attn.k_proj": 3}, bias=True
    )
    write_gguf(folder, tmp_path / "a.gguf")
    expand(folder, tmp_path / "dense")
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").state_dict()
    found = {
        each.name: torch.tensor(dequantize(each.data, each.tensor_type))
        for each in GGUFReader(tmp_path / "a.gguf").tensors
    }
    up = wanted[f"{BLOCK}.mlp.up_proj.bias"].float()
    assert torch.equal(found["blk.0.ffn_up.bias"], up)
    assert up.any()
    assert not found["blk.1.ffn_up.bias"].any()
    # Numbers that are rotated together: (0, 8), (1, 9)... of each head of 16 become neighbours.
    keys = wanted[f"{BLOCK}.self_attn.k_proj.bias"].float()
    assert found["blk.0.attn_k.bias"][:4].tolist() == keys[[0, 8, 1, 9]].tolist()


def test_llama_3_has_its_frequencies_in_the_file(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = tiny("llama", rope_parameters=rope)
    folder, _ = artifact(tmp_path, config, LOW_RANK)
    write_gguf(folder, tmp_path / "a.gguf")
    reader = GGUFReader(tmp_path / "a.gguf")
    (factors,) = (each.data for each in reader.tensors if each.name == "rope_freqs.weight")
    plain = torch.tensor([5e5 ** (-2 * pair / 16) for pair in range(8)])  # a head of 16
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    torch.testing.assert_close(plain / torch.tensor(factors), scaled)
    assert {1.0, 8.0} < set(factors.round(4).tolist())


def refusal(folder: Path) -> str:
    with pytest.raises(CannotExpand) as caught:
        write_gguf(folder, folder / "new" / "a.gguf")
    assert not (folder / "new").exists()
    return caught.value.detail


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (tiny("gpt-neox"), "this is a GPTNeoXForCausalLM: leave out --gguf"),
        (tiny("llama", hidden_act="gelu"), "'hidden_act' is 'gelu'"),
        (
            tiny(
                "llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            ),
            "rotary positions by 'dynamic'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, config: PretrainedConfig, why: str
) -> None:
    folder, _ = artifact(tmp_path, config, {})
    assert why in refusal(folder)


def test_a_base_without_room_for_biases_is_refused(tmp_path: Path) -> None:
    names = [f"{BLOCK}.self_attn.k_proj", f"{BLOCK}.self_attn.o_proj"]  # keys have biases
    folder, _ = artifact(tmp_path, tiny("qwen2"), dict.fromkeys(names, 3), bias=True)
    assert f"1 layers, such as {names[1]}, have biases" in refusal(folder)
    folder, _ = artifact(
        tmp_path / "qwen3", tiny("qwen3"), dict([*LOW_RANK.items()][:1]), bias=True
    )
    assert "no place for attention biases in a Qwen3" in refusal(folder)


def test_a_window_is_named(tmp_path: Path) -> None:
    folder, _ = artifact(tmp_path, tiny("mistral", sliding_window=8), LOW_RANK)
    (note,) = write_gguf(folder, tmp_path / "a.gguf")
    assert "sees the last 8 tokens" in note


def test_a_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = artifact(tmp_path, tiny("llama"), INTEGERS)

    def fail(_rounded: RoundedWeight) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("workers.artifact.gguf_file.blocks", fail)
    before = sorted(tmp_path.iterdir())
    assert main([str(folder), str(tmp_path / "a.gguf")]) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_exists_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = artifact(tmp_path, tiny("llama"), LOW_RANK)
    (tmp_path / "a.gguf").write_text("mine")
    assert main([str(folder), str(tmp_path / "a.gguf")]) == 1
    assert "a.gguf exists already; name a new file" in capsys.readouterr().err
    assert (tmp_path / "a.gguf").read_text() == "mine"
    assert main([]) == 2
