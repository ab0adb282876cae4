"""The eigenproblem of one layer: its spectrum, and the factors of every rank at once.

For A = L W R the top left singular vectors U of A give the best rank-r layer
Ŵ = L⁻¹ U_r U_rᵀ L W: R is never inverted. U comes from the smaller of two problems:

* out × out: the eigenvectors of A Aᵀ = L W S Wᵀ L, with S = R Rᵀ. This is IMPACT's C = Cov(D y).
* in × in: the eigenvectors V of Aᵀ A, and U from the QR decomposition of A V, whose columns are
  orthogonal already but for rounding.

All in float64. A spectrum that is not finite, or negative beyond rounding, raises SolveFailed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.allocation import LayerOptions
from workers.compression.errors import SolveFailed
from workers.compression.layers import InputGroup, LinearLayer
from workers.compression.metrics import Method, Metrics, RightMetric
from workers.compression.statistics import GroupStatistics, Moments

NEGATIVE_TOLERANCE = 1e-6
"""How far below zero, relative to the largest, rounding may push an eigenvalue."""


@dataclass(frozen=True)
class Factors:
    """One layer at rank r: y ≈ up · (down · x) + bias."""

    down: Tensor  # (r, in)
    up: Tensor  # (out, r)
    bias: Tensor | None  # (out,)

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class Solution:
    """A solved layer: every rank up to `max_rank` is only a truncation of it."""

    layer: LinearLayer
    spectrum: Tensor  # (min(out, in),) float64, descending: the error that each direction carries
    down: Tensor  # (max_rank, in): U_rᵀ L W
    up: Tensor  # (out, max_rank): L⁻¹ U_r
    bias: Tensor | None  # (out,): the layer's own
    mean: Tensor | None  # (out,): E[W x], where the method keeps the output's mean exactly
    mean_code: Tensor | None  # (max_rank,): U_rᵀ L E[W x]

    @property
    def max_rank(self) -> int:
        return self.down.shape[0]

    @property
    def has_bias(self) -> bool:
        """Whether the factors carry a bias: the layer's own, or the one that keeps the mean."""
        return self.bias is not None or self.mean is not None

    def options(self) -> LayerOptions:
        """What the layer offers to the allocation of ranks."""
        return LayerOptions(
            name=self.layer.name,
            spectrum=self.spectrum.cpu(),
            max_rank=self.max_rank,
            dense_cost=self.layer.parameters,
            sides=self.layer.out_features + self.layer.in_features,
            fixed_cost=_fixed_cost(self.layer, has_bias=self.has_bias),
        )

    def to(self, device: torch.device) -> Solution:
        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return Solution(
            self.layer,
            self.spectrum.to(device),
            self.down.to(device),
            self.up.to(device),
            moved(self.bias),
            moved(self.mean),
            moved(self.mean_code),
        )

    def truncate(self, rank: int) -> Factors:
        """The best factors of the given rank, 1 to `max_rank`, in the precision of `down`.

        With b the layer's bias the new one is ȳ + up U_rᵀ L (b − ȳ) = b + E[Wx] − up U_rᵀ L E[Wx].
        """
        if not 1 <= rank <= self.max_rank:
            raise ValueError(f"{self.layer.name}: rank {rank} is not in 1..{self.max_rank}")
        # Copies: a view would carry every rank along when it is sent to another process.
        up = self.up[:, :rank].clone(memory_format=torch.contiguous_format)
        bias = self.bias
        if self.mean is not None and self.mean_code is not None:
            correction = self.mean - up @ self.mean_code[:rank]
            bias = correction if bias is None else bias + correction
        return Factors(self.down[:rank].clone(), up, bias)


def break_even_rank(layer: LinearLayer, *, has_bias: bool) -> int:
    """The largest rank, at least 1, at which the stored layer is smaller than the dense one.

    It is stored in r (out + in − r) parameters, the order of its outputs and, if `has_bias`, a
    bias: see `workers.compression.interpolation`.
    """
    sides = layer.out_features + layer.in_features
    spare = layer.parameters - _fixed_cost(layer, has_bias=has_bias)
    ranks = range(1, _full_rank(layer) + 1)
    return max(1, bisect_left(ranks, spare, key=lambda rank: rank * (sides - rank)))


def _fixed_cost(layer: LinearLayer, *, has_bias: bool) -> int:
    return layer.out_features * (1 + has_bias)


