"""The format of a compressed checkpoint: pure functions on configurations and tensor names.

A compressed checkpoint is an ordinary Hugging Face folder. Each compressed layer ``L.weight``
(out, in) is stored as ``L.basis.weight`` (r, in), ``L.rest.weight`` (out − r, r) and ``L.order``
(out,), with ``L.bias`` (out,) if it has one: see `workers.compression.interpolation`.
Every other tensor has its name in the unfused model (see `workers.compression.unfuse`).
config.json carries the ranks under one key and an `auto_map` to a small generated modelling file,
which subclasses the base architecture and its base model, and needs only transformers. Layers are
replaced in the base model, which is all that vLLM's backend for transformers' models takes.

The configuration keeps the base's model type, so that transformers loads the tokenizer as the
base's, without running the modelling file or asking for permission. Its `transformers_weights`
holds an instruction instead of a file's name. So a loader that may not run the modelling file
stops, instead of loading the base architecture with random weights for the missing ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from workers.compression.candidates import SECOND_PRODUCT
from workers.compression.interpolation import Interpolation
from workers.compression.lowrank import (
    SMALL_WEIGHT,
    LowRankLinear,
    is_faster_dense,
    multiplied_out,
)
from workers.compression.rounding.grid import RoundedWeight
from workers.compression.unfuse import UNFUSING
from workers.compression.vllm_loading import (
    is_served_by_vllm,
    load_products,
    prepare_for_vllm,
    products,
)

FORMAT = 1
CONFIG_KEY = "eigenpress"
MODELING_MODULE = "modeling_eigenpress"
WEIGHTS_KEY = "transformers_weights"
WEIGHTS_REFUSAL = "load this model with trust_remote_code=True"
"""transformers refuses this as the name of a weights file, and shows it in the error."""

LAYERS = (is_faster_dense, multiplied_out, LowRankLinear)
SERVING = (is_served_by_vllm, prepare_for_vllm, load_products, products)
"""What the modelling file holds of other modules."""

_MODELING_TEMPLATE = '''"""A {base.architecture} compressed by Eigenpress.

Load it with ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)``,
or serve it with ``vllm serve folder --trust-remote-code --model-impl transformers``.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import {base.config}, {base.architecture}, {base.model}

SECOND_PRODUCT = {second_product}
SMALL_WEIGHT = {small_weight}

{code}

class Eigenpress{base.config}({base.config}):
    # In config.json this names no file, so every other class refuses to load the model.
    {weights_key} = property(lambda self: None, lambda self, value: None)

    def to_dict(self):
        return super().to_dict() | {{"{weights_key}": "{weights_refusal}"}}


class Eigenpress{base.model}({base.model}):
    config_class = Eigenpress{base.config}

    def __init__(self, config):
        super().__init__(config)
{prepare}        compress(self, config.{key}["layers"])


