"""Targets lead to ranks that meet them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.domain.spec.job import JobSpec
from service.errors import TargetUnreachable
from workers.attempt.targets import (
    MAX_PROBES,
    Budgets,
    Choices,
    Increase,
    smallest_that_meets,
)
from workers.compression.candidates import (
    SECOND_PRODUCT,
    Forms,
    LayerCandidates,
    RoundedCandidate,
    Width,
    faster_than_dense,
    least_cost,
    total_bytes,
    total_cost,
)
from workers.compression.shapes import VocabularyMatrix

PARAMETERS = 3000
"""Of the whole model; 2048 of them are the layers'."""


def layer(name: str) -> LayerCandidates:
    spectrum = torch.logspace(0, -4, 32, dtype=torch.float64)
    return LayerCandidates(name, spectrum, 15, dense_cost=1024, sides=64, fixed_cost=32)


LAYERS = [layer("a"), layer("b")]


def choices(wanted: JobSpec, layers: list[LayerCandidates] = LAYERS) -> Choices:
    return Choices(wanted, PARAMETERS, layers, [[each.name] for each in layers])


def chosen_for(
    wanted: JobSpec, increase: Increase, layers: list[LayerCandidates] = LAYERS
) -> list[Forms]:
    return choices(wanted, layers).of_targets(increase)


def never(_forms: Forms, _dataset: str) -> float:
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
    chosen = chosen_for(wanted, never)
    costs = [total_cost(LAYERS, ranks) for ranks in chosen]
    assert costs[0] <= 0.8 * 2048
    assert costs[1] <= 0.5 * 2048 < costs[0]
    assert costs[2] + (PARAMETERS - 2048) <= 0.8 * PARAMETERS


def large_layer(name: str, inputs: int) -> LayerCandidates:
    spectrum = torch.logspace(0, -4, 2048, dtype=torch.float64)
    sides = 2048 + inputs
    return LayerCandidates(name, spectrum, 1600, 2048 * inputs, sides, 4096, tile=8)


@given(inputs=st.sampled_from([2048, 3072, 6144]), joined=st.booleans())
def test_for_speed_a_layer_has_all_ranks_that_save_a_products_time(
    inputs: int, joined: bool
) -> None:
    before = large_layer("a", inputs)
    after = faster_than_dense(before, joined=joined)
    spare = before.dense_cost - (2 if joined else 1) * SECOND_PRODUCT
    fast = [rank for rank in range(32, 1601, 32) if before.cost(rank) < spare]
    assert list(range(after.tile, after.max_rank + 1, after.tile)) == fast


def test_for_speed_a_layer_that_would_be_slower_stays_dense() -> None:
    unimportant = replace(layer("c"), spectrum=layer("c").spectrum * 1e-9)
    layers = [large_layer("a", 6144), large_layer("b", 6144), unimportant]
    wanted = spec({"keep": 0.6}, {"keep": 0.6, "optimize": "speed"})
    smallest, fastest = chosen_for(wanted, never, layers)
    assert smallest["c"] is not None
    assert fastest["c"] is None
    assert all(rank % 32 == 0 for rank in fastest.values() if isinstance(rank, int))
    for ranks in (smallest, fastest):
        assert total_cost(layers, ranks) <= 0.6 * sum(each.dense_cost for each in layers)


def largest_rank(forms: Forms) -> int:
    """Of the layers a and b."""
    return max(rank for rank in (forms["a"], forms["b"]) if isinstance(rank, int))


def test_layers_that_engines_join_must_save_more() -> None:
    wanted = spec({"keep": 0.6, "optimize": "speed"})
    layers = [large_layer("a", 2048), large_layer("b", 2048), large_layer("c", 6144)]
    (apart,) = Choices(wanted, 10**7, layers, [["a"], ["b"], ["c"]]).of_targets(never)
    (joined,) = Choices(wanted, 10**7, layers, [["a", "b"], ["c"]]).of_targets(never)
    limit = faster_than_dense(layers[0], joined=True).max_rank
    assert largest_rank(joined) <= limit < largest_rank(apart)


