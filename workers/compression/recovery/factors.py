"""Training of layers of low rank, by their factors, in coordinates without scale.

They are trained in coordinates in which the layer's input and its code have unit variance. With
E[x xᵀ] + ε = V Λ Vᵀ, `down` is stepped as `down` V Λ^½; and each of its rows is divided by the
deviation of what it computes, by which the column of `up` is multiplied. So one step size fits
every layer, in proportion to what it has lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.compression.eigen import eigh
from workers.compression.recovery.training import TrainedLinear, Training, multiplied
from workers.compression.solve import Factors

STEP_SIZE = 0.004
"""Of a layer that has lost all its spectrum, relative to the size of what is trained."""

DAMPING = 0.01
"""Relative to the mean of the input's second moments."""


@dataclass(frozen=True)
class Whitening:
    """Coordinates w of a layer's input, x = V Λ^½ w, in which it has unit variance."""

    vectors: Tensor  # (in, in): V
    deviations: Tensor  # (in,): Λ^½, positive

    @classmethod
    def of(cls, name: str, moment: Tensor, dtype: torch.dtype = torch.float64) -> Whitening:
        """Of the input's second moment, (in, in); see `eigh` for `dtype` and the errors."""
        values, vectors = eigh(name, moment, dtype)
        values = values.clamp_min(0)
        values += DAMPING * values.mean()
        if not values.any():  # the input is always zero, in any coordinates
            values = torch.ones_like(values)
        return cls(vectors.float(), values.sqrt().float())

    def to(self, device: torch.device) -> Whitening:
        return Whitening(self.vectors.to(device), self.deviations.to(device))

    def deviation(self, down: Tensor) -> Tensor:
        """The root of the mean square of each row's product with the input, (r,)."""
        lengths: Tensor = (down @ self.vectors * self.deviations).square().sum(1).sqrt()
        return lengths

    def of_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient with respect to `down` V Λ^½, given that with respect to `down`."""
        return gradient @ self.vectors / self.deviations

    def to_change(self, change: Tensor) -> Tensor:
        """The change of `down` that is this change of `down` V Λ^½."""
        return (change / self.deviations) @ self.vectors.T


class FactoredLinear(TrainedLinear):
    """A layer by its factors. Their gradients are wanted."""

    bias: nn.Parameter | None

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(factors.down), nn.Parameter(factors.up)
        bias = None if factors.bias is None else nn.Parameter(factors.bias)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return multiplied(x, self.down, self.up, bias=self.bias)


class FactorTraining(Training):
    """The factors of one layer in training; see `Training`.

    `lost` is the share of the layer's spectrum that its rank has dropped. With `mixed_precision`
    gradients and changes go from one system of coordinates to the other by products in bfloat16.
    """

    def __init__(
        self,
        factors: Factors,
        lost: float,
        whitening: Whitening,
        device: torch.device,
        *,
        mixed_precision: bool = False,
    ) -> None:
        factors = factors.to(torch.device("cpu"))
        deviation = whitening.deviation(factors.down.float())
        scale = deviation.clamp_min(1e-6 * deviation.max()).clamp_min(1e-30)
        self._mixed_precision = mixed_precision
        self._whitening = whitening
        values = {
            "down": factors.down.float() / scale[:, None],
            "up": factors.up.float() * scale,
        }
        if factors.bias is not None:
            values["bias"] = factors.bias.float().clone()
        sizes = {name: _root_mean_square(value) for name, value in values.items()}
        sizes["down"] = 1 / math.sqrt(factors.down.shape[1])  # its rows have length 1 there
        step = STEP_SIZE * math.sqrt(lost)
        super().__init__(values, {name: step * size for name, size in sizes.items()}, device)

    @property
    def layer(self) -> Factors:
        values = self._values
        return Factors(values["down"], values["up"], values.get("bias"))

    def inwards(self, name: str, gradient: Tensor) -> Tensor:
        if name != "down":
            return gradient
        with self._autocast(gradient.device):
            return self._whitening.to(gradient.device).of_gradient(gradient).float()

    def outwards(self, name: str, change: Tensor) -> Tensor:
        if name != "down":
            return change
        with self._autocast(change.device):
            return self._whitening.to(change.device).to_change(change)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._mixed_precision)


def _root_mean_square(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())
