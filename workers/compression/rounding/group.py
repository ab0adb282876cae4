"""Rounds the layers of a group at several widths, and prices what each costs the loss.

The price of a rounded weight is tr(G E S Eᵀ): E its error, G = E[g gᵀ], shrunk by a fifth to its
diagonal as for `impact-kron`, and S = E[x xᵀ]. No bias makes up for the mean of the error, so S is
not centred. Rounding itself uses a metric that is shrunk further (see `ROUNDING_SHRINKAGE`): its
feedback would otherwise fit the noise of an estimate from some ten thousand tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.compression.candidates import RoundedCandidate, Width
from workers.compression.errors import NotFinite, SolveFailed
from workers.compression.metrics import SHRINKAGE, importance
from workers.compression.rounding.feedback import Metric, round_with_feedback
from workers.compression.rounding.grid import RoundedWeight, best_scales, nearest, stored_bytes
from workers.compression.shapes import InputGroup, LinearLayer
from workers.compression.statistics import GroupStatistics

ROUNDING_SHRINKAGE = 0.6
"""How far rounding moves E[g gᵀ] towards its diagonal."""

DAMPING = 0.01
"""The share of its mean diagonal that rounding adds to E[x xᵀ], as GPTQ does."""


@dataclass(frozen=True)
class Priced:
    """A rounded layer, and what it costs the loss."""

    weight: RoundedWeight
    error: float  # in units of the loss's square, as the eigenvalues of a spectrum

    def to_host(self) -> Priced:
        """The same in the host's memory."""
        return replace(self, weight=self.weight.to(torch.device("cpu")))

    def candidate(self, layer: LinearLayer) -> RoundedCandidate:
        """What the allocation of bytes knows about it."""
        width = self.weight.width
        return RoundedCandidate(
            width, stored_bytes(layer, width, self.weight.scales.itemsize), self.error
        )


def round_group(
    group: InputGroup,
    weights: Mapping[str, Tensor],
    statistics: GroupStatistics,
    widths: Sequence[Width],
    dtype: torch.dtype,
) -> dict[str, list[Priced]]:
    """Every layer of a group at every width; the weights, by layer, are (out, in).

    The statistics have both sides of the layers in full. `dtype` is that of stored scales. Raises
    SolveFailed and NotFinite naming the layer.
    """
    if not widths:
        return {layer.name: [] for layer in group.layers}
    if statistics.rows == 0:  # an expert that no token reached
        return {
            layer.name: [_nearest(weights[layer.name], width, dtype) for width in widths]
            for layer in group.layers
        }
    if statistics.inputs is None:
        raise ValueError(f"{group.name}: rounding needs the moments of its input")
    right = statistics.inputs.second_moment()
    if not right.isfinite().all():
        raise NotFinite(f"{group.name}: its input is not finite")
    metric = _metric(damped(right), group.name)
    return {
        layer.name: _round_layer(
            layer, weights[layer.name], statistics, (right, metric), widths, dtype
        )
        for layer in group.layers
    }


def _nearest(weight: Tensor, width: Width, dtype: torch.dtype) -> Priced:
    everything = weight.new_ones(weight.shape[1])
    return Priced(nearest(weight, best_scales(weight, everything, width, dtype), width), 0.0)


def _round_layer(
    layer: LinearLayer,
    weight: Tensor,
    statistics: GroupStatistics,
    inputs: tuple[Tensor, Metric],
    widths: Sequence[Width],
    dtype: torch.dtype,
) -> list[Priced]:
    """`inputs` are the second moment of the layer's input, and the same, damped, as a metric."""
    moment = statistics.gradient_moments[layer.name].double() / statistics.tokens
    diagonal = importance(statistics, layer)
    right, metric = inputs
    scales = [best_scales(weight, metric.importance, width, dtype) for width in widths]
    gradients = _metric(_shrunk(moment, diagonal, ROUNDING_SHRINKAGE), layer.name)
    left = _shrunk(moment, diagonal, SHRINKAGE)
    return [
        Priced(each, price(each.dequantized() - weight.float(), left, right))
        for each in round_with_feedback(weight, scales, widths, gradients, metric)
    ]


def _metric(matrix: Tensor, name: str) -> Metric:
    try:
        return Metric.of(matrix)
    except SolveFailed as error:
        raise SolveFailed(f"{name}: {error}") from error


def damped(moment: Tensor) -> Tensor:
    """A second moment (n, n) with `DAMPING` on its diagonal, which makes it definite."""
    means = moment.diagonal()
    damping = (DAMPING * means.mean()).clamp_min(torch.finfo(torch.float32).tiny)
    return moment + damping * torch.ones_like(means).diag()


def _shrunk(moment: Tensor, diagonal: Tensor, shrinkage: float) -> Tensor:
    return (1 - shrinkage) * moment + shrinkage * diagonal.diag()


def price(error: Tensor, left: Tensor, right: Tensor) -> float:
    """tr(G E S Eᵀ) for an error E (out, in) of a weight, by products in float32."""
    weighted = left.float() @ error @ right.float()
    return float(weighted.mul_(error).sum(dtype=torch.float64))
