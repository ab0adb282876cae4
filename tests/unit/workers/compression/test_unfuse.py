"""Unfused models compute the same as transformers, with linear layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GptOssConfig, MambaConfig

from tests.fixtures.models import ARCHITECTURES, tiny_llama_config, tiny_model
from workers.compression.errors import UnsupportedLayer
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.unfuse import (
    RoutedExperts,
    fused_parameters,
    joined,
    router_paths,
    separated,
    unfuse,
)

FUSED = ["gpt2", "mixtral", "qwen3-moe"]
TOKENS = torch.randint(258, (2, 12), generator=torch.Generator().manual_seed(0))


def model_of(name: str) -> Any:
    """In float64, for which transformers has its eager experts only."""
    model = tiny_model(ARCHITECTURES[name]).double()
    model.config._experts_implementation = "eager"
    return model


def logits_and_gradient(model: Any) -> tuple[Tensor, Tensor]:
    embedded = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits
    logits.square().sum().backward()
    return logits.detach(), embedded.grad


@pytest.mark.parametrize("name", FUSED)
def test_an_unfused_model_computes_the_same(name: str) -> None:
    model = model_of(name)
    expected = logits_and_gradient(model)
    assert unfuse(model)
    torch.testing.assert_close(logits_and_gradient(model), expected, rtol=1e-12, atol=1e-12)
    layers = compressible_layers(model)
    assert all(type(model.get_submodule(layer.name)) is nn.Linear for layer in layers)
    assert not unfuse(model)


@pytest.mark.parametrize("name", FUSED)
def test_unfusing_takes_no_memory(name: str) -> None:
    model = model_of(name)
    before = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    unfuse(model)
    assert {tensor.untyped_storage().data_ptr() for tensor in model.parameters()} == before


@pytest.mark.parametrize("name", FUSED)
def test_parameters_are_separated_and_joined_by_name(name: str) -> None:
    model = model_of(name)
    fused, before = fused_parameters(model), dict(model.state_dict())
    unfuse(model)
    after = model.state_dict()
    for parameter, names in fused.items():
        weights = separated(before[parameter])
        assert len(weights) == len(names)
        assert all(torch.equal(after[n], w) for n, w in zip(names, weights, strict=True))
        assert torch.equal(joined(weights, before[parameter].ndim), before[parameter])
    assert set(after) - set(before) <= {name for names in fused.values() for name in names}


def test_a_model_of_linear_layers_is_left_alone() -> None:
    model = tiny_model(tiny_llama_config())
    assert not unfuse(model)
    assert not fused_parameters(model)
    assert not router_paths(model)


def test_an_expert_without_tokens_is_not_called() -> None:
    model = model_of("mixtral")
    unfuse(model)
    experts = model.model.layers[0].mlp.experts
    assert isinstance(experts, RoutedExperts)
    called: list[tuple[int, int]] = []
    for number, expert in enumerate(experts):
        expert.register_forward_hook(
            lambda _module, args, _output, number=number: called.append((number, len(args[0])))
        )
    states, index = torch.ones(3, 32, dtype=torch.float64), torch.tensor([[2, 0], [2, 3], [0, 2]])
    experts(states, index, torch.full((3, 2), 0.5, dtype=torch.float64))
    assert called == [(0, 2), (2, 3), (3, 1)]


def test_every_layer_of_an_expert_has_its_own_input_even_if_no_token_reaches_it() -> None:
    model = model_of("qwen3-moe")
    unfuse(model)
    layers = compressible_layers(model)
    groups = input_groups(model, layers)
    experts = [group for group in groups if ".experts." in group.name]
    assert len(experts) == 2 * 4 * 2
    assert {len(group.layers) for group in experts} == {1}
    assert [layer for group in groups for layer in group.layers] == list(layers)


def test_the_router_stays_dense() -> None:
    model = model_of("mixtral")
    unfuse(model)
    assert router_paths(model) == {f"model.layers.{block}.mlp.gate" for block in range(2)}
    assert not any(layer.name.endswith("gate") for layer in compressible_layers(model))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            GptOssConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                num_local_experts=2,
                num_experts_per_tok=1,
                pad_token_id=0,
            ),
            r"layers\.0\.mlp\.router is a GptOssTopKRouter",
        ),
        (
            MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4),
            r"layers\.0\.mixer is a MambaMixer",
        ),
    ],
    ids=["experts of another layout", "state space"],
)
def test_matrices_of_another_kind_are_refused_by_name(config: Any, message: str) -> None:
    model = tiny_model(config)
    unfuse(model)
    with pytest.raises(UnsupportedLayer, match=message):
        compressible_layers(model)


def test_experts_that_compute_something_else_are_not_taken_for_known_ones() -> None:
    model = model_of("mixtral")
    experts = model.model.layers[1].mlp.experts
    experts._apply_gate = lambda states: states
    unfuse(model)
    with pytest.raises(UnsupportedLayer, match=r"model\.layers\.1\.mlp\.gate is a Mixtral"):
        compressible_layers(model)
