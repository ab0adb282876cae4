"""IMPACT as in a plain research script, the baseline for the product's speed.

Every layer has statistics of its own, (in, in). The backward pass computes the gradients of all
weights. Every layer is factorised by a singular value decomposition of L W R.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workers.compression.shapes import LinearLayer


@dataclass
class PlainStatistics:
    """The sums over tokens for one layer."""

    total: Tensor  # (in,)
    products: Tensor  # (in, in): of x xᵀ
    gradient_squares: Tensor  # (out,)
    tokens: int = 0

    @classmethod
    def zeros(cls, layer: LinearLayer, dtype: torch.dtype, device: torch.device) -> PlainStatistics:
        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        inner, out = layer.in_features, layer.out_features
        return cls(empty(inner), empty(inner, inner), empty(out))


def calibrate(model: Any, statistics: dict[str, PlainStatistics], input_ids: Tensor) -> float:
    """Run one batch with the gradients of all weights; return the mean loss."""
    model.requires_grad_(True)
    with ExitStack() as hooks:
        for name, sums in statistics.items():
            hook = _hook(sums)
            hooks.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
        loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def _hook(sums: PlainStatistics) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        rows = args[0].detach().flatten(0, -2).float()
        sums.total += rows.sum(0)
        sums.products += rows.T @ rows
        sums.tokens += len(rows)

        def backward(gradient: Tensor) -> None:
            sums.gradient_squares += gradient.flatten(0, -2).float().square().sum(0)

        output.register_hook(backward)  # type: ignore[no-untyped-call]

    return hook


def root(covariance: Tensor) -> Tensor:
    """S^(1/2), symmetric, (in, in) float64."""
    values, vectors = torch.linalg.eigh(covariance)
    return torch.as_tensor(vectors * values.clamp_min(0).sqrt() @ vectors.T)


def solve(
    weights: Sequence[Tensor], importances: Sequence[Tensor], covariance: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """U, the squared singular values and Vᵀ of L W R for the layers of one input, in float64."""
    right = root(covariance)
    solved = []
    for weight, importance in zip(weights, importances, strict=True):
        left = importance.sqrt()
        weighted = left[:, None] * weight.double() @ right
        u, singular, v = torch.linalg.svd(weighted, full_matrices=False)
        solved.append((u, singular.square(), v))
    return solved
