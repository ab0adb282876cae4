"""Gives every model one form: each compressible matrix becomes the weight of an `nn.Linear`.

Two kinds of modules store theirs differently, and `unfuse` replaces them with linear layers that
compute the same: GPT-2's `Conv1D`, whose weight is (in, out), and mixtures of experts, whose
experts' weights are stacked in two parameters ``gate_up_proj`` (E, 2I, H) and ``down_proj``
(E, H, I).

A parameter that holds such matrices is called fused here. `fused_parameters`, `separated` and
`joined` convert a model's own parameters to those of the linear layers and back.

`UNFUSING` depends only on torch: its source is copied into artifacts' modelling files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Expert(nn.Module):
    """One gated expert of a mixture, with H inputs and I hidden units."""

    def __init__(self, gate_up_proj: Tensor, down_proj: Tensor, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj = linear(gate_up_proj, None)
        self.down_proj = linear(down_proj, None)
        self.act_fn = act_fn

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        output: Tensor = self.down_proj(self.act_fn(gate) * up)
        return output


class RoutedExperts(nn.ModuleList):
    """The experts of one block; each is called with the tokens routed to it, if any."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Shapes (tokens, H), (tokens, k) and (tokens, k); the result is (tokens, H)."""
        result = torch.zeros_like(hidden_states)
        for number in sorted(set(top_k_index.flatten().tolist())):
            token, choice = torch.where(top_k_index == number)
            output = self[number](hidden_states[token]) * top_k_weights[token, choice, None]
            result.index_add_(0, token, output.to(result.dtype))
        return result


def linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer that shares the memory of `weight`, (out, in)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    layer.register_parameter("bias", bias)
    return layer


def is_conv1d(module: nn.Module) -> bool:
    """Whether the module is GPT-2's linear layer."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_experts(module: nn.Module) -> bool:
    """Whether the module is a mixture of gated experts without biases, in transformers' layout.

    transformers sets attributes on such modules that describe their layout.
    """
    marks = ("has_gate", "is_concatenated", "has_bias", "is_transposed", "has_post_expert_norm")
    return (
        sorted(name for name, _ in module.named_parameters()) == ["down_proj", "gate_up_proj"]
        and [getattr(module, mark, None) for mark in marks] == [True, True, False, False, False]
        and getattr(module._apply_gate, "__name__", "") == "_default_apply_gate"
    )


def unfuse(model: nn.Module) -> bool:
    """Replace every fused module with linear layers that share its memory; return if any was."""
    fused = [
        (path, module)
        for path, module in model.named_modules()
        if is_conv1d(module) or is_experts(module)
    ]
    for path, module in fused:
        if is_conv1d(module):
            model.set_submodule(path, linear(module.weight.T, module.bias))
        else:
            pairs = zip(module.gate_up_proj, module.down_proj, strict=True)
            experts = [Expert(up, down, module.act_fn) for up, down in pairs]
            model.set_submodule(path, RoutedExperts(experts))
    return bool(fused)


UNFUSING = (Expert, RoutedExperts, linear, is_conv1d, is_experts, unfuse)


def fused_parameters(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The names of the unfused weights for each fused parameter of a model before `unfuse`."""
    names: dict[str, tuple[str, ...]] = {}
    for path, module in model.named_modules():
        if is_conv1d(module):
            names[f"{path}.weight"] = (f"{path}.weight",)
        elif is_experts(module):
            for part, parameter in module.named_parameters():
                numbers = range(len(parameter))
                names[f"{path}.{part}"] = tuple(f"{path}.{n}.{part}.weight" for n in numbers)
    return names


def separated(parameter: Tensor) -> tuple[Tensor, ...]:
    """The weights (out, in) in a fused parameter, (E, out, in) or a Conv1D's (in, out)."""
    return parameter.unbind() if parameter.ndim == 3 else (parameter.T,)


def joined(weights: Sequence[Tensor], dimensions: int) -> Tensor:
    """The fused parameter with this number of dimensions that holds these weights."""
    return torch.stack(tuple(weights)) if dimensions == 3 else weights[0].T


def router_paths(model: nn.Module) -> set[str]:
    """The paths of the modules of an unfused model that route tokens to experts.

    A router has a weight (E, H) and the same parent module as its experts.
    """
    paths: set[str] = set()
    for path, module in model.named_modules():
        sizes = {(len(each),) for each in module.children() if isinstance(each, RoutedExperts)}
        for name, child in module.named_children():
            weight = getattr(child, "weight", None)
            if isinstance(weight, Tensor) and weight.shape[:-1] in sizes:
                paths.add(f"{path}.{name}")
    return paths
