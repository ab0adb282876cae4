"""From what a job asks for, sizes and qualities, to the rank of every layer.

Pure functions: what a quality needs to know of a choice of ranks comes from a callback.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from service.domain.spec import JobSpec, QualityTarget, SizeTarget
from service.errors import TargetUnreachable
from workers.compression.candidates import LayerCandidates, Ranks, least_cost
from workers.compression.errors import BudgetTooSmall

KEEP_STEPS = 200
"""The sizes among which a quality is sought: multiples of 1/200, half a percent, of the
compressible layers' parameters, and the smallest size that there is."""

MAX_PROBES = KEEP_STEPS.bit_length()
"""How many sizes are measured, at most, to find one among KEEP_STEPS."""

Increase = Callable[[Ranks, str], float]
"""How much larger the perplexity on a dataset is than the dense model's: 0.1 is 10 percent."""


def choose_ranks(
    spec: JobSpec, parameters: int, options: Sequence[LayerCandidates], increase: Increase
) -> list[Ranks]:
    """The ranks of every target; `parameters` counts those of the whole dense model.

    Raises TargetUnreachable naming the first target that no ranks meet.
    """
    sized = _allocation(spec, options)
    chosen: list[Ranks] = []
    for number, target in enumerate(spec.targets):
        if isinstance(target, SizeTarget):
            param = f"targets.{number}.keep"
            chosen.append(_sized_as(target, parameters, options, sized, param))
        else:
            param = f"targets.{number}.max_perplexity_increase"
            chosen.append(_as_good_as(target, options, sized, increase, param))
    return chosen


def curve_ranks(spec: JobSpec, options: Sequence[LayerCandidates]) -> list[Ranks]:
    """The ranks of every size of `evaluation.curve`. Raises TargetUnreachable."""
    sized = _allocation(spec, options)
    return [
        _sized_as(SizeTarget(keep=keep), 0, options, sized, f"evaluation.curve.{number}")
        for number, keep in enumerate(spec.evaluation.curve)
    ]


def smallest_that_meets(count: int, meets: Callable[[int], bool]) -> int | None:
    """The least of the sizes 0 to `count` − 1 that meets a bound, by bisection.

    What is returned has been asked for and meets the bound, and the size below it, if any, has
    been asked for and does not: so also where the answers are not monotone. None says that the
    largest does not meet it. Asks at most ⌈log2(count + 1)⌉ times.
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
    """The least fraction, in thousandths rounded up, that the target's scope allows."""
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
    """The sizes among which a quality is sought, ascending; none is as large as the dense layers.

    Empty where even rank 1 everywhere is as large.
    """
    linear, least = _linear(options), least_cost(options)
    steps = [linear * step // KEEP_STEPS for step in range(1, KEEP_STEPS)]
    return [least, *(budget for budget in steps if budget > least)] if least < linear else []


def _allocation(spec: JobSpec, options: Sequence[LayerCandidates]) -> Callable[[int], Ranks]:
    """The ranks for a budget of parameters."""
    # Imports torch, which a driver that starts does not wait for.
    from workers.compression.allocation import ALLOCATIONS

    return ALLOCATIONS[spec.allocation](options)


def _sized_as(
    target: SizeTarget,
    parameters: int,
    options: Sequence[LayerCandidates],
    sized: Callable[[int], Ranks],
    param: str,
) -> Ranks:
    try:
        return sized(linear_budget(target, parameters, options))
    except BudgetTooSmall as error:
        least = smallest_keep(target, parameters, options)
        raise TargetUnreachable(
            f"{target.name} is out of reach: the smallest keep of this model with the scope "
            f"'{target.scope}' is {least:.3f}.",
            param=param,
        ) from error


def _as_good_as(
    target: QualityTarget,
    options: Sequence[LayerCandidates],
    sized: Callable[[int], Ranks],
    increase: Increase,
    param: str,
) -> Ranks:
    budgets = candidate_budgets(options)
    if not budgets:
        raise TargetUnreachable("This model is not smaller at any rank.", param=param)
    tried: dict[int, tuple[Ranks, float]] = {}

    def meets(candidate: int) -> bool:
        ranks = sized(budgets[candidate])
        increased = increase(ranks, target.dataset)
        tried[candidate] = ranks, increased
        return increased <= target.max_perplexity_increase

    found = smallest_that_meets(len(budgets), meets)
    if found is None:
        most = budgets[-1] / _linear(options)
        _, increased = tried[len(budgets) - 1]
        raise TargetUnreachable(
            f"{target.name} is out of reach: with at most {most:.1%} of the compressible "
            f"parameters, the most that is tried, the perplexity on '{target.dataset}' is "
            f"{1 + increased:.4g} times the dense model's.",
            param=param,
        )
    ranks, _ = tried[found]
    return ranks


def _linear(options: Sequence[LayerCandidates]) -> int:
    return sum(layer.dense_cost for layer in options)
