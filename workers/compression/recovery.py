"""Training of low-rank layers after the cut, by the gradients of some loss of the whole model.

Each layer's factors are trained with Adam (Kingma and Ba, arXiv 1412.6980) in coordinates in which
the layer's input and its code have unit variance. With E[x xᵀ] + ε = V Λ Vᵀ, `down` is stepped as
`down` V Λ^½; and each of its rows is divided by the deviation of what it computes, by which the
column of `up` is multiplied. So one step size fits every layer, in proportion to what it has lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.compression.eigen import eigh
from workers.compression.solve import Factors

STEP_SIZE = 0.004
"""Of a layer that has lost all its spectrum, relative to the size of what is trained."""

BETAS = 0.9, 0.95
EPSILON = 0.001
"""As in Adam, but relative to the root mean square of a tensor's steps, because gradients differ by
orders of magnitude. So numbers whose gradient is but rounding do not move."""

WARM_UP = 0.1
LAST_RATE = 0.05
"""The share of the steps in which the rate grows, and the rate at the end of its cosine."""

DAMPING = 0.01
"""Relative to the mean of the input's second moments."""


def rate(step: int, steps: int) -> float:
    """The factor of the step size at a step, which is one of 0 to `steps` − 1."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2


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


class FactoredLinear(nn.Module):
    """A layer by its factors, whose gradients are wanted."""

    bias: nn.Parameter | None

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(factors.down), nn.Parameter(factors.up)
        bias = None if factors.bias is None else nn.Parameter(factors.bias)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down
        up: Tensor = self.up
        bias: Tensor | None = self.bias
        if not torch.is_autocast_enabled(x.device.type):
            down, up = down.to(x.dtype), up.to(x.dtype)
            bias = None if bias is None else bias.to(x.dtype)
        return functional.linear(functional.linear(x, down), up, bias)

    def gradients(self) -> Factors:
        """Those of the factors, in their shapes; zero if nothing has reached the layer."""

        def of(parameter: nn.Parameter) -> Tensor:
            return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

        bias = None if self.bias is None else of(self.bias)
        return Factors(of(self.down), of(self.up), bias)


class Training:
    """One layer in training: its factors in float32, and Adam's means of their gradients.

    They are in the host's memory; steps are computed on `device`. `lost` is the share of the
    layer's spectrum that its rank has dropped. With `mixed_precision` gradients and changes go
    from one system of coordinates to the other by products in bfloat16.
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
        self._device = device
        self._mixed_precision = mixed_precision
        self._whitening = whitening
        self._size = STEP_SIZE * math.sqrt(lost)
        self._values = {
            "down": factors.down.float() / scale[:, None],
            "up": factors.up.float() * scale,
        }
        if factors.bias is not None:
            self._values["bias"] = factors.bias.float().clone()
        self._sizes = {name: _root_mean_square(value) for name, value in self._values.items()}
        self._sizes["down"] = 1 / math.sqrt(factors.down.shape[1])  # its rows have length 1 there
        self._kept = dict(self._values)  # a step makes new tensors
        self._steps = 0
        self._means = {name: torch.zeros_like(value) for name, value in self._values.items()}
        self._squares = {name: torch.zeros_like(value) for name, value in self._values.items()}

    @property
    def factors(self) -> Factors:
        """As they are now; no later step changes them."""
        values = self._values
        return Factors(values["down"], values["up"], values.get("bias"))

    def step(self, gradients: Sequence[Factors], tokens: int, rate: float) -> None:
        """Take a step against the sum of some gradients, which are sums over tokens."""
        self._steps += 1
        corrections = [1 - beta**self._steps for beta in BETAS]
        whitening, host = self._whitening.to(self._device), torch.device("cpu")
        for name, value in self._values.items():
            parts = [getattr(each, name).to(self._device, torch.float32) for each in gradients]
            gradient = sum(parts[1:], start=parts[0]) / tokens
            if name == "down":
                with self._autocast():
                    gradient = whitening.of_gradient(gradient).float()
            mean = self._means[name].to(self._device).lerp_(gradient, 1 - BETAS[0])
            square = self._squares[name].to(self._device).lerp_(gradient.square_(), 1 - BETAS[1])
            change = _adam(mean / corrections[0], square / corrections[1])
            if name == "down":
                with self._autocast():
                    change = whitening.to_change(change)
            self._means[name], self._squares[name] = mean.to(host), square.to(host)
            scale = self._size * self._sizes[name] * rate
            self._values[name] = torch.sub(value, change.to(host), alpha=scale)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed_precision)

    def keep(self) -> None:
        """Keep the factors as they are now."""
        self._kept = dict(self._values)

    def go_back(self) -> None:
        """Take the factors that were kept last, and forget the gradients."""
        self._values = dict(self._kept)
        self._steps = 0
        for tensors in (self._means, self._squares):
            for name, tensor in tensors.items():
                tensors[name] = torch.zeros_like(tensor)

    def state(self) -> dict[str, Tensor]:
        """What `resume` needs, if the factors are those that were kept."""
        state = {"steps": torch.tensor([self._steps])}
        for part, tensors in self._parts().items():
            state |= {f"{part}.{name}": tensor for name, tensor in tensors.items()}
        return state

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of a training of the same layer. Raises KeyError."""
        for part, tensors in self._parts().items():
            for name in tensors:
                tensors[name] = state[f"{part}.{name}"].to(tensors[name]).clone()
        self._steps = int(state["steps"])
        self._kept = dict(self._values)

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        return {"value": self._values, "mean": self._means, "square": self._squares}


def _adam(mean: Tensor, square: Tensor) -> Tensor:
    """The direction of a step; zero where all gradients are."""
    least = EPSILON * square.mean().sqrt()
    return mean / (square.sqrt() + least).clamp_min(torch.finfo(torch.float32).tiny)


def _root_mean_square(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())
