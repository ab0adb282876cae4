"""A GGUF file becomes the model that it holds, or is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from service.errors import ModelInvalid
from tests.fixtures.gguf_files import write_llama
from workers.model.gguf_conversion import PARAM, convert_gguf


def test_every_number_of_the_file_is_in_the_model(tmp_path: Path) -> None:
    gguf = write_llama(tmp_path / "model.gguf")
    convert_gguf(gguf, tmp_path / "folder")
    tensors = load_file(tmp_path / "folder" / "model.safetensors")
    stored = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(gguf).tensors}
    assert len(tensors) == len(stored)
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("lm_head.weight", "output.weight"),
    ):
        assert torch.equal(tensors[ours], stored[theirs])


def test_without_an_output_head_it_is_tied(tmp_path: Path) -> None:
    convert_gguf(write_llama(tmp_path / "model.gguf", left_out="output.weight"), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert "model.embed_tokens.weight" in tensors


def refusal(gguf: Path) -> str:
    with pytest.raises(ModelInvalid) as caught:
        convert_gguf(gguf, gguf.parent / "folder")
    assert caught.value.param == PARAM
    assert not (gguf.parent / "folder").exists()
    return caught.value.detail


@pytest.mark.parametrize("name", ["blk.0.ffn_up.weight", "token_embd.weight"])
def test_a_missing_tensor_is_refused_and_never_random(tmp_path: Path, name: str) -> None:
    assert "lacks 1 weights" in refusal(write_llama(tmp_path / "model.gguf", left_out=name))


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.1.attn_norm.weight"]
)
def test_a_tensor_that_transformers_does_not_read_is_refused(tmp_path: Path, name: str) -> None:
    gguf = write_llama(tmp_path / "model.gguf", added={name: 32})
    assert f"holds '{name}', which transformers does not read" in refusal(gguf)


def test_a_model_that_is_far_larger_than_its_file_is_never_allocated(tmp_path: Path) -> None:
    gguf = write_llama(tmp_path / "model.gguf")
    value = struct.pack("<II", 4, 64)
    key = b"llama.feed_forward_length"
    assert gguf.read_bytes().count(key + value) == 1
    gguf.write_bytes(gguf.read_bytes().replace(key + value, key + struct.pack("<II", 4, 2**31)))
    assert "describes a model of 206158" in refusal(gguf)


def test_positions_that_transformers_would_not_scale_are_refused(tmp_path: Path) -> None:
    gguf = write_llama(tmp_path / "model.gguf", llama_rope_scaling_type="yarn")
    assert "'llama.rope.scaling.type' is 'yarn'" in refusal(gguf)


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    gguf = write_llama(tmp_path / "model.gguf")
    gguf.write_bytes(gguf.read_bytes()[:-1000])
    assert refusal(gguf).startswith("model.gguf is truncated or damaged: fetch it again")
