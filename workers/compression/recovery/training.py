"""Adam (Kingma and Ba, arXiv 1412.6980) for the numbers of one layer, whatever its form.

A step is in proportion to the size of what is trained, so one step size fits every layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.compression.rounding.grid import RoundedWeight
from workers.compression.solve import Factors

BETAS = 0.9, 0.95
EPSILON = 0.001
"""As in Adam, but relative to the root mean square of a tensor's steps, because gradients differ by
orders of magnitude. So numbers whose gradient is but rounding do not move."""

WARM_UP = 0.1
LAST_RATE = 0.05
"""The share of the steps in which the rate grows, and the rate at the end of its cosine."""


@dataclass(frozen=True)
class RoundedLayer:
    """A linear layer whose weight has few bits."""

    weight: RoundedWeight
    bias: Tensor | None  # (out,)

    def to(self, device: torch.device) -> RoundedLayer:
        return RoundedLayer(
            self.weight.to(device), None if self.bias is None else self.bias.to(device)
        )


TrainedLayer = Factors | RoundedLayer
"""A layer in training, as it is now."""

Gradients = Mapping[str, Tensor]
"""Those of what is trained of a layer, by the names of its module's parameters."""


class TrainedLinear(nn.Module):
    """A layer in training in its model; its parameters are those whose gradients are wanted."""

    def gradients(self) -> dict[str, Tensor]:
        """By the parameters' names; zero if nothing has reached the layer."""
        return {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in self.named_parameters()
        }


def multiplied(x: Tensor, *weights: Tensor, bias: Tensor | None) -> Tensor:
    """`x` times one weight after the other, plus the bias, in the precision of `x` or autocast."""
    if not torch.is_autocast_enabled(x.device.type):
        weights = tuple(weight.to(x.dtype) for weight in weights)
        bias = None if bias is None else bias.to(x.dtype)
    *first, last = weights
    for weight in first:
        x = functional.linear(x, weight)
    return functional.linear(x, last, bias)


def rate(step: int, steps: int) -> float:
    """The factor of the step size at a step, which is one of 0 to `steps` − 1."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2


class Training(ABC):
    """One layer in training: its numbers in float32, and Adam's means of their gradients.

    `sizes` are those of a step of each tensor, or of each of its numbers. All is in the host's
    memory; steps are computed on `device`.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        sizes: Mapping[str, float | Tensor],
        device: torch.device,
    ) -> None:
        self._values = dict(values)
        self._sizes = dict(sizes)
        self._device = device
        self._kept = dict(self._values)  # a step makes new tensors
        self._steps = 0
        self._means = {name: torch.zeros_like(value) for name, value in self._values.items()}
        self._squares = {name: torch.zeros_like(value) for name, value in self._values.items()}

    @property
    @abstractmethod
    def layer(self) -> TrainedLayer:
        """As it is now; no later step changes it."""

    def inwards(self, name: str, gradient: Tensor) -> Tensor:  # noqa: ARG002
        """The gradient in the coordinates in which a step is taken."""
        return gradient

    def outwards(self, name: str, change: Tensor) -> Tensor:  # noqa: ARG002
        """The change of the values that is this change in those coordinates."""
        return change

    def step(self, gradients: Sequence[Gradients], tokens: int, rate: float) -> None:
        """Take a step against the sum of some gradients, which are sums over tokens."""
        self._steps += 1
        corrections = [1 - beta**self._steps for beta in BETAS]
        host = torch.device("cpu")
        for name, value in self._values.items():
            parts = [each[name].to(self._device, torch.float32) for each in gradients]
            gradient = self.inwards(name, sum(parts[1:], start=parts[0]) / tokens)
            mean = self._means[name].to(self._device).lerp_(gradient, 1 - BETAS[0])
            square = self._squares[name].to(self._device).lerp_(gradient.square_(), 1 - BETAS[1])
            change = self.outwards(name, _adam(mean / corrections[0], square / corrections[1]))
            self._means[name], self._squares[name] = mean.to(host), square.to(host)
            change = change.to(host, torch.float32)
            self._values[name] = value - change.mul_(self._sizes[name] * rate)

    def keep(self) -> None:
        """Keep the values as they are now."""
        self._kept = dict(self._values)

    def go_back(self) -> None:
        """Take the values that were kept last, and forget the gradients."""
        self._values = dict(self._kept)
        self._steps = 0
        for tensors in (self._means, self._squares):
            for name, tensor in tensors.items():
                tensors[name] = torch.zeros_like(tensor)

    def state(self, *, ended: bool = False) -> dict[str, Tensor]:
        """What `resume` needs, if the values are those that were kept.

        The values alone if training has ended; they are a third of it.
        """
        state = {
            f"{part}.{name}": tensor
            for part, tensors in self._parts(ended).items()
            for name, tensor in tensors.items()
        }
        return state if ended else state | {"steps": torch.tensor([self._steps])}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of a training of the same layer. Raises KeyError."""
        ended = "steps" not in state
        for part, tensors in self._parts(ended).items():
            for name in tensors:
                tensors[name] = state[f"{part}.{name}"].to(tensors[name]).clone()
        if not ended:
            self._steps = int(state["steps"])
        self._kept = dict(self._values)

    def _parts(self, ended: bool) -> dict[str, dict[str, Tensor]]:
        values = {"value": self._values}
        return values if ended else values | {"mean": self._means, "square": self._squares}


def _adam(mean: Tensor, square: Tensor) -> Tensor:
    """The direction of a step; zero where all gradients are."""
    least = EPSILON * square.mean().sqrt()
    return mean / (square.sqrt() + least).clamp_min(torch.finfo(torch.float32).tiny)
