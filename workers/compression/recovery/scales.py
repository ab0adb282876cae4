"""Training of layers in few bits: the integers stay, and the scales of their groups are trained.

A scale moves by a share of itself, the smaller, the more bits there are: a step of an integer of b
bits is a share of about 2^−b of a group's largest weight, and a scale has that much to correct.
Students have scales as they are stored, so what is measured in training is what artifacts have.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.compression.recovery.training import RoundedLayer, TrainedLinear, Training

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
        grouped = self.codes.to(scales.dtype).reshape(*scales.shape, -1)
        weight, bias = (grouped * scales[..., None]).flatten(1), self.bias
        if not torch.is_autocast_enabled(x.device.type):
            weight = weight.to(x.dtype)
            bias = None if bias is None else bias.to(x.dtype)
        return functional.linear(x, weight, bias)


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
