"""The allocation of ranks: never over budget, never worse than uniform, optimal where small."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.compression.allocation import (
    ALLOCATIONS,
    LAYERS_AT_ONCE,
    Allocate,
    allocate_uniform,
    global_allocation,
)
from workers.compression.candidates import (
    LayerCandidates,
    Storage,
    least_cost,
    total_cost,
    total_error,
)
from workers.compression.errors import BudgetTooSmall
from workers.compression.shapes import LinearLayer
from workers.compression.solve import break_even_rank

Allocation = Callable[[Sequence[LayerCandidates]], Allocate]


def options(
    name: str,
    out: int,
    inner: int,
    spectrum: list[float],
    *,
    bias: bool = False,
    tile: int = 1,
) -> LayerCandidates:
    layer = LinearLayer(name, out, inner, has_bias=False)
    return LayerCandidates(
        name,
        torch.tensor(sorted(spectrum, reverse=True), dtype=torch.float64),
        break_even_rank(layer, bias) // tile * tile,
        layer.parameters,
        out + inner,
        out * (1 + bias),
        tile=tile,
    )


def possible(layer: LayerCandidates) -> range:
    return range(layer.tile, layer.max_rank + 1, layer.tile)


@st.composite
def random_layers(draw: st.DrawFn) -> list[LayerCandidates]:
    layers = []
    for number in range(draw(st.integers(1, 6))):
        out, inner = draw(st.integers(4, 24)), draw(st.integers(4, 24))
        rank = min(out, inner)
        decay = draw(st.floats(0.1, 1.0))
        scale = 10.0 ** draw(st.integers(-6, 6))
        spectrum = [scale * decay**index for index in range(rank)]
        bias, tile = draw(st.booleans()), draw(st.sampled_from([1, 1, 2, 3]))
        layers.append(options(str(number), out, inner, spectrum, bias=bias, tile=tile))
    return layers


@given(layers=random_layers(), keep=st.floats(0.05, 0.99))
@settings(deadline=None)
def test_the_budget_is_kept_and_uniform_never_beaten(
    layers: list[LayerCandidates], keep: float
) -> None:
    budget = int(keep * sum(layer.dense_cost for layer in layers))
    if budget < least_cost(layers):
        for allocation in ALLOCATIONS.values():
            with pytest.raises(BudgetTooSmall):
                allocation(layers)(budget)
        return
    chosen = {name: allocation(layers)(budget) for name, allocation in ALLOCATIONS.items()}
    for ranks in chosen.values():
        assert total_cost(layers, ranks) <= budget
        for layer in layers:
            rank = ranks[layer.name]
            assert rank is None or rank in possible(layer)
    error = {name: total_error(layers, ranks) for name, ranks in chosen.items()}
    assert error["global"] <= error["uniform"]


@given(layers=random_layers(), keep=st.floats(0.2, 0.9))
@settings(deadline=None, max_examples=50)
def test_what_is_left_of_the_budget_buys_no_further_rank(
    layers: list[LayerCandidates], keep: float
) -> None:
    budget = int(keep * sum(layer.dense_cost for layer in layers))
    if budget < least_cost(layers):
        return
    ranks = global_allocation(layers)(budget)
    left = budget - total_cost(layers, ranks)
    for layer in layers:
        rank = ranks[layer.name]
        if rank is None or rank == layer.max_rank or ranks == allocate_uniform(layers, budget):
            continue
        if layer.error(rank + layer.tile) < layer.error(rank):
            assert layer.cost(rank + layer.tile) - layer.cost(rank) > left


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7, 0.9])
def test_at_the_multipliers_budgets_nothing_is_better(keep: float) -> None:
    """Against brute force; a Lagrangian solution is optimal for the budget that it spends."""
    generator = torch.Generator().manual_seed(int(keep * 10))
    layers = [
        options(str(n), 12, 10, (torch.rand(10, generator=generator) * 10**n).tolist())
        for n in range(3)
    ]
    budget = int(keep * sum(layer.dense_cost for layer in layers))
    ranks = global_allocation(layers)(budget)
    spent = total_cost(layers, ranks)
    choices = [[None, *possible(layer)] for layer in layers]
    names = [layer.name for layer in layers]
    best = min(
        total_error(layers, candidate)
        for combination in itertools.product(*choices)
        if total_cost(layers, candidate := dict(zip(names, combination, strict=True))) <= spent
    )
    # One layer's step to dense is worth several ranks, so the last step may fall short by less
    # than what the most valuable rank left out is worth.
    gap = max(float(layer.spectrum[0]) for layer in layers)
    assert best <= total_error(layers, ranks) <= best + gap


def lagrangian(layers: Sequence[LayerCandidates], budget: int) -> dict[str, int | None]:
    """The picks at the least multiplier that meets the budget, by bisection over all options."""

    def pick(multiplier: float) -> dict[str, int | None]:
        return {
            layer.name: min(
                [*possible(layer), None],
                key=lambda rank: layer.error(rank) + multiplier * layer.cost(rank),
            )
            for layer in layers
        }

    affordable, scarce = 0.0, 1e9
    for _ in range(200):
        middle = (affordable + scarce) / 2
        if total_cost(layers, pick(middle)) > budget:
            affordable = middle
        else:
            scarce = middle
    return pick(scarce)


@given(layers=random_layers(), keeps=st.lists(st.floats(0.1, 0.99), min_size=2, max_size=2))
@settings(deadline=None, max_examples=20)
def test_the_hulls_serve_every_budget_at_least_as_well_as_a_bisection_for_each(
    layers: list[LayerCandidates], keeps: list[float]
) -> None:
    allocate = global_allocation(layers)
    for keep in keeps:
        budget = int(keep * sum(layer.dense_cost for layer in layers))
        if budget >= least_cost(layers):
            bisected = total_error(layers, lagrangian(layers, budget))
            assert total_error(layers, allocate(budget)) <= bisected * (1 + 1e-12)


def test_more_layers_than_are_reduced_at_once_are_allotted_together() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [
        options(str(n), 6 + n % 3, 5, (torch.rand(5, generator=generator) * (1 + n % 7)).tolist())
        for n in range(2 * LAYERS_AT_ONCE + 3)
    ]
    budget = int(0.6 * sum(layer.dense_cost for layer in layers))
    bisected = lagrangian(layers, budget)
    ranks = global_allocation(layers)(budget)
    assert total_error(layers, ranks) <= total_error(layers, bisected)
    # What is left of the budget, less than one step, makes all the difference.
    assert sum(ranks[layer.name] != bisected[layer.name] for layer in layers) <= 3


def test_a_layer_whose_directions_all_matter_stays_dense() -> None:
    flat = options("flat", 16, 16, [1.0] * 16)
    steep = options("steep", 16, 16, [2.0**-index for index in range(16)])
    ranks = global_allocation([flat, steep])(int(0.7 * 512))
    assert ranks["flat"] is None
    assert ranks["steep"] is not None


def test_uniform_gives_every_layer_its_share() -> None:
    layers = [options("a", 40, 40, [1.0] * 40), options("b", 40, 120, [9.0] * 40)]
    ranks = allocate_uniform(layers, int(0.5 * (1600 + 4800)))
    assert ranks == {"a": 11, "b": 16}


@pytest.mark.parametrize("allocation", ALLOCATIONS.values(), ids=ALLOCATIONS.keys())
def test_a_budget_below_rank_one_everywhere_is_refused(allocation: Allocation) -> None:
    layers = [options("a", 8, 8, [1.0] * 8)]
    with pytest.raises(BudgetTooSmall, match="22 parameters is less than the 23"):
        allocation(layers)(22)
    assert allocation(layers)(23) == {"a": 1}


def test_layers_without_any_energy_are_no_obstacle() -> None:
    layers = [options("silent", 8, 8, [0.0] * 8), options("heard", 8, 8, [1.0] * 8)]
    ranks = global_allocation(layers)(90)
    assert total_cost(layers, ranks) <= 90
    assert ranks["heard"] is None


def test_tiny_layers_that_need_more_than_their_share_take_it_from_large_ones() -> None:
    layers = [options(str(n), 3, 3, [1.0] * 3) for n in range(5)]
    layers.append(options("large", 60, 60, [1.0] * 60))
    budget = int(0.4 * sum(layer.dense_cost for layer in layers))
    ranks = allocate_uniform(layers, budget)
    assert total_cost(layers, ranks) <= budget
    assert min(rank or 0 for rank in ranks.values()) == 1


@pytest.mark.parametrize("allocation", ALLOCATIONS.values(), ids=ALLOCATIONS.keys())
def test_a_layer_that_can_only_stay_dense_stays_so(allocation: Allocation) -> None:
    unreached = LayerCandidates("unreached", torch.zeros(8, dtype=torch.float64), 0, 64, 16, 8)
    layers = [unreached, options("reached", 40, 40, [1.0] * 40)]
    ranks = allocation(layers)(64 + 800)
    assert ranks["unreached"] is None
    assert ranks["reached"] is not None
    assert total_cost(layers, ranks) <= 64 + 800
    with pytest.raises(BudgetTooSmall):
        allocation(layers)(64 + 100)


def test_two_factors_cost_more_than_an_interpolation_of_the_same_rank() -> None:
    layer = LinearLayer("layer", 12, 20, has_bias=False)
    costs = {
        storage: LayerCandidates(
            "layer",
            torch.ones(12, dtype=torch.float64),
            break_even_rank(layer, False, storage),
            layer.parameters,
            32,
            0,
            storage,
        )
        for storage in Storage
    }
    assert costs[Storage.FACTORS].cost(5) == 5 * 32
    assert costs[Storage.INTERPOLATIVE].cost(5) == 5 * (32 - 5)
    assert costs[Storage.FACTORS].max_rank == 7  # 7 * 32 < 240 <= 8 * 32
