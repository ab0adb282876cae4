"""From the sizes that a job asks for to the rank of every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from service.errors import TargetUnreachable
from service.spec import JobSpec, Target
from workers.compression.allocation import ALLOCATIONS, LayerOptions, Ranks
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
            raise TargetUnreachable(str(error), param=f"targets.{number}.keep") from error
    return chosen


def linear_budget(target: Target, parameters: int, options: Sequence[LayerOptions]) -> int:
    """How many parameters the compressible layers may keep together for a target.

    With the scope `model` the rest of the model, which stays dense, counts against `keep`.
    """
    linear = sum(layer.dense_cost for layer in options)
    if target.scope == "linear":
        return math.floor(target.keep * linear)
    return math.floor(target.keep * parameters) - (parameters - linear)
