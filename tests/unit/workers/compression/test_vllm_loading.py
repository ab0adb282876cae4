"""What vLLM gets to load instead of factors; `tests/serving` loads it with vLLM itself."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workers.compression.lowrank import multiplied_out
from workers.compression.vllm_loading import prepare_for_vllm, products

GENERATOR = torch.Generator().manual_seed(0)


def factors(inputs: int, outputs: int, rank: int) -> dict[str, Tensor]:
    return {
        "basis.weight": torch.randn(rank, inputs, generator=GENERATOR),
        "rest.weight": torch.randn(outputs - rank, rank, generator=GENERATOR),
        "order": torch.randperm(outputs, generator=GENERATOR).int(),
    }


def test_small_layers_are_loaded_as_products() -> None:
    layers = {"a": factors(8, 6, 3), "b": factors(8, 6, 2)}
    stored = [(f"{layer}.{name}", each) for layer in layers for name, each in layers[layer].items()]
    found = dict(products([*stored[::-2], ("c.bias", torch.ones(2)), *stored[-2::-2]]))
    assert found.keys() == {"a.weight", "b.weight", "c.bias"}
    for layer, each in layers.items():
        assert torch.equal(found[f"{layer}.weight"], multiplied_out(*each.values()))


def test_parts_of_a_joined_layer_are_kept_apart() -> None:
    parts = {"q": factors(8, 6, 3), "k": factors(8, 4, 3)}
    stored = []
    for name in ("basis.weight", "rest.weight", "order"):
        for shard, part in parts.items():
            part[name].shard_id = shard  # type: ignore[attr-defined]
            stored.append((f"qkv.{name}", part[name]))
    found = [*products(stored)]
    assert [name for name, _ in found] == ["qkv.weight"] * 2
    assert [weight.shard_id for _, weight in found] == ["q", "k"]  # type: ignore[attr-defined]
    assert [len(weight) for _, weight in found] == [6, 4]


def test_the_factors_of_large_layers_are_loaded_as_they_are() -> None:
    large = {f"a.{name}": each for name, each in factors(2048, 2048, 8).items()}
    found = dict(products(large.items()))
    assert found.keys() == large.keys()
    assert all(found[name] is each for name, each in large.items())


class Loader:
    """vLLM's, as far as it matters: it leaves out a bias that has no place."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = dict(module.named_parameters())

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded = set()
        for name, tensor in weights:
            if name in self._parameters or not name.endswith(".bias"):
                self._parameters[name].data.copy_(tensor)
                loaded.add(name)
        return loaded


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Any:
    loading = SimpleNamespace(AutoWeightsLoader=Loader)
    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.utils", loading)
    attention = nn.ModuleDict({"q": nn.Linear(8, 6), "v": nn.Linear(8, 6, bias=False)})
    return nn.ModuleDict({"attention": attention, "norm": nn.LayerNorm(8)})


def test_layers_beside_one_with_a_bias_have_a_bias_of_zero(base: Any) -> None:
    prepare_for_vllm(base, ["attention"])
    q = {f"attention.q.{name}": each for name, each in factors(8, 6, 3).items()}
    weights = {"attention.q.bias": torch.ones(6), "attention.v.weight": torch.ones(6, 8)}
    loaded = base.load_weights((q | weights).items())
    own = {f"attention.{layer}.{name}" for layer in "qv" for name in ("weight", "bias")}
    assert loaded == own  # vLLM finds that the norm is missing
    assert torch.equal(base["attention"]["q"].bias, torch.ones(6))
    assert torch.equal(base["attention"]["v"].bias, torch.zeros(6))


def test_a_bias_without_a_place_is_refused(base: Any) -> None:
    prepare_for_vllm(base, ["attention"])
    with pytest.raises(ValueError, match=r"no place for 'experts.bias'.*eigenpress expand"):
        base.load_weights([("experts.bias", torch.ones(3))])


def test_a_missing_bias_is_not_hidden(base: Any) -> None:
    base["attention"]["v"] = nn.Linear(8, 6)
    prepare_for_vllm(base, ["attention"])
    assert base.load_weights([]) == set()
