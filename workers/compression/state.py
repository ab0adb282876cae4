"""Converts solutions to named tensors and back, bit for bit.

Checkpoints store these tensors between attempts. A restored tensor is in memory that torch
allocated, in its original layout, so that further arithmetic gives identical results.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from workers.compression.metrics import LeftMetric
from workers.compression.shapes import LinearLayer
from workers.compression.solve import Solution


def solution_tensors(solution: Solution) -> dict[str, Tensor]:
    """The solver's results for a layer."""
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


def read_solution(layer: LinearLayer, tensors: Mapping[str, Tensor]) -> Solution:
    """The solution of a layer, as `Solution.to_host` returns it.

    Raises KeyError if a tensor is missing.
    """
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    return Solution(
        layer,
        LeftMetric(copies["diagonal"], copies.get("moment")),
        copies["spectrum"],
        copies["directions"],
        copies.get("mean"),
        copies.get("mean_code"),
    )
