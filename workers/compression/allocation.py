"""How many parameters each layer may keep.

The spectra of all layers are in the same unit, the loss's square, so their eigenvalues compare.
Given a budget, minimise the sum of dropped eigenvalues subject to the sum of costs: for a
multiplier λ each layer on its own picks the rank, or stays dense, at the least error + λ · cost;
bisection finds the smallest λ that meets the budget, and what is left of the budget is spent
greedily. Pure functions on plain data.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch

from workers.compression.candidates import (
    LayerCandidates,
    least_cost,
    total_cost,
    total_error,
)
from workers.compression.errors import BudgetTooSmall

BISECTIONS = 100


def allocate_uniform(layers: Sequence[LayerCandidates], budget: int) -> dict[str, int | None]:
    """The same fraction of every layer, rounded down to a whole rank; what SVD-LLM does.

    Raises BudgetTooSmall if rank 1 everywhere costs more than `budget` parameters.
    """
    _check_budget(layers, budget)
    reducible = [layer for layer in layers if layer.max_rank]
    dense = sum(layer.dense_cost for layer in layers if not layer.max_rank)
    keep = (budget - dense) / max(1, sum(layer.dense_cost for layer in reducible))

    def rank(layer: LayerCandidates) -> int | None:
        if not layer.max_rank:
            return None
        affordable = bisect_right(
            range(1, layer.max_rank + 1), keep * layer.dense_cost, key=layer.cost
        )
        return max(affordable, 1)

    ranks: dict[str, int | None] = {layer.name: rank(layer) for layer in layers}
    if total_cost(layers, ranks) > budget:  # layers too small for their share took rank 1
        return _shrunk(layers, ranks, budget)
    return ranks


def allocate_global(layers: Sequence[LayerCandidates], budget: int) -> dict[str, int | None]:
    """The ranks that drop the least energy within `budget` parameters, by a Lagrange multiplier.

    Never worse than `allocate_uniform`, whose result is taken where rounding favours it.
    Raises BudgetTooSmall if rank 1 everywhere costs more than `budget` parameters.
    """
    _check_budget(layers, budget)
    curves = [_Curve(layer) for layer in layers]

    def pick(multiplier: float) -> dict[str, int | None]:
        return {curve.layer.name: curve.best(multiplier) for curve in curves}

    affordable, scarce = 0.0, 1.0
    while total_cost(layers, pick(scarce)) > budget:
        affordable, scarce = scarce, scarce * 16
    for _ in range(BISECTIONS):
        middle = (affordable + scarce) / 2
        if total_cost(layers, pick(middle)) > budget:
            affordable = middle
        else:
            scarce = middle
    chosen = _spend(layers, pick(scarce), budget)
    return min(
        (chosen, allocate_uniform(layers, budget)), key=lambda ranks: total_error(layers, ranks)
    )


class _Curve:
    """Error and cost of every option of a layer, as tensors: ranks 1 to max_rank, then dense."""

    def __init__(self, layer: LayerCandidates) -> None:
        self.layer = layer
        kept = layer.spectrum.cumsum(0)[: layer.max_rank]
        dropped = (layer.spectrum.sum() - kept).clamp_min(0)
        ranks = torch.arange(1, layer.max_rank + 1, dtype=torch.float64)
        self.errors = torch.cat([dropped.cpu(), torch.zeros(1, dtype=torch.float64)])
        self.costs = torch.cat(
            [
                layer.fixed_cost + layer.storage.parameters(ranks, layer.sides),
                torch.tensor([layer.dense_cost], dtype=torch.float64),
            ]
        )

    def best(self, multiplier: float) -> int | None:
        option = int(torch.argmin(self.errors + multiplier * self.costs))
        return None if option == self.layer.max_rank else option + 1


def _spend(
    layers: Sequence[LayerCandidates], ranks: dict[str, int | None], budget: int
) -> dict[str, int | None]:
    """Spend what is left of the budget, one rank at a time, where it saves most per parameter."""
    left = budget - total_cost(layers, ranks)
    while True:
        gains = [
            (float(layer.spectrum[rank]) / price, price, layer)
            for layer in layers
            if (rank := ranks[layer.name]) is not None
            and rank < layer.max_rank
            and (price := layer.cost(rank + 1) - layer.cost(rank)) <= left
        ]
        if not gains:
            return ranks
        _, price, layer = max(gains, key=lambda gain: gain[0])
        ranks[layer.name] = (ranks[layer.name] or 0) + 1
        left -= price


def _shrunk(
    layers: Sequence[LayerCandidates], ranks: dict[str, int | None], budget: int
) -> dict[str, int | None]:
    """Take ranks from the largest layers until the budget is met."""
    while total_cost(layers, ranks) > budget:
        largest = max(layers, key=lambda layer: ranks[layer.name] or 0)
        ranks[largest.name] = (ranks[largest.name] or 0) - 1
    return ranks


def _check_budget(layers: Sequence[LayerCandidates], budget: int) -> None:
    least = least_cost(layers)
    if budget < least:
        raise BudgetTooSmall(
            f"a budget of {budget} parameters is less than the {least} that rank 1 takes everywhere"
        )


ALLOCATIONS = {"global": allocate_global, "uniform": allocate_uniform}
