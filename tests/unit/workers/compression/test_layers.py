"""Layers are found, grouped or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPTNeoXConfig, OPTConfig, Qwen2Config

from tests.fixtures.models import tiny_llama_config, tiny_model
from workers.compression.errors import UnsupportedLayer
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.shapes import InputGroup, LinearLayer


def llama(**changes: Any) -> Any:
    return tiny_model(tiny_llama_config(**changes))


def test_every_matrix_of_the_blocks_is_found() -> None:
    layers = compressible_layers(llama(attention_bias=True))
    assert len(layers) == 2 * 7
    by_name = {layer.name: layer for layer in layers}
    assert by_name["model.layers.0.self_attn.k_proj"] == LinearLayer(
        "model.layers.0.self_attn.k_proj", 16, 32, True
    )
    down = by_name["model.layers.1.mlp.down_proj"]
    assert (down.out_features, down.in_features, down.has_bias) == (32, 80, False)
    assert down.parameters == 32 * 80
    assert not any("lm_head" in name or "embed" in name for name in by_name)


def test_layers_are_grouped_by_the_input_they_share() -> None:
    model = llama()
    groups = input_groups(model, compressible_layers(model))
    parts = [[layer.name.rsplit(".", 1)[1] for layer in group.layers] for group in groups]
    assert parts == 2 * [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


def test_moments_are_kept_on_the_smaller_side() -> None:
    model = llama()
    kept = {
        group.name: group.keeps_outputs for group in input_groups(model, compressible_layers(model))
    }
    assert [name for name, outputs in kept.items() if outputs] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
    ]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4), 12),
        (
            GPTNeoXConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
            ),
            8,
        ),
        (
            Qwen2Config(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
            ),
            14,
        ),
    ],
    ids=["opt", "gpt_neox", "qwen2"],
)
def test_other_architectures_of_linear_layers_are_found_too(config: Any, count: int) -> None:
    config.vocab_size, config.pad_token_id = 64, 0
    model = tiny_model(config)
    layers = compressible_layers(model)
    assert len(layers) == count
    assert sum(len(group.layers) for group in input_groups(model, layers)) == count


def test_a_matrix_of_another_kind_is_refused_by_name() -> None:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64)
    with pytest.raises(UnsupportedLayer, match=r"transformer\.h\.0\.attn\.c_attn is a Conv1D"):
        compressible_layers(tiny_model(config))


class Scaled(nn.Linear):
    """A linear layer that does something more."""


def test_a_subclass_of_linear_is_refused_since_it_may_compute_something_else() -> None:
    model = llama()
    model.model.layers[1].mlp.up_proj = Scaled(32, 80, bias=False)
    with pytest.raises(UnsupportedLayer, match=r"model\.layers\.1\.mlp\.up_proj is a Scaled"):
        compressible_layers(model)


def test_a_shared_weight_is_refused() -> None:
    model = llama()
    first, second = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    with pytest.raises(UnsupportedLayer, match="shares its weight with"):
        compressible_layers(model)


def test_blocks_that_cannot_be_told_are_refused() -> None:
    model = llama()
    model.other_blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    with pytest.raises(UnsupportedLayer, match="its 2 blocks in 2 module lists"):
        compressible_layers(model)


def test_a_layer_that_is_not_called_is_refused() -> None:
    model = llama()
    model.model.layers[0].mlp.idle = nn.Linear(4, 4)
    layers = compressible_layers(model)
    with pytest.raises(UnsupportedLayer, match=r"mlp\.idle is called 0 times"):
        input_groups(model, layers)


def test_a_layer_that_is_called_twice_is_refused() -> None:
    model = llama()
    attention = model.model.layers[0].self_attn

    def twice(module: nn.Module, _args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        module.q_proj(kwargs["hidden_states"])  # type: ignore[operator]

    attention.register_forward_pre_hook(twice, with_kwargs=True)
    with pytest.raises(UnsupportedLayer, match=r"q_proj is called 2 times"):
        input_groups(model, compressible_layers(model))


def test_a_block_that_is_not_given_what_the_block_before_returns_is_refused() -> None:
    model = llama()
    model.model.layers[1].register_forward_pre_hook(lambda _module, args: (args[0] + 0, *args[1:]))
    with pytest.raises(UnsupportedLayer, match=r"model\.layers\.1 is not given what the block"):
        input_groups(model, compressible_layers(model))


def test_a_block_that_returns_more_than_its_hidden_state_is_refused() -> None:
    model = llama()
    model.model.layers[1].register_forward_hook(lambda _module, _args, output: (output, None))
    with pytest.raises(UnsupportedLayer, match=r"model\.layers\.1 returns a tuple"):
        input_groups(model, compressible_layers(model))


def test_the_cost_of_a_group_grows_with_its_layers() -> None:
    q = LinearLayer("q", 8, 8, False)
    k = LinearLayer("k", 4, 8, False)
    assert InputGroup((q, k)).solve_operations > InputGroup((q,)).solve_operations
