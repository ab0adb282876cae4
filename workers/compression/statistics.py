"""Streaming statistics of activations and gradients, measured without weight gradients.

For every input group, one second moment on its smaller side (see `InputGroup.keeps_outputs`), and
for every layer the sum of squared output gradients. The
statistics of shards add up to those of the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from workers.compression.errors import SolveFailed
from workers.compression.layers import InputGroup, LinearLayer


@dataclass
class Moments:
    """Count, mean and scatter of a stream of row vectors of length n.

    The scatter is kept about the mean and merged by the formula of Chan, Golub and LeVeque (1983),
    so that a mean far from zero costs no digits of the covariance.
    """

    count: int
    average: Tensor  # (n,): the mean of the rows so far
    scatter: Tensor  # (n, n): the sum of (v − mean)(v − mean)ᵀ

    @classmethod
    def zeros(cls, size: int, *, dtype: torch.dtype, device: torch.device) -> Moments:
        return cls(
            0,
            torch.zeros(size, dtype=dtype, device=device),
            torch.zeros(size, size, dtype=dtype, device=device),
        )

    def update(self, rows: Tensor) -> None:
        """Add `rows`, shape (tokens, n), multiplied in float32 or their own higher precision."""
        rows = _at_least_float32(rows)
        average = rows.mean(0)
        centred = rows - average
        dtype = self.scatter.dtype
        self.merge(Moments(len(rows), average.to(dtype), (centred.T @ centred).to(dtype)))

    def merge(self, other: Moments) -> None:
        """Add the rows of another stream."""
        total = self.count + other.count
        if other.count == 0:
            return
        shift = other.average - self.average
        self.average += shift * (other.count / total)
        self.scatter += other.scatter
        self.scatter += torch.outer(shift, shift) * (self.count * other.count / total)
        self.count = total

    def to(self, device: torch.device) -> Moments:
        return Moments(self.count, self.average.to(device), self.scatter.to(device))

    def mean(self) -> Tensor:
        """E[v], shape (n,), float64."""
        return self.average.double()

    def second_moment(self) -> Tensor:
        """E[v vᵀ], shape (n, n), float64."""
        return self.covariance() + torch.outer(self.mean(), self.mean())

    def covariance(self) -> Tensor:
        """Cov(v), shape (n, n), float64."""
        return self.scatter.double() / self.count


@dataclass
class GroupStatistics:
    """What calibration has learnt about the layers that share one input."""

    inputs: Moments | None
    """Of the shared input x; None where the outputs are kept instead."""

    outputs: dict[str, Moments] = field(default_factory=dict)
    """Per layer, of W x (the output without its bias); empty where the input is kept."""

    gradient_squares: dict[str, Tensor] = field(default_factory=dict)
    """Per layer, the sum over tokens of g², shape (out,)."""

    tokens: int = 0

    @classmethod
    def zeros(
        cls, group: InputGroup, *, dtype: torch.dtype, device: torch.device
    ) -> GroupStatistics:
        def moments(size: int) -> Moments:
            return Moments.zeros(size, dtype=dtype, device=device)

        outputs = {layer.name: moments(layer.out_features) for layer in group.layers}
        return cls(
            inputs=None if group.keeps_outputs else moments(group.in_features),
            outputs=outputs if group.keeps_outputs else {},
            gradient_squares={
                layer.name: torch.zeros(layer.out_features, dtype=dtype, device=device)
                for layer in group.layers
            },
        )

    def merge(self, other: GroupStatistics) -> None:
        """Add another shard's statistics of the same group."""
        if self.inputs is not None and other.inputs is not None:
            self.inputs.merge(other.inputs)
        for name, moments in other.outputs.items():
            self.outputs[name].merge(moments)
        for name, squares in other.gradient_squares.items():
            self.gradient_squares[name] += squares
        self.tokens += other.tokens

    def to(self, device: torch.device) -> GroupStatistics:
        return GroupStatistics(
            None if self.inputs is None else self.inputs.to(device),
            {name: moments.to(device) for name, moments in self.outputs.items()},
            {name: squares.to(device) for name, squares in self.gradient_squares.items()},
            self.tokens,
        )


def merged(shards: Iterable[GroupStatistics]) -> GroupStatistics:
    """The sum of the shards' statistics, in their order; the shards are left as they are."""
    remaining = iter(shards)  # one at a time: they may be on their way to a device
    whole = copy.deepcopy(next(remaining))
    for shard in remaining:
        whole.merge(shard)
    return whole


class Calibration:
    """Adds to a model's statistics while batches are run forward and backward through it.

    Only ∂ℓ/∂y is needed, so every parameter is frozen and the embedding's output is what requires
    grad: no weight gradient is ever computed or held. A context manager; the model is left frozen.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[InputGroup],
        statistics: dict[str, GroupStatistics],
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.groups = tuple(groups)
        self.statistics = statistics
        self._hooks: list[RemovableHandle] = []

    @staticmethod
    def zeros(
        model: nn.Module, groups: Iterable[InputGroup], dtype: torch.dtype
    ) -> dict[str, GroupStatistics]:
        """Empty statistics for every group, by group name, on the model's device."""
        device = next(model.parameters()).device
        return {
            group.name: GroupStatistics.zeros(group, dtype=dtype, device=device) for group in groups
        }

    def __enter__(self) -> Calibration:
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        self._hooks.append(embedding.register_forward_hook(_require_grad))
        for group in self.groups:
            for layer in group.layers:
                module = self.model.get_submodule(layer.name)
                self._hooks.append(module.register_forward_hook(self._observe(group, layer)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def run(self, input_ids: Tensor) -> float:
        """Add one batch of full sequences, shape (batch, length); the summed loss is returned.

        Raises SolveFailed if the loss is not finite.
        """
        logits = self.model(input_ids=input_ids, use_cache=False).logits
        loss = functional.cross_entropy(
            _at_least_float32(logits[:, :-1].flatten(0, 1)),
            input_ids[:, 1:].flatten(),
            reduction="sum",
        )
        if not torch.isfinite(loss):
            raise SolveFailed("the model's loss on the calibration text is not finite")
        loss.backward()  # type: ignore[no-untyped-call]
        for statistics in self.statistics.values():
            statistics.tokens += input_ids.numel()
        return float(loss.detach())

    def _observe(
        self, group: InputGroup, layer: LinearLayer
    ) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        statistics = self.statistics[group.name]
        squares = statistics.gradient_squares[layer.name]

        def add_gradient(gradient: Tensor) -> None:
            rows = gradient.flatten(0, -2)
            squares.add_(rows.to(squares.dtype).square().sum(0))

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                if group.keeps_outputs:
                    bias = module.bias
                    response = output - bias if isinstance(bias, Tensor) else output
                    statistics.outputs[layer.name].update(response.flatten(0, -2))
                elif layer is group.layers[0] and statistics.inputs is not None:
                    statistics.inputs.update(args[0].flatten(0, -2))
            output.register_hook(add_gradient)  # type: ignore[no-untyped-call]

        return hook


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _require_grad(_module: nn.Module, _args: tuple[object, ...], output: Tensor) -> Tensor:
    return output.requires_grad_(True)
