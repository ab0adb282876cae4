"""What a compression method is: a left metric L and a right metric R.

Every method minimises ‖L (W − Ŵ) R‖² over matrices Ŵ of rank r. By Eckart–Young the minimum is
at L⁻¹ (U_r Σ_r V_rᵀ) R⁻¹ with L W R = U Σ Vᵀ, and the error left is the sum of the squared singular
values dropped. A method is one small function from a layer's statistics to its metrics; nothing
else in the code knows which method runs.

| method | L                | R            | source                                              |
|--------|------------------|--------------|-----------------------------------------------------|
| svd    | I                | I            | Eckart and Young, 1936                              |
| afm    | I                | Cov(x)^½     | activation-space PCA; IMPACT with M = ones          |
| impact | diag(√E[g²])     | Cov(x)^½     | IMPACT, arXiv 2507.03828                            |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from workers.compression.errors import SolveFailed
from workers.compression.statistics import GroupStatistics

IMPORTANCE_FLOOR = 1e-6
"""ε of the guard mᵢ ≥ ε · mean(m): an output that saw no gradient keeps D invertible."""


class RightMetric(Enum):
    """R, by the second moment S of the layer's input with R Rᵀ = S."""

    IDENTITY = "identity"
    """S = I: the weights alone count."""

    CENTRED = "centred"
    """S = Cov(x): the output's mean is kept exactly, by a bias."""


@dataclass(frozen=True)
class Metrics:
    """L and R of one layer."""

    left: Tensor  # (out,), float64: the diagonal of L
    right: RightMetric


Method = Callable[[GroupStatistics, str], Metrics]


def importance(statistics: GroupStatistics, layer: str) -> Tensor:
    """m = E[g²] per output, guarded from below; shape (out,), float64. IMPACT's importance.

    Raises SolveFailed if the gradients are not finite. A layer that no gradient reached at all
    has no effect on the loss: its outputs count alike.
    """
    mean_square = statistics.gradient_squares[layer].double() / statistics.tokens
    if not torch.isfinite(mean_square).all():
        raise SolveFailed(f"{layer}: the gradients of its output are not finite")
    floor = IMPORTANCE_FLOOR * mean_square.mean()
    return mean_square.clamp_min(floor) if floor > 0 else torch.ones_like(mean_square)


def impact(statistics: GroupStatistics, layer: str) -> Metrics:
    """Activations weighted by their effect on the loss: C = Cov(y) ⊙ √(m mᵀ)."""
    return Metrics(importance(statistics, layer).sqrt(), RightMetric.CENTRED)


def afm(statistics: GroupStatistics, layer: str) -> Metrics:
    """Activations as they are: C = Cov(y)."""
    return Metrics(_ones(statistics, layer), RightMetric.CENTRED)


def svd(statistics: GroupStatistics, layer: str) -> Metrics:
    """The weights alone: C = W Wᵀ."""
    return Metrics(_ones(statistics, layer), RightMetric.IDENTITY)


def _ones(statistics: GroupStatistics, layer: str) -> Tensor:
    return torch.ones_like(statistics.gradient_squares[layer], dtype=torch.float64)


METHODS: dict[str, Method] = {"impact": impact, "afm": afm, "svd": svd}
