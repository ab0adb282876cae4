"""Training of layers in few bits: the integers stay, and the scales of their groups are trained.

A step moves a scale by a share of itself, which is half as large for each further bit: neighbouring
integers of b bits lie about 2^−b of a group's largest weight apart, and a scale corrects no more.
Students have scales as they are stored, so what is measured in training is what artifacts have.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from workers.compression.recovery.training import (
    RoundedLayer,
    TrainedLinear,
    Training,
    multiplied,
)
from workers.compression.rounding.grid import scaled

STEP_SIZE = 0.001
STEP_BITS = 4
"""The share of itself by which a scale of integers of so many bits moves in a step."""


class ScaledLinear(TrainedLinear):
    """A layer by its integers and scales. Gradients of the scales are wanted."""

    def __init__(self, layer: RoundedLayer) -> None:
        super().__init__()
        self.codes, self.bias = layer.weight.codes, layer.bias
        self.scales = nn.Parameter(layer.weight.scales.float())

    def forward(self, x: Tensor) -> Tensor:
        scales = self.scales.to(torch.promote_types(x.dtype, torch.float32))
        return multiplied(x, scaled(self.codes, scales), bias=self.bias)


class ScaleTraining(Training):
    """The scales of one layer in training; see `Training`."""

    def __init__(self, layer: RoundedLayer, device: torch.device) -> None:
        self._layer = layer.to(torch.device("cpu"))
        scales = self._layer.weight.scales.float()
        share = STEP_SIZE * 2.0 ** (STEP_BITS - layer.weight.width.bits)
        super().__init__({"scales": scales}, {"scales": share * scales.abs()}, device)

    @property
    def layer(self) -> RoundedLayer:
        weight = self._layer.weight
        return replace(
            self._layer,
            weight=replace(weight, scales=self._values["scales"].to(weight.scales.dtype)),
        )
