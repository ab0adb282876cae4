"""The shapes of a config.json are those of the model that transformers builds from it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import DeepseekV3Config, PretrainedConfig

from service.domain.costs.shapes import Group, ShapesUnknown, model_shapes
from tests.fixtures.models import ARCHITECTURES, save_tiny_model, tiny_llama_config, tiny_model
from workers.compression.layers import transformer_blocks
from workers.compression.unfuse import unfuse
from workers.model.blocks import traced_groups

OTHERS = {"opt", "gpt2", "gpt-neox"}
LATENT = DeepseekV3Config(
    vocab_size=258,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    intermediate_size=80,
    moe_intermediate_size=24,
    n_routed_experts=4,
    n_shared_experts=2,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
    n_group=2,
    topk_group=1,
    q_lora_rank=12,
    kv_lora_rank=20,
    qk_rope_head_dim=4,
    qk_nope_head_dim=8,
    v_head_dim=10,
)
KNOWN: dict[str, PretrainedConfig] = {
    name: config for name, config in ARCHITECTURES.items() if name not in OTHERS
} | {
    "llama with biases": tiny_llama_config(attention_bias=True, mlp_bias=True),
    "llama untied": tiny_llama_config(tie_word_embeddings=False),
    "qwen3-moe in part": ARCHITECTURES["qwen3-moe"].__class__(
        **ARCHITECTURES["qwen3-moe"].to_dict() | {"mlp_only_layers": [0]}
    ),
    "deepseek-v3": LATENT,
}


def written(config: PretrainedConfig, folder: Path) -> dict[str, Any]:
    """The config.json of a model."""
    save_tiny_model(folder, config)
    read: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return read


def shape(group: Any) -> tuple[tuple[int, int, bool], ...]:
    if isinstance(group, Group):
        return tuple((each.outputs, each.inputs, each.bias) for each in group.layers)
    return tuple((each.out_features, each.in_features, each.has_bias) for each in group.layers)


@pytest.mark.parametrize("name", KNOWN)
def test_groups_are_those_that_tracing_finds(name: str, tmp_path: Path) -> None:
    model = model_shapes(written(KNOWN[name], tmp_path))
    traced = traced_groups(tmp_path)
    for number, block in enumerate(model.blocks):
        found = Counter({shape(group): 0 for group in block.groups})
        for group in block.groups:
            found[shape(group)] += group.copies
        in_block = [group for group in traced if f"layers.{number}." in group.name]
        assert found == Counter(map(shape, in_block))
        for one in in_block:
            (same,) = {each for each in block.groups if shape(each) == shape(one)}
            assert same.keeps_outputs == one.keeps_outputs
    assert len(traced) == sum(group.copies for block in model.blocks for group in block.groups)


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_are_counted_exactly(name: str, tmp_path: Path) -> None:
    model = model_shapes(written(KNOWN[name], tmp_path))
    real = tiny_model(KNOWN[name])
    unfuse(real)
    _, blocks = transformer_blocks(real)
    assert model.parameters == sum(each.numel() for each in real.parameters())
    assert [block.parameters for block in model.blocks] == [
        sum(math.prod(each.shape) for each in block.parameters()) for block in blocks
    ]


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_other_architectures_are_named(name: str, tmp_path: Path) -> None:
    config = written(ARCHITECTURES[name], tmp_path)
    with pytest.raises(ShapesUnknown, match=f"model_type '{config['model_type']}' are not known"):
        model_shapes(config)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama", "num_key_value_heads"),
        ("llama", "intermediate_size"),
        ("llama", "dtype"),
        ("qwen3", "head_dim"),
        ("qwen3-moe", "num_local_experts"),
        ("deepseek-v3", "q_lora_rank"),
    ],
)
def test_what_is_not_said_is_not_guessed(name: str, key: str, tmp_path: Path) -> None:
    config = written(KNOWN[name], tmp_path)
    del config[key]
    config.pop("n_routed_experts", None)
    expected = "n_routed_experts" if key == "num_local_experts" else key
    with pytest.raises(ShapesUnknown, match=f"'{expected}'"):
        model_shapes(config)
