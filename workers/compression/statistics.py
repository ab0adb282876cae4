"""Streaming statistics of activations and gradients, measured without weight gradients.

A method lists the statistics that it needs (`Observation`), and no others are measured. No
statistic of a layer is larger than the square of its smaller side, unless both sides are wanted.
The statistics of shards add up to those of the whole, except for the row Fisher of experts: their
tokens have lost their order, so the tokens of a batch count as one sequence.

Second moments are multiplied in float32 or a higher precision, except for rows in half precision on
a GPU, which go to its tensor cores. These multiply exactly and add 16 or more products at a time to
a float32 sum, but cut off digits where other units round (Khattak and Mikaitis, arXiv 2512.07004),
so that their errors add up. No product therefore sums over more than `ROWS_AT_ONCE` rows. Its error
is at most 2⁻²³ · ROWS_AT_ONCE / 16 = 3·10⁻⁵ of √(Dᵢ Dⱼ), where D is the moment's diagonal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workers.compression.shapes import InputGroup, LinearLayer

GRAM_BLOCK = 192
"""The number of columns multiplied at a time, small enough to skip most of the lower triangle."""

GRAM_BLOCK_ON_GPU = 2048
"""The same on a GPU, which needs large products to be busy."""

ROWS_AT_ONCE = 4096
"""The number of rows that tensor cores sum over in one product."""


class Observation(Enum):
    """A statistic of a layer with input x and output gradient g = ∂ℓ/∂y."""

    MOMENTS = "moments"
    """Mean and covariance of x, or of W x if that is smaller (`InputGroup.keeps_outputs`)."""

    MAGNITUDES = "magnitudes"
    """E|x|, (in,)."""

    GRADIENT_SQUARES = "gradient squares"
    """E[g²], (out,)."""

    GRADIENT_MOMENTS = "gradient moments"
    """E[g gᵀ], (out, out), or Wᵀ E[g gᵀ] W, (in, in), if that is smaller."""

    BOTH_SIDES = "both sides"
    """The moments at full size: of x, and of g. Rounding needs both, whichever is smaller."""

    ROW_FISHER = "row Fisher"
    """The sum over each row of W of the squared gradients ∂ℓ/∂W of whole sequences, (out,)."""


Observations = frozenset[Observation]

GRADIENTS = frozenset(
    {Observation.GRADIENT_SQUARES, Observation.GRADIENT_MOMENTS, Observation.ROW_FISHER}
)
"""The observations that need a backward pass."""


@dataclass
class Moments:
    """Count, mean and scatter of a stream of row vectors of length n.

    The scatter is taken about the mean and merged by the formula of Chan, Golub and LeVeque (1983),
    so that the covariance loses no precision if the mean is far from zero.
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
        """Add `rows`, shape (tokens, n).

        They are multiplied in float32 or their own higher precision, or by tensor cores: see
        `scatter_by_halves`.
        """
        dtype = self.scatter.dtype
        if on_tensor_cores(rows):
            for piece in torch.split(rows, ROWS_AT_ONCE):
                average, scatter = scatter_by_halves(piece)
                self.merge(Moments(len(piece), average.to(dtype), scatter.to(dtype)))
            return
        rows = _at_least_float32(rows)
        average = rows.mean(0)
        self.merge(Moments(len(rows), average.to(dtype), gram(rows - average).to(dtype)))

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
    """The statistics of the layers that share one input.

    A statistic that the method does not need is None or empty.
    """

    inputs: Moments | None = None
    """The moments of the shared input x; None if those of the outputs are kept instead."""

    outputs: dict[str, Moments] = field(default_factory=dict)
    """Per layer, the moments of W x (the output without its bias); empty if `inputs` is kept."""

    magnitudes: Tensor | None = None
    """The sum over rows of |x|, shape (in,)."""

    gradient_squares: dict[str, Tensor] = field(default_factory=dict)
    """Per layer, the sum over rows of g², shape (out,)."""

    gradient_moments: dict[str, Tensor] = field(default_factory=dict)
    """Per layer, the sum over rows of g gᵀ, (out, out), or of h hᵀ with h = Wᵀ g, (in, in)."""

    row_fisher: dict[str, Tensor] = field(default_factory=dict)
    """Per layer, the sum over sequences and columns of (∂ℓ/∂W)², shape (out,)."""

    rows: int = 0
    """The number of tokens that reached these layers: all, except for the experts of a mixture."""

    tokens: int = 0
    """The number of all calibration tokens."""

    @classmethod
    def zeros(
        cls,
        group: InputGroup,
        observations: Observations,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> GroupStatistics:
        def moments(size: int) -> Moments:
            return Moments.zeros(size, dtype=dtype, device=device)

        def per_layer(
            observation: Observation, shape: Callable[[LinearLayer], tuple[int, ...]]
        ) -> dict[str, Tensor]:
            layers = group.layers if observation in observations else ()
            return {
                layer.name: torch.zeros(shape(layer), dtype=dtype, device=device)
                for layer in layers
            }

        both = Observation.BOTH_SIDES in observations
        statistics = cls(
            gradient_squares=per_layer(
                Observation.GRADIENT_SQUARES, lambda layer: (layer.out_features,)
            ),
            gradient_moments=per_layer(
                Observation.GRADIENT_MOMENTS,
                lambda layer: (layer.out_features if both else layer.smaller_side,) * 2,
            ),
            row_fisher=per_layer(Observation.ROW_FISHER, lambda layer: (layer.out_features,)),
        )
        if Observation.MAGNITUDES in observations:
            statistics.magnitudes = torch.zeros(group.in_features, dtype=dtype, device=device)
        if Observation.MOMENTS in observations:
            if group.keeps_outputs and not both:
                statistics.outputs = {
                    layer.name: moments(layer.out_features) for layer in group.layers
                }
            else:
                statistics.inputs = moments(group.in_features)
        return statistics

    def merge(self, other: GroupStatistics) -> None:
        """Add another shard's statistics of the same group."""
        if self.inputs is not None and other.inputs is not None:
            self.inputs.merge(other.inputs)
        for name, moments in other.outputs.items():
            self.outputs[name].merge(moments)
        if self.magnitudes is not None and other.magnitudes is not None:
            self.magnitudes += other.magnitudes
        for ours, theirs in zip(self.sums(), other.sums(), strict=True):
            for name, values in theirs.items():
                ours[name] += values
        self.rows += other.rows
        self.tokens += other.tokens

    def to(self, device: torch.device) -> GroupStatistics:
        squares, gradient_moments, fisher = (
            {name: values.to(device) for name, values in sums.items()} for sums in self.sums()
        )
        return GroupStatistics(
            None if self.inputs is None else self.inputs.to(device),
            {name: moments.to(device) for name, moments in self.outputs.items()},
            None if self.magnitudes is None else self.magnitudes.to(device),
            squares,
            gradient_moments,
            fisher,
            self.rows,
            self.tokens,
        )

    def on_smaller_sides(self, group: InputGroup, weights: Mapping[str, Tensor]) -> GroupStatistics:
        """The same with every gradient's moment on its layer's smaller side, as Wᵀ E[g gᵀ] W.

        The weights, by layer, are (out, in).
        """
        smaller = dict(self.gradient_moments)
        for layer in group.layers:
            moment = smaller.get(layer.name)
            if moment is not None and len(moment) > layer.smaller_side:
                weight = weights[layer.name].to(moment)
                smaller[layer.name] = weight.T @ moment @ weight
        return replace(self, gradient_moments=smaller)

    def sums(self) -> tuple[dict[str, Tensor], ...]:
        """The sums of gradients, each by layer."""
        return self.gradient_squares, self.gradient_moments, self.row_fisher


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The dtype of sums over tokens: float64 on a CPU, float32 on a GPU to save memory."""
    return torch.float64 if device.type == "cpu" else torch.float32


def merged(shards: Iterable[GroupStatistics]) -> GroupStatistics:
    """The sum of the shards' statistics, in their order; does not change the shards."""
    remaining = iter(shards)  # one at a time, because each may be copied to a device
    whole = copy.deepcopy(next(remaining))
    for shard in remaining:
        whole.merge(shard)
    return whole


class Observing:
    """Adds to the statistics whatever passes through a model's layers, while the context is open.

    Only ∂ℓ/∂y is needed: parameters are frozen, so that no weight gradient is ever computed or
    held. The statistics are never computed in a lower precision than float32, even under autocast.
    """

    def __init__(self, model: nn.Module, statistics: Mapping[InputGroup, GroupStatistics]) -> None:
        self._model = model
        self._statistics = statistics
        self._hooks = ExitStack()

    def __enter__(self) -> Observing:
        for group, statistics in self._statistics.items():
            for layer in group.layers:
                module = self._model.get_submodule(layer.name)
                observe = _observer(group, layer, statistics)
                self._hooks.callback(module.register_forward_hook(observe).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()


def _observer(
    group: InputGroup, layer: LinearLayer, statistics: GroupStatistics
) -> Callable[[Any, tuple[Tensor, ...], Tensor], None]:
    first = layer is group.layers[0]

    def hook(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            if first:
                _add_inputs(statistics, args[0].flatten(0, -2))
            if layer.name in statistics.outputs:
                response = output if module.bias is None else output - module.bias
                statistics.outputs[layer.name].update(response.flatten(0, -2))
        if output.requires_grad:
            inputs = args[0].detach() if statistics.row_fisher else None
            add = partial(_add_gradients, statistics, layer, module.weight, inputs)
            output.register_hook(add)  # type: ignore[no-untyped-call]

    return hook


def cross_entropy(logits: Tensor, labels: Tensor, *, differentiate: bool) -> float:
    """The summed loss; with `differentiate`, ∂ℓ/∂logits overwrites the logits.

    Shapes (tokens, vocabulary) and (tokens,). The gradient is computed by hand, because a
    vocabulary is wide: autograd would hold several copies of the logits, this function holds one.
    """
    log_probabilities = _at_least_float32(logits).log_softmax(-1)
    labels = labels[:, None]
    loss = -log_probabilities.gather(1, labels).sum(dtype=torch.float64)
    if differentiate:
        gradient = log_probabilities.exp_()
        gradient.scatter_add_(1, labels, gradient.new_full(labels.shape, -1.0))
        logits.copy_(gradient)
    return float(loss)


def _add_inputs(statistics: GroupStatistics, rows: Tensor) -> None:
    """Add the inputs `rows`, (tokens, in)."""
    statistics.rows += len(rows)
    if statistics.inputs is not None:
        statistics.inputs.update(rows)
    if statistics.magnitudes is not None:
        statistics.magnitudes += rows.to(statistics.magnitudes.dtype).abs().sum(0)


def _add_gradients(
    statistics: GroupStatistics,
    layer: LinearLayer,
    weight: Tensor,
    inputs: Tensor | None,
    gradient: Tensor,
) -> None:
    """Add `gradient`, (..., tokens, out), and for the Fisher `inputs`, (..., tokens, in)."""
    rows = gradient.flatten(0, -2)
    if (squares := statistics.gradient_squares.get(layer.name)) is not None:
        squares += _at_least_float32(rows).square().sum(0)
    if (moments := statistics.gradient_moments.get(layer.name)) is not None:
        # In the gradient's own precision, as the backward pass multiplies the two itself.
        of_output = len(moments) == layer.out_features
        sided = rows if of_output else rows @ weight.to(rows.dtype)
        size = ROWS_AT_ONCE if on_tensor_cores(sided) else len(sided)
        for piece in torch.split(sided, size):
            moments += gram(piece)
    if (fisher := statistics.row_fisher.get(layer.name)) is not None and inputs is not None:
        for g, x in zip(_sequences(gradient), _sequences(inputs), strict=True):
            fisher += (_at_least_float32(g).T @ _at_least_float32(x)).square().sum(1)


def _sequences(rows: Tensor) -> Tensor:
    """(sequences, tokens, n); the tokens of an expert count as one sequence."""
    return rows.flatten(0, -3) if rows.ndim > 2 else rows[None]


def on_tensor_cores(rows: Tensor) -> bool:
    """Whether products of these rows are left to a GPU's tensor cores."""
    return rows.is_cuda and rows.dtype in (torch.bfloat16, torch.float16)


def scatter_by_halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, (n,), and the scatter about it, (n, n), of rows in half precision, in float32.

    A mean far from zero would cost the digits of products of the rows themselves, and rows centred
    in bfloat16 would lose theirs. So the rows are centred in float32, about their mean in bfloat16,
    and split into two parts in bfloat16 that have 16 bits together. All four products of the parts
    are summed. The error is at most 2⁻¹⁴ √(Dᵢ Dⱼ), where D is the scatter's diagonal: half of it
    from the split, which mostly is exact, and half from the sums (see the module).
    """
    shift = rows.float().mean(0).bfloat16()
    centred = rows.float() - shift
    offset = centred.mean(0)
    high = centred.bfloat16()
    low = (centred - high).bfloat16()
    scatter = product(high.T, low)
    scatter = scatter + scatter.T
    scatter += gram(high)
    scatter += gram(low)
    scatter -= torch.outer(offset, offset) * len(rows)
    return shift + offset, scatter


def gram(rows: Tensor) -> Tensor:
    """rowsᵀ · rows, (n, n); computes the blocks on and above the diagonal and mirrors the rest."""
    size = rows.shape[1]
    block = GRAM_BLOCK_ON_GPU if rows.is_cuda else GRAM_BLOCK
    whole = rows.new_empty(size, size, dtype=torch.promote_types(rows.dtype, torch.float32))
    for start in range(0, size, block):
        end = min(start + block, size)
        whole[start:end, start:] = product(rows[:, start:end].T, rows[:, start:])
        whole[end:, start:end] = whole[start:end, end:].T
    return whole


def product(left: Tensor, right: Tensor) -> Tensor:
    """left · right in float32 or the higher precision of both."""
    if on_tensor_cores(left):
        return torch.mm(left, right, out_dtype=torch.float32)
    return _at_least_float32(left) @ _at_least_float32(right)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
