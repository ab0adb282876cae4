"""Defines the compression methods, each by a left metric L and a right metric R.

Every method minimises ‖L (W − Ŵ) R‖² over matrices Ŵ of rank r. By Eckart–Young the minimum is
at L⁻¹ (U_r Σ_r V_rᵀ) R⁻¹ with L W R = U Σ Vᵀ, and the remaining error is the sum of the dropped
squared singular values. A method consists of its metrics and the observations that calibration
makes for them; no other code depends on the method. With x a layer's input and g the gradient of
the loss with respect to its output:

| method      | LᵀL                           | R Rᵀ          | source                      |
|-------------|-------------------------------|---------------|-----------------------------|
| svd         | I                             | I             | Eckart and Young, 1936      |
| fwsvd       | diag(row sums of E[(∂ℓ/∂W)²]) | I             | FWSVD, arXiv 2207.00112     |
| asvd        | I                             | diag(E|x|)^2α | ASVD, arXiv 2312.05821      |
| svd-llm     | I                             | E[x xᵀ]       | SVD-LLM, arXiv 2403.07378   |
| afm         | I                             | Cov(x)        | IMPACT with M = ones        |
| impact      | diag(E[g²])                   | Cov(x)        | IMPACT, arXiv 2507.03828    |
| impact-kron | E[g gᵀ], shrunk to its        | Cov(x)        | IMPACT with the full second |
|             | diagonal                      |               | moment, as in K-FAC,        |
|             |                               |               | arXiv 1503.05671            |

FWSVD's paper weights the rows of the W of Z = X W, which some read as the inputs of a layer; here
the rows of the W of y = W x, the outputs, are weighted. GFWSVD, arXiv 2505.17974, also factorises W
between Kronecker factors of the Fisher information; impact-kron also centres and shrinks, and keeps
both factors on the smaller side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from workers.compression.errors import NotFinite
from workers.compression.shapes import LinearLayer
from workers.compression.statistics import GroupStatistics, Observation, Observations

IMPORTANCE_FLOOR = 1e-6
"""ε of the guard mᵢ ≥ ε · mean(m), which keeps L invertible if an output received no gradient."""

NO_IMPORTANCE = 1e-20
"""The importance of every output of a layer that received no gradient."""

MAGNITUDE_EXPONENT = 0.5
"""ASVD's α, as its authors set it."""

MAGNITUDE_FLOOR = 1e-6
"""The relative floor of E|x|, which keeps R invertible if an input was always zero."""

SHRINKAGE = 0.2
"""How far impact-kron moves E[g gᵀ] towards its diagonal."""


class RightMetric(Enum):
    """R, given by the matrix S = R Rᵀ of the layer's input."""

    IDENTITY = "identity"
    """S = I: only the weights matter."""

    MAGNITUDES = "magnitudes"
    """S = diag(E|x|)^2α."""

    SECOND_MOMENT = "second moment"
    """S = E[x xᵀ]."""

    CENTRED = "centred"
    """S = Cov(x): a bias preserves the output's mean exactly."""


@dataclass(frozen=True)
class LeftMetric:
    """L of one layer, given by the matrix LᵀL = diag(diagonal) + moment.

    `moment` is on the layer's smaller side: if in < out, it is given as Wᵀ · moment · W.
    """

    diagonal: Tensor  # (out,), float64, positive
    moment: Tensor | None = None  # (smaller side, smaller side), float64

    def to(self, device: torch.device) -> LeftMetric:
        moment = None if self.moment is None else self.moment.to(device)
        return LeftMetric(self.diagonal.to(device), moment)

    def times(self, matrix: Tensor) -> Tensor:
        """LᵀL times a matrix (out, n), where out is the smaller side."""
        product = self.diagonal[:, None] * matrix
        return product if self.moment is None else product + self.moment @ matrix


@dataclass(frozen=True)
class Method:
    """A compression method; `left` raises NotFinite if gradients are not finite."""

    left: Callable[[GroupStatistics, LinearLayer], LeftMetric]
    right: RightMetric
    observations: Observations


def importance(statistics: GroupStatistics, layer: LinearLayer) -> Tensor:
    """IMPACT's importance m = E[g²] per output, guarded from below; shape (out,), float64.

    The mean is over all tokens, so that an expert counts in proportion to its use. A layer that no
    gradient reached has no effect on the loss: its outputs get the same, negligible importance.
    Raises NotFinite if the gradients are not finite.
    """
    return _guarded(statistics.gradient_squares[layer.name], statistics, layer)


def input_magnitudes(statistics: GroupStatistics, name: str) -> Tensor:
    """The diagonal of ASVD's S, (in,), float64; raises NotFinite if an input is not finite."""
    if statistics.magnitudes is None:
        raise ValueError("the magnitudes of the input were not observed")
    means = statistics.magnitudes.double() / statistics.rows
    if not torch.isfinite(means).all():
        raise NotFinite(f"{name}: its input is not finite")
    return means.clamp_min(MAGNITUDE_FLOOR * means.mean()).pow(2 * MAGNITUDE_EXPONENT)


def _impact(statistics: GroupStatistics, layer: LinearLayer) -> LeftMetric:
    return LeftMetric(importance(statistics, layer))


def _impact_kron(statistics: GroupStatistics, layer: LinearLayer) -> LeftMetric:
    moment = statistics.gradient_moments[layer.name].double() / statistics.tokens
    return LeftMetric(SHRINKAGE * importance(statistics, layer), (1 - SHRINKAGE) * moment)


def _fisher(statistics: GroupStatistics, layer: LinearLayer) -> LeftMetric:
    return LeftMetric(_guarded(statistics.row_fisher[layer.name], statistics, layer))


def _equal(statistics: GroupStatistics, layer: LinearLayer) -> LeftMetric:
    """Weight all outputs equally, by the fraction of tokens that reach the layer."""
    share = statistics.rows / statistics.tokens if statistics.tokens else 1.0
    return LeftMetric(torch.full((layer.out_features,), share, dtype=torch.float64))


def _guarded(sums: Tensor, statistics: GroupStatistics, layer: LinearLayer) -> Tensor:
    means = sums.double() / statistics.tokens
    if not torch.isfinite(means).all():
        raise NotFinite(f"{layer.name}: the gradients of its output are not finite")
    floor = IMPORTANCE_FLOOR * means.mean()
    return means.clamp_min(floor) if floor > 0 else torch.full_like(means, NO_IMPORTANCE)


def _method(
    left: Callable[[GroupStatistics, LinearLayer], LeftMetric],
    right: RightMetric,
    *observations: Observation,
) -> Method:
    return Method(left, right, frozenset(observations))


METHODS = {
    "svd": _method(_equal, RightMetric.IDENTITY),
    "fwsvd": _method(_fisher, RightMetric.IDENTITY, Observation.ROW_FISHER),
    "asvd": _method(_equal, RightMetric.MAGNITUDES, Observation.MAGNITUDES),
    "svd-llm": _method(_equal, RightMetric.SECOND_MOMENT, Observation.MOMENTS),
    "afm": _method(_equal, RightMetric.CENTRED, Observation.MOMENTS),
    "impact": _method(
        _impact, RightMetric.CENTRED, Observation.MOMENTS, Observation.GRADIENT_SQUARES
    ),
    "impact-kron": _method(
        _impact_kron,
        RightMetric.CENTRED,
        Observation.MOMENTS,
        Observation.GRADIENT_SQUARES,
        Observation.GRADIENT_MOMENTS,
    ),
}
