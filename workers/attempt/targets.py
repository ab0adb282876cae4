"""Chooses the rank of every layer from a job's targets, which are sizes and qualities.

Pure functions: a callback measures the quality of a choice of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from service.domain.spec import JobSpec, QualityTarget, SizeTarget
from service.errors import TargetUnreachable
from workers.compression.candidates import LayerCandidates, Ranks, least_cost
from workers.compression.errors import BudgetTooSmall

KEEP_STEPS = 200
"""The number of candidate sizes for a quality target: the multiples of 1/200 (half a percent) of
the compressible layers' parameters, below all of them, and the smallest possible size."""

MAX_PROBES = KEEP_STEPS.bit_length()
"""The largest number of measurements for a bisection over KEEP_STEPS sizes."""

Increase = Callable[[Ranks, str], float]
"""How much the perplexity on a dataset exceeds the dense model's: 0.1 is 10 percent."""


def choose_ranks(
    spec: JobSpec, parameters: int, options: Sequence[LayerCandidates], increase: Increase
) -> list[Ranks]:
    """The ranks of every target; `parameters` is the size of the whole dense model.

    Raises TargetUnreachable naming the first target that no ranks meet.
    """
    allocate = _allocation(spec, options)
    chosen: list[Ranks] = []
    for number, target in enumerate(spec.targets):
        if isinstance(target, SizeTarget):
            param = f"targets.{number}.keep"
            chosen.append(_ranks_of_size(target, parameters, options, allocate, param))
        else:
            param = f"targets.{number}.max_perplexity_increase"
            chosen.append(_ranks_of_quality(target, options, allocate, increase, param))
    return chosen


def curve_ranks(spec: JobSpec, options: Sequence[LayerCandidates]) -> list[Ranks]:
    """The ranks of every size of `evaluation.curve`. Raises TargetUnreachable."""
    allocate = _allocation(spec, options)
    return [
        _ranks_of_size(SizeTarget(keep=keep), 0, options, allocate, f"evaluation.curve.{number}")
        for number, keep in enumerate(spec.evaluation.curve)
    ]


def smallest_that_meets(count: int, meets: Callable[[int], bool]) -> int | None:
    """Find the smallest of the sizes 0 to `count` − 1 that meets a bound, by bisection.

    The returned size was tested and meets the bound; the size below it, if any, was tested and
    does not. This holds even if `meets` is not monotone. Returns None if the largest size does not
    meet the bound. Calls `meets` at most ⌈log2(count + 1)⌉ times.
    """
    fails, answer = -1, count
    while answer - fails > 1:
        middle = (fails + answer) // 2
        if meets(middle):
            answer = middle
        else:
            fails = middle
    return answer if answer < count else None


def smallest_keep(target: SizeTarget, parameters: int, options: Sequence[LayerCandidates]) -> float:
    """The smallest fraction, rounded up to thousandths, that the target's scope allows."""
    linear = _linear(options)
    whole, fixed = (linear, 0) if target.scope == "linear" else (parameters, parameters - linear)
    return math.ceil((fixed + least_cost(options)) / whole * 1000) / 1000


def linear_budget(target: SizeTarget, parameters: int, options: Sequence[LayerCandidates]) -> int:
    """How many parameters the compressible layers may keep together for a target.

    With the scope `model` the rest of the model, which stays dense, counts against `keep`.
    """
    linear = _linear(options)
    if target.scope == "linear":
        return math.floor(target.keep * linear)
    return math.floor(target.keep * parameters) - (parameters - linear)


def candidate_budgets(options: Sequence[LayerCandidates]) -> list[int]:
    """The candidate sizes for a quality target, ascending, all below that of the dense layers.

    Empty if rank 1 in every layer is no smaller than the dense layers.
    """
    linear, least = _linear(options), least_cost(options)
    steps = [linear * step // KEEP_STEPS for step in range(1, KEEP_STEPS)]
    return [least, *(budget for budget in steps if budget > least)] if least < linear else []


def _allocation(spec: JobSpec, options: Sequence[LayerCandidates]) -> Callable[[int], Ranks]:
    """A function from a budget of parameters to ranks."""
    # This imports torch, which would delay the driver's start.
    from workers.compression.allocation import ALLOCATIONS

    return ALLOCATIONS[spec.allocation](options)


def _ranks_of_size(
    target: SizeTarget,
    parameters: int,
    options: Sequence[LayerCandidates],
    allocate: Callable[[int], Ranks],
    param: str,
) -> Ranks:
    try:
        return allocate(linear_budget(target, parameters, options))
    except BudgetTooSmall as error:
        least = smallest_keep(target, parameters, options)
        raise TargetUnreachable(
            f"{target.name} is out of reach: the smallest keep of this model with the scope "
            f"'{target.scope}' is {least:.3f}.",
            param=param,
        ) from error


def _ranks_of_quality(
    target: QualityTarget,
    options: Sequence[LayerCandidates],
    allocate: Callable[[int], Ranks],
    increase: Increase,
    param: str,
) -> Ranks:
    budgets = candidate_budgets(options)
    if not budgets:
        raise TargetUnreachable("No rank makes this model smaller.", param=param)
    tried: dict[int, tuple[Ranks, float]] = {}

    def meets(candidate: int) -> bool:
        ranks = allocate(budgets[candidate])
        increased = increase(ranks, target.dataset)
        tried[candidate] = ranks, increased
        return increased <= target.max_perplexity_increase

    found = smallest_that_meets(len(budgets), meets)
    if found is None:
        largest = budgets[-1] / _linear(options)
        _, increased = tried[len(budgets) - 1]
        raise TargetUnreachable(
            f"{target.name} is out of reach: at the largest size tried, {largest:.1%} of the "
            f"compressible parameters, the perplexity on '{target.dataset}' is "
            f"{1 + increased:.4g} times the dense model's.",
            param=param,
        )
    ranks, _ = tried[found]
    return ranks


def _linear(options: Sequence[LayerCandidates]) -> int:
    return sum(layer.dense_cost for layer in options)