@pytest.mark.parametrize(
    "unreachable", [{"keep": 0.05}, {"keep": 0.3, "scope": "model"}], ids=["linear", "model"]
)
def test_a_target_out_of_reach_is_named(unreachable: dict[str, Any]) -> None:
    with pytest.raises(TargetUnreachable) as caught:
        chosen_for(spec({"keep": 0.8}, unreachable), never)
    assert caught.value.param == "targets.1.keep"
    reachable = unreachable | {"keep": float(caught.value.detail.rstrip(".").rpartition(" ")[2])}
    assert chosen_for(spec(reachable), never) == [{"a": 1, "b": 1}]


def test_the_sizes_of_a_curve() -> None:
    chosen = choices(spec({"keep": 0.8}, curve=[0.7, 0.9])).of_curve()
    assert all(size(ranks) <= keep for ranks, keep in zip(chosen, (0.7, 0.9), strict=True))
    assert size(chosen[0]) < size(chosen[1])
    with pytest.raises(TargetUnreachable) as caught:
        choices(spec({"keep": 0.8}, curve=[0.7, 0.01])).of_curve()
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
    budgets = Budgets(never_allocates, least_cost(LAYERS), 2048, "rank", "parameters").candidates()
    assert budgets[0] == least_cost(LAYERS)
    assert budgets[-1] == 2048 * 199 // 200
    assert all(0 < b - a <= 11 for a, b in pairwise(budgets))
    assert len(budgets).bit_length() <= MAX_PROBES


def never_allocates(_budget: int) -> Forms:
    raise AssertionError("listing sizes allocates nothing")


def size(ranks: Forms) -> float:
    return total_cost(LAYERS, ranks) / 2048


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_the_smallest_model_that_is_good_enough(allocation: str) -> None:
    measured = []

    def increase(ranks: Forms, dataset: str) -> float:
        measured.append((size(ranks), dataset))
        return 1 - size(ranks)

    wanted = spec({"max_perplexity_increase": 0.3}, {"keep": 0.5}, allocation=allocation)
    quality, sized = chosen_for(wanted, increase)
    assert (size(quality), "held-out") in measured
    assert 0.7 <= size(quality) <= 0.74  # a rank of these small layers is two percent
    assert max((s for s, _ in measured if s < size(quality)), default=0) < 0.7
    assert size(sized) <= 0.5
    assert len(measured) <= MAX_PROBES


def test_if_the_smallest_is_good_enough_it_is_taken() -> None:
    wanted = spec({"max_perplexity_increase": 0.3})
    assert chosen_for(wanted, lambda *_: 0.0) == [{"a": 1, "b": 1}]


def test_a_quality_out_of_reach_says_how_near_it_came() -> None:
    wanted = spec({"keep": 0.8}, {"max_perplexity_increase": 0.01})
    with pytest.raises(TargetUnreachable) as caught:
        chosen_for(wanted, lambda *_: 0.03)
    assert caught.value.param == "targets.1.max_perplexity_increase"
    assert caught.value.detail == (
        "increase-0.01 is out of reach: at the largest size tried, 99.5% of the compressible "
        "parameters, the perplexity on 'held-out' is 1.03 times the dense model's."
    )


def test_a_model_that_no_rank_makes_smaller_has_no_quality() -> None:
    small = [LayerCandidates("a", torch.ones(2).double(), 1, dense_cost=4, sides=4, fixed_cost=2)]
    with pytest.raises(TargetUnreachable, match="No rank makes this model smaller"):
        chosen_for(spec({"max_perplexity_increase": 0.5}), never, small)


def rounded_layer(name: str, sensitivity: float) -> LayerCandidates:
    candidates = tuple(
        RoundedCandidate(Width(bits), 128 * bits + 64, sensitivity * 4.0**-bits)
        for bits in (2, 3, 4, 5, 6, 8)
    )
    return LayerCandidates(
        name,
        torch.ones(32, dtype=torch.float64),
        15,
        dense_cost=1024,
        sides=64,
        fixed_cost=32,
        dense_bytes=2048,
        rounded=candidates,
    )


