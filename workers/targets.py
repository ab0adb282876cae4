"""From the sizes that a job asks for to the rank of every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from service.errors import TargetUnreachable
from service.spec import JobSpec, Target
from workers.compression.allocation import ALLOCATIONS, LayerOptions, Ranks, least_cost
from workers.compression.errors import BudgetTooSmall


def choose_ranks(spec: JobSpec, parameters: int, options: Sequence[LayerOptions]) -> list[Ranks]:
    """The ranks of every target; `parameters` counts those of the whole dense model.

    Raises TargetUnreachable naming the first target for which rank one everywhere is too much.
    """
    allocate = ALLOCATIONS[spec.allocation]
    chosen: list[Ranks] = []
    for number, target in enumerate(spec.targets):
        try:
            chosen.append(allocate(options, linear_budget(target, parameters, options)))
        except BudgetTooSmall as error:
            least = smallest_keep(target, parameters, options)
            raise TargetUnreachable(
                f"{target.name} is out of reach: the smallest keep of this model with the scope "
                f"'{target.scope}' is {least:.3f}.",
                param=f"targets.{number}.keep",
            ) from error
    return chosen


def smallest_keep(target: Target, parameters: int, options: Sequence[LayerOptions]) -> float:
    """The least fraction, in thousandths rounded up, that the target's scope allows."""
    linear = sum(layer.dense_cost for layer in options)
    whole, fixed = (linear, 0) if target.scope == "linear" else (parameters, parameters - linear)
    return math.ceil((fixed + least_cost(options)) / whole * 1000) / 1000


def linear_budget(target: Target, parameters: int, options: Sequence[LayerOptions]) -> int:
    """How many parameters the compressible layers may keep together for a target.

    With the scope `model` the rest of the model, which stays dense, counts against `keep`.
    """
    linear = sum(layer.dense_cost for layer in options)
    if target.scope == "linear":
        return math.floor(target.keep * linear)
    return math.floor(target.keep * parameters) - (parameters - linear)
