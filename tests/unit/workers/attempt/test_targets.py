"""Targets lead to ranks that meet them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.domain.spec import JobSpec, SizeTarget
from service.errors import TargetUnreachable
from workers.attempt.targets import (
    MAX_PROBES,
    candidate_budgets,
    choose_ranks,
    curve_ranks,
    linear_budget,
    smallest_that_meets,
)
from workers.compression.candidates import LayerCandidates, Ranks, least_cost, total_cost

PARAMETERS = 3000
"""Of the whole model; 2048 of them are the layers'."""


def layer(name: str) -> LayerCandidates:
    spectrum = torch.logspace(0, -4, 32, dtype=torch.float64)
    return LayerCandidates(name, spectrum, 15, dense_cost=1024, sides=64, fixed_cost=32)


LAYERS = [layer("a"), layer("b")]


def never(_ranks: Ranks, _dataset: str) -> float:
    raise AssertionError("a size needs no measurement")


def spec(*targets: dict[str, Any], allocation: str = "global", **evaluation: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "evaluation": evaluation,
            "model": {"source": "local", "path": "/model"},
            "calibration": {"data": {"source": "local", "path": "/text"}},
            "targets": list(targets),
            "allocation": allocation,
        }
    )


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_every_target_is_met(allocation: str) -> None:
    wanted = spec(
        {"keep": 0.8}, {"keep": 0.5}, {"keep": 0.8, "scope": "model"}, allocation=allocation
    )
    chosen = choose_ranks(wanted, PARAMETERS, LAYERS, never)
    costs = [total_cost(LAYERS, ranks) for ranks in chosen]
    assert costs[0] <= 0.8 * 2048
    assert costs[1] <= 0.5 * 2048 < costs[0]
    assert costs[2] + (PARAMETERS - 2048) <= 0.8 * PARAMETERS


def test_the_budget_of_a_fraction_of_the_model_leaves_room_for_the_rest() -> None:
    assert linear_budget(SizeTarget(keep=0.5), PARAMETERS, LAYERS) == 1024
    assert linear_budget(SizeTarget(keep=0.5, scope="model"), PARAMETERS, LAYERS) == 1500 - 952


@pytest.mark.parametrize(
    "unreachable", [{"keep": 0.05}, {"keep": 0.3, "scope": "model"}], ids=["linear", "model"]
)
def test_a_target_out_of_reach_is_named(unreachable: dict[str, Any]) -> None:
    with pytest.raises(TargetUnreachable) as caught:
        choose_ranks(spec({"keep": 0.8}, unreachable), PARAMETERS, LAYERS, never)
    assert caught.value.param == "targets.1.keep"
    reachable = unreachable | {"keep": float(caught.value.detail.rstrip(".").rpartition(" ")[2])}
    assert choose_ranks(spec(reachable), PARAMETERS, LAYERS, never) == [{"a": 1, "b": 1}]


def test_the_sizes_of_a_curve() -> None:
    chosen = curve_ranks(spec({"keep": 0.8}, curve=[0.7, 0.9]), LAYERS)
    assert all(size(ranks) <= keep for ranks, keep in zip(chosen, (0.7, 0.9), strict=True))
    assert size(chosen[0]) < size(chosen[1])
    with pytest.raises(TargetUnreachable) as caught:
        curve_ranks(spec({"keep": 0.8}, curve=[0.7, 0.01]), LAYERS)
    assert caught.value.param == "evaluation.curve.1"


@given(answers=st.lists(st.booleans(), max_size=300))
def test_bisection_returns_what_it_has_seen_to_meet_the_bound(answers: list[bool]) -> None:
    """Whatever the answers are, monotone or not."""
    asked: dict[int, bool] = {}

    def meets(candidate: int) -> bool:
        assert candidate not in asked
        asked[candidate] = answers[candidate]
        return answers[candidate]

    found = smallest_that_meets(len(answers), meets)
    assert len(asked) <= len(answers).bit_length()
    if found is None:
        assert not answers or asked[len(answers) - 1] is False
    else:
        assert asked[found]
        assert found == 0 or asked[found - 1] is False


@given(count=st.integers(0, 300), first=st.integers(0, 300))
def test_bisection_finds_the_smallest_where_larger_is_better(count: int, first: int) -> None:
    found = smallest_that_meets(count, lambda candidate: candidate >= first)
    assert found == (first if first < count else None)


def test_a_quality_is_sought_among_sizes_half_a_percent_apart() -> None:
    budgets = candidate_budgets(LAYERS)
    assert budgets[0] == least_cost(LAYERS)
    assert budgets[-1] == 2048 * 199 // 200
    assert all(0 < b - a <= 11 for a, b in pairwise(budgets))
    assert len(budgets).bit_length() <= MAX_PROBES


def size(ranks: Ranks) -> float:
    return total_cost(LAYERS, ranks) / 2048


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_the_smallest_model_that_is_good_enough(allocation: str) -> None:
    measured = []

    def increase(ranks: Ranks, dataset: str) -> float:
        measured.append((size(ranks), dataset))
        return 1 - size(ranks)

    wanted = spec({"max_perplexity_increase": 0.3}, {"keep": 0.5}, allocation=allocation)
    quality, sized = choose_ranks(wanted, PARAMETERS, LAYERS, increase)
    assert (size(quality), "held-out") in measured
    assert 0.7 <= size(quality) <= 0.74  # a rank of these small layers is two percent
    assert max((s for s, _ in measured if s < size(quality)), default=0) < 0.7
    assert size(sized) <= 0.5
    assert len(measured) <= MAX_PROBES


def test_if_the_smallest_is_good_enough_it_is_taken() -> None:
    wanted = spec({"max_perplexity_increase": 0.3})
    assert choose_ranks(wanted, PARAMETERS, LAYERS, lambda *_: 0.0) == [{"a": 1, "b": 1}]


def test_a_quality_out_of_reach_says_how_near_it_came() -> None:
    wanted = spec({"keep": 0.8}, {"max_perplexity_increase": 0.01})
    with pytest.raises(TargetUnreachable) as caught:
        choose_ranks(wanted, PARAMETERS, LAYERS, lambda *_: 0.03)
    assert caught.value.param == "targets.1.max_perplexity_increase"
    assert caught.value.detail == (
        "increase-0.01 is out of reach: at the largest size tried, 99.5% of the compressible "
        "parameters, the perplexity on 'held-out' is 1.03 times the dense model's."
    )


def test_a_model_that_no_rank_makes_smaller_has_no_quality() -> None:
    small = [LayerCandidates("a", torch.ones(2).double(), 1, dense_cost=4, sides=4, fixed_cost=2)]
    with pytest.raises(TargetUnreachable, match="No rank makes this model smaller"):
        choose_ranks(spec({"max_perplexity_increase": 0.5}), 100, small, never)