ROUNDED = [rounded_layer("a", 1.0), rounded_layer("b", 100.0)]


def test_bytes_buy_bits_where_they_save_most() -> None:
    wanted = spec({"bytes_fraction": 0.45}, {"bytes": 1900 + 952 * 2, "scope": "model"})
    small, absolute = chosen_for(wanted, never, ROUNDED)
    assert small == {"a": Width(4), "b": Width(8)}
    assert total_bytes(ROUNDED, small) <= 0.45 * 2048 * 2
    assert total_bytes(ROUNDED, absolute) <= 1900


def test_bytes_of_the_model_leave_room_for_what_is_not_in_layers() -> None:
    (chosen,) = chosen_for(spec({"bytes_fraction": 0.6, "scope": "model"}), never, ROUNDED)
    assert total_bytes(ROUNDED, chosen) <= 0.6 * PARAMETERS * 2 - 952 * 2


def test_a_rounded_embedding_leaves_its_bytes_to_the_layers() -> None:
    tied = VocabularyMatrix(("embedding", "head"), 30, 30)
    others = (952 - 900) * 2 + 900 + 2 * 30 * 2  # two modules have scales of 16 bits
    target = {"bytes": 1900 + others, "precisions": "transformers", "embedding_bits": 8}
    units = [["a"], ["b"]]

    def chosen(**changes: Any) -> Forms:
        wanted = spec(target | changes)
        (forms,) = Choices(wanted, PARAMETERS, ROUNDED, units, [tied]).of_targets(never)
        return forms

    of_layers, of_model = chosen(bytes=1900), chosen(scope="model")
    assert of_layers == of_model
    assert of_model["embedding"] == Width(8)
    assert 1700 < total_bytes(ROUNDED, of_model) <= 1900
    assert chosen(embedding_bits=16, bytes=1900).keys() == {"a", "b"}
    with pytest.raises(TargetUnreachable, match=f"{others} of them are not in layers"):
        chosen(bytes=others + 10, scope="model")


def test_transformers_may_have_further_widths() -> None:
    target = {"bytes_fraction": 0.25, "precisions": "transformers"}
    (chosen,) = chosen_for(spec(target), never, ROUNDED)
    assert all(isinstance(form, Width) for form in chosen.values())
    assert chosen["a"] < chosen["b"]  # type: ignore[operator]


@pytest.mark.parametrize("precisions", ["vllm", "vllm-cpu"])
def test_joined_layers_get_one_width(precisions: str) -> None:
    wanted = spec({"bytes_fraction": 0.5, "precisions": precisions})
    (chosen,) = Choices(wanted, PARAMETERS, ROUNDED, [["a", "b"]]).of_targets(never)
    assert chosen["a"] == chosen["b"] == Width(4)


def test_vllm_has_no_8_bits_on_cpus() -> None:
    wanted = spec(
        {"bytes_fraction": 0.75, "precisions": "vllm-cpu"},
        {"bytes_fraction": 0.75, "precisions": "vllm"},
    )
    cpu, gpu = chosen_for(wanted, never, ROUNDED)
    assert set(cpu.values()) == {Width(4), None}
    assert Width(8) in gpu.values()


def test_a_size_in_bytes_out_of_reach_is_named() -> None:
    with pytest.raises(TargetUnreachable) as caught:
        chosen_for(spec({"bytes_fraction": 0.1}), never, ROUNDED)
    assert caught.value.param == "targets.0.bytes_fraction"
    assert "the smallest size that 'vllm' loads is 1152 bytes, a fraction of 0.282" in (
        caught.value.detail
    )


def test_a_quality_may_be_bought_in_bytes() -> None:
    def increase(forms: Forms, _dataset: str) -> float:
        return sum(layer.error(forms[layer.name]) for layer in ROUNDED)

    wanted = spec({"max_perplexity_increase": 0.5, "precisions": "vllm"})
    (chosen,) = chosen_for(wanted, increase, ROUNDED)
    assert increase(chosen, "held-out") <= 0.5
    assert total_bytes(ROUNDED, chosen) < 2048 * 2