class Eigenpress{base.architecture}({base.architecture}):
    config_class = Eigenpress{base.config}

    def __init__(self, config):
        super().__init__(config)
{prepare}        compress(self.base_model, config.{key}["layers"])
'''


class BaseClasses(NamedTuple):
    """The names of transformers' classes that an artifact's classes extend."""

    architecture: str  # such as LlamaForCausalLM
    model: str  # LlamaModel
    config: str  # LlamaConfig


Replacement = Interpolation | RoundedWeight
"""What an artifact stores in place of a dense layer's weight."""


def replacement(dense: nn.Linear, rank: int | None, bias: bool) -> nn.Module:
    """The module that replaces a layer: low-rank, or dense with a bias of its own."""
    if rank is None:
        return nn.Linear(dense.in_features, dense.out_features, bias)
    return LowRankLinear(dense.in_features, dense.out_features, rank, bias)


@cache
def variant(parent: type, replaced: tuple[str, ...]) -> type:
    """A class of the same name for the parents of these replaced layers.

    vLLM joins layers of a module as it has joined those of the first module of the same class.
    """
    return type(parent.__name__, (parent,), {"__module__": parent.__module__, "low_rank": replaced})


def compress(base: Any, layers: dict[str, Any]) -> None:
    """Put the modules that replace these layers into the base model of a causal language model."""
    serving = is_served_by_vllm()
    parents: dict[str, list[str]] = {}
    for name, shape in layers.items():
        path = name.removeprefix(f"{base.base_model_prefix}.")
        parent, _, child = path.rpartition(".")
        low_rank = parents.setdefault(parent, [])
        dense, rank, bias = base.get_submodule(path), shape["rank"], shape["bias"]
        sides = dense.in_features, dense.out_features
        if serving and rank and is_faster_dense(*sides, rank, joined=True):
            rank = None
        if rank is not None:
            low_rank.append(child)
        base.set_submodule(path, replacement(dense, rank, bias))
    for path, children in parents.items():
        module = base.get_submodule(path)
        module.__class__ = variant(module.__class__, tuple(sorted(children)))
    if serving:
        prepare_for_vllm(base, parents)


def tensors(name: str, layer: Interpolation) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the compressed layer `name`, by their names in the checkpoint."""
    yield f"{name}.basis.weight", layer.basis
    yield f"{name}.rest.weight", layer.rest
    yield f"{name}.order", layer.order
    if layer.bias is not None:
        yield f"{name}.bias", layer.bias


def modeling_source(base: BaseClasses, *, unfused: bool) -> str:
    """The text of the modelling file.

    `unfused` is true if the checkpoint holds the tensors of the unfused model.
    """
    code = (*(UNFUSING if unfused else ()), *LAYERS, replacement, variant, *SERVING, compress)
    return _MODELING_TEMPLATE.format(
        base=base,
        weights_key=WEIGHTS_KEY,
        weights_refusal=WEIGHTS_REFUSAL,
        key=CONFIG_KEY,
        second_product=SECOND_PRODUCT,
        small_weight=SMALL_WEIGHT,
        prepare="        unfuse(self)\n" if unfused else "",
        code="\n\n".join(map(inspect.getsource, code)),
    )


def marked_config(
    config: Mapping[str, Any],
    base: BaseClasses,
    layers: Mapping[str, tuple[int | None, bool]],
) -> dict[str, Any]:
    """config.json with what `workers.artifact.expand` reads; for `layers` see below."""
    return {
        **config,
        "architectures": [base.architecture],
        CONFIG_KEY: {
            "format": FORMAT,
            "base_architecture": base.architecture,
            "base_model_type": config["model_type"],
            "layers": {name: {"rank": rank, "bias": bias} for name, (rank, bias) in layers.items()},
        },
    }


def compressed_config(
    config: Mapping[str, Any],
    base: BaseClasses,
    layers: Mapping[str, tuple[int | None, bool]],
) -> dict[str, Any]:
    """config.json of the compressed model; `layers` maps each layer to (rank, has bias).

    A layer with a bias and no rank is dense, and its base architecture lacks the bias.
    """
    module = MODELING_MODULE
    return {
        **marked_config(config, base, layers),
        "architectures": [f"Eigenpress{base.architecture}"],
        WEIGHTS_KEY: WEIGHTS_REFUSAL,
        "auto_map": {
            "AutoConfig": f"{module}.Eigenpress{base.config}",
            "AutoModel": f"{module}.Eigenpress{base.model}",
            "AutoModelForCausalLM": f"{module}.Eigenpress{base.architecture}",
        },
    }


def replace_layers(model: nn.Module, layers: Mapping[str, Replacement]) -> nn.Module:
    """Put the replacements of the named linear layers into an unfused model in memory."""
    for name, layer in layers.items():
        dense = model.get_submodule(name)
        if not isinstance(dense, nn.Linear):
            raise TypeError(f"{name} is a {type(dense).__name__}, not an nn.Linear")
        if isinstance(layer, RoundedWeight):
            model.set_submodule(name, _with_weight(dense, layer))
            continue
        with torch.device("meta"):  # its numbers would be drawn at random first
            module = replacement(dense, layer.rank, layer.bias is not None)
        factors = {key.removeprefix(f"{name}."): value for key, value in tensors(name, layer)}
        module.load_state_dict(
            {
                key: value.to(dense.weight if value.is_floating_point() else dense.weight.device)
                for key, value in factors.items()
            },
            assign=True,
        )
        model.set_submodule(name, module)
    return model


def _with_weight(dense: nn.Linear, rounded: RoundedWeight) -> nn.Linear:
    """A linear layer with a rounded weight and the dense layer's own bias."""
    with torch.device("meta"):
        module = nn.Linear(dense.in_features, dense.out_features, dense.bias is not None)
    weight = rounded.to(dense.weight.device).dequantized(dense.weight.dtype)
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.bias = dense.bias
    return module
