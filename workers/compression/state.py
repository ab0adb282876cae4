"""Converts the results of calibration and solving to named tensors and back, bit for bit.

Checkpoints store these tensors between attempts. A restored tensor is in memory that torch
allocated, in its original layout, so that further arithmetic gives identical results.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from workers.compression.metrics import LeftMetric
from workers.compression.shapes import LinearLayer
from workers.compression.solve import Solution
from workers.compression.statistics import GroupStatistics, Moments

COUNTS = "counts"
"""(2 + number of moments,) int64: rows, tokens, and the count of each moment."""


def statistics_tensors(statistics: GroupStatistics) -> dict[str, Tensor]:
    """All values of a group's statistics; the tensors are not copied and stay on their device."""
    moments = _moments(statistics).values()
    counts = [statistics.rows, statistics.tokens, *(each.count for each in moments)]
    return _sums(statistics) | {COUNTS: torch.tensor(counts, dtype=torch.int64)}


def load_statistics(statistics: GroupStatistics, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the statistics of a group with the result of `statistics_tensors` for that group.

    Raises ValueError, and changes nothing, if the tensors do not fit the group.
    """
    ours, moments = _sums(statistics), _moments(statistics)
    wanted = {name: (each.shape, each.dtype) for name, each in ours.items()}
    wanted[COUNTS] = torch.Size([2 + len(moments)]), torch.int64
    if {name: (each.shape, each.dtype) for name, each in tensors.items()} != wanted:
        raise ValueError("the tensors are not those of this group")
    for name, each in ours.items():
        each.copy_(tensors[name])
    statistics.rows, statistics.tokens, *counts = tensors[COUNTS].tolist()
    for each_moment, count in zip(moments.values(), counts, strict=True):
        each_moment.count = count


def clear_statistics(statistics: GroupStatistics) -> None:
    """Reset the statistics to their state before the first token."""
    for each in _sums(statistics).values():
        each.zero_()
    for moments in _moments(statistics).values():
        moments.count = 0
    statistics.rows = statistics.tokens = 0


def solution_tensors(solution: Solution) -> dict[str, Tensor]:
    """The solver's results for a layer, without the weight and bias, which are the model's."""
    optional = {
        "moment": solution.left.moment,
        "mean": solution.mean,
        "mean_code": solution.mean_code,
    }
    return {
        "spectrum": solution.spectrum,
        "directions": solution.directions,
        "diagonal": solution.left.diagonal,
    } | {name: tensor for name, tensor in optional.items() if tensor is not None}


def read_solution(
    layer: LinearLayer, weight: Tensor, bias: Tensor | None, tensors: Mapping[str, Tensor]
) -> Solution:
    """The solution of a layer with this weight and bias, as `Solution.to_host` returns it.

    Raises KeyError if a tensor is missing.
    """
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    mean, mean_code = (copies.get(name) for name in ("mean", "mean_code"))
    return Solution(
        layer,
        weight,
        bias,
        LeftMetric(copies["diagonal"], copies.get("moment")),
        copies["spectrum"].to(weight.device),
        copies["directions"],
        None if mean is None else mean.to(weight.device),
        None if mean_code is None else mean_code.to(weight.device),
    )


def _moments(statistics: GroupStatistics) -> dict[str, Moments]:
    moments = {f"outputs.{name}": each for name, each in statistics.outputs.items()}
    return moments if statistics.inputs is None else moments | {"inputs": statistics.inputs}


def _sums(statistics: GroupStatistics) -> dict[str, Tensor]:
    """Every tensor except the counts, by a unique name."""
    sums: dict[str, Tensor] = {}
    for name, moments in _moments(statistics).items():
        sums |= {f"{name}.average": moments.average, f"{name}.scatter": moments.scatter}
    if statistics.magnitudes is not None:
        sums["magnitudes"] = statistics.magnitudes
    kinds = ("gradient_squares", "gradient_moments", "row_fisher")
    for kind, by_layer in zip(kinds, statistics.sums(), strict=True):
        sums |= {f"{kind}.{name}": values for name, values in by_layer.items()}
    return sums
