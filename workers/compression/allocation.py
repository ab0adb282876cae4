"""Chooses how many parameters each layer may keep.

The spectra of all layers are in the same unit, the loss's square, so their eigenvalues are
comparable. Given a budget, minimise the sum of dropped eigenvalues subject to the sum of costs:
for a multiplier λ each layer independently takes the rank, or stays dense, with the least
error + λ · cost. Those choices are the corners of the layers' lower convex hulls, so the smallest λ
that meets a budget is among their slopes. The rest of the budget is spent greedily. Pure functions
on plain data.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heapify, heappop, heappush

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from workers.compression.candidates import (
    LayerCandidates,
    least_cost,
    total_cost,
    total_error,
)
from workers.compression.errors import BudgetTooSmall

LAYERS_AT_ONCE = 256
"""The options of this many layers fit into memory and, mostly, into cache."""

Allocate = Callable[[int], dict[str, int | None]]
"""Maps a budget in parameters to the ranks of all layers. Raises BudgetTooSmall."""


def allocate_uniform(layers: Sequence[LayerCandidates], budget: int) -> dict[str, int | None]:
    """Keep the same fraction of every layer, rounded down to a rank it can have, as SVD-LLM does.

    Raises BudgetTooSmall if the lowest ranks cost more than `budget` parameters.
    """
    _check_budget(layers, budget)
    reducible = [layer for layer in layers if layer.max_rank]
    dense = sum(layer.dense_cost for layer in layers if not layer.max_rank)
    keep = (budget - dense) / max(1, sum(layer.dense_cost for layer in reducible))

    def rank(layer: LayerCandidates) -> int | None:
        if not layer.max_rank:
            return None
        possible = range(layer.tile, layer.max_rank + 1, layer.tile)
        affordable = bisect_right(possible, keep * layer.dense_cost, key=layer.cost)
        return possible[max(affordable, 1) - 1]

    ranks: dict[str, int | None] = {layer.name: rank(layer) for layer in layers}
    if total_cost(layers, ranks) > budget:  # the lowest rank exceeds the share of some layers
        return _shrunk(layers, ranks, budget)
    return ranks


class ConvexHulls:
    """The lower convex hulls of all layers' errors over their costs, which serve every budget.

    A corner of a layer's hull is the choice, a rank or dense, for some multiplier. A step leads
    from one corner to the next. The steps of all layers are sorted once, by the error that each
    saves per parameter; a budget takes as many of the first steps as it can pay for.
    """

    def __init__(self, layers: Sequence[LayerCandidates]) -> None:
        self._layers = layers
        steps = [
            _hull_steps(layers[first : first + LAYERS_AT_ONCE], first)
            for first in range(0, len(layers), LAYERS_AT_ONCE)
        ]
        saved = torch.cat([each.saved for each in steps])
        # Positive floats sort as their bits do, which is faster; stable within a layer.
        order = saved.view(torch.int64).neg().argsort(stable=True)
        self._layer = torch.cat([each.layer for each in steps])[order]
        self._option = torch.cat([each.option for each in steps])[order]
        self._costs = torch.cat([each.cost for each in steps])[order].cumsum(0)

    def allocate(self, budget: int) -> dict[str, int | None]:
        """The ranks that drop the least energy within `budget` parameters.

        They are never worse than `allocate_uniform`, whose result is taken if rounding favours it.
        Raises BudgetTooSmall if the lowest ranks cost more than `budget` parameters.
        """
        _check_budget(self._layers, budget)
        taken = int(torch.searchsorted(self._costs, budget - least_cost(self._layers), right=True))
        options = torch.zeros(len(self._layers), dtype=torch.int64).scatter_reduce(
            0, self._layer[:taken], self._option[:taken], "amax"
        )
        ranks = {
            layer.name: rank if (rank := (option + 1) * layer.tile) <= layer.max_rank else None
            for layer, option in zip(self._layers, options.tolist(), strict=True)
        }
        return min(
            (_spend(self._layers, ranks, budget), allocate_uniform(self._layers, budget)),
            key=lambda ranks: total_error(self._layers, ranks),
        )


@dataclass(frozen=True)
class _Steps:
    """Steps between neighbouring corners of hulls, (steps,) each, in order within a layer."""

    layer: Tensor  # int64: its position among all layers
    option: Tensor  # int64, where the step ends: a rank's position among the layer's, or the next
    cost: Tensor  # int64, in parameters
    saved: Tensor  # float64: error saved per parameter


def _hull_steps(layers: Sequence[LayerCandidates], first: int) -> _Steps:
    """All steps that save any error; `first` is the position of the first layer.

    A layer's options are its ranks, ascending, then dense. Costs grow along them.
    """
    tiles = torch.tensor([[layer.tile] for layer in layers])  # (layers, 1)
    last = torch.tensor([[layer.max_rank // layer.tile] for layer in layers])  # likewise: dense
    width = int(last.max()) + 1
    option = torch.arange(width)
    shapes: dict[tuple[object, ...], Tensor] = {}
    costs = torch.stack([_costs(layer, width, shapes) for layer in layers])
    spectra = pad_sequence([layer.spectrum.cpu() for layer in layers], batch_first=True)
    dropped = spectra.flip(1).cumsum(1).flip(1)  # [:, r]: the sum from r on, the error of rank r
    ranks = ((option + 1) * tiles).clamp(max=dropped.shape[1])
    errors = pad(dropped, (0, 1)).gather(1, ranks).masked_fill(option >= last, 0)
    # The hull's last step leads to dense, from the option for which it is least steep.
    steepness = (errors / (costs.gather(1, last) - costs)).masked_fill(option >= last, math.inf)
    left = steepness.argmin(1, keepdim=True)
    ends = (option == 0) | (option == last)
    where = ((option <= left) | ends).flatten().nonzero()[:, 0]
    options = (where, *(each.flatten().take(where) for each in (costs, errors, ends)))
    while True:
        where, costs, errors, ends = options
        saved = errors.diff() / costs.diff()  # negated; meaningless between two layers
        corner = ends.clone()
        corner[1:-1] |= saved[:-1] < saved[1:]
        if corner.all():
            break
        # An option on or above the line between its neighbours is no corner; remove all of these.
        remaining = corner.nonzero()[:, 0]
        options = tuple(each.index_select(0, remaining) for each in options)
    useful = 1 + ((where[1:] % width > 0) & (saved < 0)).nonzero()[:, 0]
    return _Steps(
        where[useful] // width + first,
        where[useful] % width,
        (costs[useful] - costs[useful - 1]).long(),
        -saved[useful - 1],
    )


def _costs(layer: LayerCandidates, width: int, shapes: dict[tuple[object, ...], Tensor]) -> Tensor:
    """The costs of the layer's ranks, then of dense, (width,) float64; cached by shape."""
    shape = (
        layer.max_rank,
        layer.tile,
        layer.dense_cost,
        layer.sides,
        layer.fixed_cost,
        layer.storage,
    )
    if shape not in shapes:
        ranks = torch.arange(1, width + 1, dtype=torch.float64) * layer.tile
        costs = layer.fixed_cost + layer.storage.parameters(ranks, layer.sides)
        costs[layer.max_rank // layer.tile :] = layer.dense_cost
        shapes[shape] = costs
    return shapes[shape]


def _spend(
    layers: Sequence[LayerCandidates], ranks: dict[str, int | None], budget: int
) -> dict[str, int | None]:
    """Spend the rest of the budget, one tile at a time, where it saves most per parameter."""
    left = budget - total_cost(layers, ranks)

    def gain(position: int) -> tuple[float, int, int] | None:
        """The negated error that one more tile saves per parameter, the layer, the price."""
        layer = layers[position]
        rank = ranks[layer.name]
        if rank is None or rank >= layer.max_rank:
            return None
        more = rank + layer.tile
        price = layer.cost(more) - layer.cost(rank)
        return -float(layer.spectrum[rank:more].sum()) / price, position, price

    gains = [found for position in range(len(layers)) if (found := gain(position))]
    heapify(gains)
    while gains:
        _, position, price = heappop(gains)
        if price <= left:  # otherwise the layer stays too expensive
            layer = layers[position]
            ranks[layer.name] = (ranks[layer.name] or 0) + layer.tile
            left -= price
            if found := gain(position):
                heappush(gains, found)
    return ranks


def _shrunk(
    layers: Sequence[LayerCandidates], ranks: dict[str, int | None], budget: int
) -> dict[str, int | None]:
    """Take ranks from the largest layers until the budget is met."""

    def spare(layer: LayerCandidates) -> int:
        return (ranks[layer.name] or layer.tile) - layer.tile

    while total_cost(layers, ranks) > budget:
        largest = max(layers, key=spare)
        ranks[largest.name] = spare(largest)
    return ranks


def _check_budget(layers: Sequence[LayerCandidates], budget: int) -> None:
    least = least_cost(layers)
    if budget < least:
        raise BudgetTooSmall(
            f"a budget of {budget} parameters is less than the {least} of the lowest ranks"
        )


def global_allocation(layers: Sequence[LayerCandidates]) -> Allocate:
    """Allocate ranks over all layers together: see `ConvexHulls`."""
    return ConvexHulls(layers).allocate


def uniform_allocation(layers: Sequence[LayerCandidates]) -> Allocate:
    """Keep the same fraction of every layer: see `allocate_uniform`."""
    return partial(allocate_uniform, layers)


ALLOCATIONS = {"global": global_allocation, "uniform": uniform_allocation}
