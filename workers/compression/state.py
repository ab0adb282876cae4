"""Converts solved layers to named tensors and back, bit for bit.

Checkpoints store these tensors between attempts. A restored tensor is in memory that torch
allocated, in its original layout, so that further arithmetic gives identical results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.candidates import LayerCandidates, Width
from workers.compression.metrics import LeftMetric
from workers.compression.rounding.grid import RoundedWeight
from workers.compression.rounding.group import Priced
from workers.compression.shapes import LinearLayer
from workers.compression.solve import Solution


@dataclass(frozen=True)
class SolvedLayer:
    """All that a job may make of a layer: every rank, and every width that a target may use."""

    solution: Solution
    rounded: tuple[Priced, ...] = ()

    @property
    def layer(self) -> LinearLayer:
        """Its name and shape."""
        return self.solution.layer

    def options(self, number_bytes: int) -> LayerCandidates:
        """The layer's candidates for the allocation; see `Solution.options`."""
        return self.solution.options(
            number_bytes=number_bytes,
            rounded=tuple(each.candidate(self.layer) for each in self.rounded),
        )

    def weight(self, width: Width) -> RoundedWeight:
        """The weight at a width that was asked for."""
        return next(each.weight for each in self.rounded if each.weight.width == width)


def solved_tensors(solved: SolvedLayer) -> dict[str, Tensor]:
    """The results for a layer."""
    solution = solved.solution
    optional = {
        "moment": solution.left.moment,
        "mean": solution.mean,
        "mean_code": solution.mean_code,
    }
    tensors = {
        "spectrum": solution.spectrum,
        "directions": solution.directions,
        "diagonal": solution.left.diagonal,
    } | {name: tensor for name, tensor in optional.items() if tensor is not None}
    for each in solved.rounded:
        width = each.weight.width
        tensors[f"{width}.codes"] = each.weight.codes
        tensors[f"{width}.scales"] = each.weight.scales
        tensors[f"{width}.error"] = torch.tensor([each.error], dtype=torch.float64)
    return tensors


def read_solved(layer: LinearLayer, tensors: Mapping[str, Tensor]) -> SolvedLayer:
    """A layer's results, as they were in the host's memory.

    Raises KeyError if a tensor is missing.
    """
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    solution = Solution(
        layer,
        LeftMetric(copies["diagonal"], copies.get("moment")),
        copies["spectrum"],
        copies["directions"],
        copies.get("mean"),
        copies.get("mean_code"),
    )
    widths = sorted(
        Width(int(name.removeprefix("int").removesuffix(".codes")))
        for name in copies
        if name.endswith(".codes")
    )
    return SolvedLayer(
        solution,
        tuple(
            Priced(
                RoundedWeight(width, copies[f"{width}.codes"], copies[f"{width}.scales"]),
                float(copies[f"{width}.error"]),
            )
            for width in widths
        ),
    )
