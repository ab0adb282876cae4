"""How vLLM loads low-rank layers: multiplied out, if that is faster.

vLLM has its own linear layers in the places of torch's, and joins those of equal inputs, if all
are dense and have biases or none has. So a layer that is faster dense is a dense layer from the
start; its weight is made while vLLM reads the checkpoint. These functions are copied into every
artifact's modelling file, which must not import vLLM: transformers would ask for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from workers.compression.lowrank import is_faster_dense, multiplied_out


def is_served_by_vllm() -> bool:
    """Whether vLLM is building the model. Raises ValueError if it would split layers."""
    vllm = sys.modules.get("vllm.distributed.parallel_state")
    if not (vllm and vllm.model_parallel_is_initialized()):
        return False
    if vllm.get_tensor_model_parallel_world_size() > 1:
        raise ValueError("low-rank layers cannot be split: leave tensor_parallel_size at 1")
    return True


def prepare_for_vllm(base: Any, parents: Iterable[str]) -> None:
    """Let vLLM join the dense layers of these modules, and load products for them."""
    given = []
    for path in parents:
        parent = base.get_submodule(path)
        dense = {name: each for name, each in parent.named_children() if type(each) is nn.Linear}
        without = [name for name, layer in dense.items() if layer.bias is None]
        if len(without) == len(dense):
            continue
        for name in without:  # the bias becomes zero
            setattr(parent, name, nn.Linear(dense[name].in_features, dense[name].out_features))
            given.append(f"{path}.")
    base.load_weights = partial(load_products, base, tuple(given))


def load_products(
    base: Any, given: tuple[str, ...], weights: Iterable[tuple[str, Tensor]]
) -> set[str]:
    """Load the base model's weights as vLLM does; returns their names. vLLM calls this.

    `given` are the prefixes of modules in which layers have got biases. Raises ValueError if vLLM
    would leave out a bias.
    """
    for name, parameter in base.named_parameters():
        if name.startswith(given) and name.endswith(".bias"):
            nn.init.zeros_(parameter)
    found = []

    def noted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in products(weights):
            found.append(name)
            yield name, tensor

    loader = sys.modules["vllm.model_executor.models.utils"].AutoWeightsLoader(base)
    loaded: set[str] = loader.load_weights(noted())
    if lost := [name for name in found if name.endswith(".bias") and name not in loaded]:
        raise ValueError(
            f"vLLM has no place for '{lost[0]}': serve what `eigenpress expand` makes of the model"
        )
    biases = (name for name, _ in base.named_parameters() if name.endswith(".bias"))
    return loaded.union(name for name in biases if name.startswith(given))


def products(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same weights, but instead of factors their product, where that is faster."""
    factors = "basis.weight", "rest.weight", "order"
    layers: dict[tuple[str, object], dict[str, Tensor]] = {}
    for name, tensor in weights:
        factor = next((each for each in factors if name.endswith(f".{each}")), None)
        if factor is None:
            yield name, tensor
            continue
        layer = name.removesuffix(f".{factor}")
        shard = getattr(tensor, "shard_id", None)  # vLLM's name for a part of a joined layer
        found = layers.setdefault((layer, shard), {})
        found[factor] = tensor
        if len(found) < len(factors):
            continue
        basis, rest, order = (found[each] for each in factors)
        if is_faster_dense(basis.shape[1], len(order), len(basis), joined=True):
            weight = multiplied_out(basis, rest, order)
            if shard is not None:
                weight.shard_id = shard  # type: ignore[attr-defined]
            yield f"{layer}.weight", weight
        else:
            yield from ((f"{layer}.{each}", found[each]) for each in factors)
        del layers[layer, shard]