def solve_group(
    group: InputGroup,
    weights: Mapping[str, Tensor],
    biases: Mapping[str, Tensor | None],
    statistics: GroupStatistics,
    method: Method,
    *,
    max_rank: int | None = None,
) -> dict[str, Solution]:
    """Solve every layer of a group; weights are (out, in), biases (out,).

    `max_rank` overrides the default, each layer's break-even rank (a larger rank costs more than
    staying dense). Factors come in the weight's dtype, in float32 where that is a half precision;
    spectra come in float64.

    Raises SolveFailed naming the layer, if its numbers are not finite.
    """
    inputs = _Inputs(statistics.inputs)
    solutions = {}
    for layer in group.layers:
        weight = weights[layer.name]
        metrics = method(statistics, layer.name)
        spectrum, basis = _left_singular_vectors(
            layer, weight.double(), metrics, inputs, statistics.outputs.get(layer.name)
        )
        _check_spectrum(layer.name, spectrum)
        mean = None
        if metrics.right is RightMetric.CENTRED:
            mean = _mean_response(layer, weight.double(), statistics)
        has_bias = layer.has_bias or mean is not None
        rank = min(max_rank or break_even_rank(layer, has_bias=has_bias), _full_rank(layer))
        solutions[layer.name] = _solution(
            layer, weight, biases[layer.name], metrics, spectrum.clamp_min(0), basis[:, :rank], mean
        )
    return solutions


def _solution(
    layer: LinearLayer,
    weight: Tensor,
    bias: Tensor | None,
    metrics: Metrics,
    spectrum: Tensor,
    basis: Tensor,
    mean: Tensor | None,
) -> Solution:
    """Turn U_r, shape (out, r), into factors."""
    left = metrics.left
    project = basis.T * left  # (r, out): U_rᵀ L
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return Solution(
        layer=layer,
        spectrum=spectrum,
        down=(project @ weight.double()).to(dtype),
        up=(basis / left[:, None]).to(dtype),
        bias=None if bias is None else bias.to(dtype),
        mean=None if mean is None else mean.to(dtype),
        mean_code=None if mean is None else (project @ mean).to(dtype),
    )


class _Inputs:
    """The second moment S of a group's input and its root, computed at most once for the group."""

    def __init__(self, moments: Moments | None) -> None:
        self._moments = moments
        self._covariance: Tensor | None = None
        self._root: Tensor | None = None

    def covariance(self) -> Tensor:
        if self._covariance is None:
            if self._moments is None:
                raise ValueError("the group keeps its outputs' moments, not its input's")
            self._covariance = self._moments.covariance()
        return self._covariance

    def root(self, layer: LinearLayer) -> Tensor:
        """R with R Rᵀ = S, shape (in, in): V diag(√λ), so that no matrix needs to be definite."""
        if self._root is None:
            values, vectors = _eigh(layer.name, self.covariance())
            _check_spectrum(layer.name, values.flip(0))
            self._root = vectors * values.clamp_min(0).sqrt()
        return self._root


def _left_singular_vectors(
    layer: LinearLayer, weight: Tensor, metrics: Metrics, inputs: _Inputs, outputs: Moments | None
) -> tuple[Tensor, Tensor]:
    """The squared singular values of A = L W R and its left singular vectors, descending.

    Shapes (k,) and (out, k) with k = min(out, in).
    """
    scaled = metrics.left[:, None] * weight  # (out, in): L W
    centred = metrics.right is RightMetric.CENTRED
    if centred and outputs is not None:
        gram = metrics.left[:, None] * outputs.covariance() * metrics.left
        return _top(_eigh(layer.name, gram), _full_rank(layer))
    if layer.out_features <= layer.in_features:
        gram = scaled @ inputs.covariance() @ scaled.T if centred else scaled @ scaled.T
        return _top(_eigh(layer.name, gram), _full_rank(layer))
    product = scaled @ inputs.root(layer) if centred else scaled  # (out, in): A
    values, vectors = _top(_eigh(layer.name, product.T @ product), _full_rank(layer))
    return values, torch.linalg.qr(product @ vectors).Q


def _eigh(name: str, matrix: Tensor) -> tuple[Tensor, Tensor]:
    if not torch.isfinite(matrix).all():
        raise SolveFailed(f"{name}: its statistics are not finite")
    try:
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    except RuntimeError as error:  # torch.linalg.LinAlgError, on every backend
        raise SolveFailed(f"{name}: the eigendecomposition did not converge: {error}") from error
    return values, vectors


def _top(pairs: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues with their vectors, largest first."""
    values, vectors = pairs
    return values.flip(0)[:count], vectors.flip(1)[:, :count]


def _check_spectrum(name: str, spectrum: Tensor) -> None:
    if not torch.isfinite(spectrum).all():
        raise SolveFailed(f"{name}: its spectrum is not finite")
    if spectrum.numel() and spectrum[-1] < -NEGATIVE_TOLERANCE * spectrum[0].abs():
        raise SolveFailed(f"{name}: its covariance has the eigenvalue {float(spectrum[-1]):.3e}")


def _mean_response(layer: LinearLayer, weight: Tensor, statistics: GroupStatistics) -> Tensor:
    """E[W x], shape (out,), float64."""
    if statistics.inputs is not None:
        return weight @ statistics.inputs.mean()
    return statistics.outputs[layer.name].mean()


def _full_rank(layer: LinearLayer) -> int:
    return min(layer.out_features, layer.in_features)
