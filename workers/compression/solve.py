"""Solves the eigenproblem of one layer for its spectrum and the factors of every rank at once.

For A = L W R the top left singular vectors U of A give the best rank-r layer
Ŵ = L⁻¹ U_r U_rᵀ L W. They are computed on the layer's smaller side; with G = LᵀL and S = R Rᵀ:

* out × out: U are the eigenvectors of A Aᵀ = L (W S Wᵀ) Lᵀ, which is IMPACT's C = Cov(D y);
  `up` = L⁻¹ U_r.
* in × in: the eigenvectors V of Aᵀ A = Rᵀ (Wᵀ G W) R give `up` = L⁻¹ U_r = W R V_r Σ_r⁻¹, so that
  G is needed only as Wᵀ G W, which is no larger than the smaller side.

In both cases `down` = U_rᵀ L W = upᵀ G W. So a solution holds the layer's metric and one matrix of
the smaller side, which give the factors of every rank. All arithmetic is in float64, except for the
eigenvectors on a GPU (`workers.compression.eigen`). A spectrum that is not finite, or negative
beyond rounding, raises SolveFailed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from workers.compression.candidates import LayerCandidates, RoundedCandidate, Storage
from workers.compression.eigen import eigh, finite
from workers.compression.errors import SolveFailed
from workers.compression.metrics import LeftMetric, Method, RightMetric, input_magnitudes
from workers.compression.shapes import InputGroup, LinearLayer
from workers.compression.statistics import GroupStatistics, Moments

NEGATIVE_TOLERANCE = 1e-6
"""How far below zero, relative to the product of what was multiplied, rounding may push an
eigenvalue."""

TILE = 8
"""Tensor cores are several times slower with rows of half precision that do not begin at multiples
of 16 bytes."""

LARGE_SIDE = 256
"""In layers whose smaller side is at least this, ranks are multiples of the tile."""

NUMERICAL_RANK = 1e-13
"""Directions with a smaller share of the largest eigenvalue are rounding errors."""


@dataclass(frozen=True)
class Factors:
    """One layer at rank r: y ≈ up · (down · x) + bias."""

    down: Tensor  # (r, in)
    up: Tensor  # (out, r)
    bias: Tensor | None  # (out,)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def to(self, device: torch.device) -> Factors:
        bias = None if self.bias is None else self.bias.to(device)
        return Factors(self.down.to(device), self.up.to(device), bias)


@dataclass(frozen=True)
class Solution:
    """A solved layer; truncating it gives every rank up to `max_rank`."""

    layer: LinearLayer
    left: LeftMetric
    spectrum: Tensor  # (smaller side,) float64, descending: the error without each direction
    directions: Tensor  # (smaller side, max_rank): L⁻¹ U_r, or R V_r Σ_r⁻¹
    mean: Tensor | None  # (out,) float64: E[W x], if the method preserves the output's mean exactly
    mean_code: Tensor | None  # (max_rank,) float64: U_rᵀ L E[W x]

    @property
    def max_rank(self) -> int:
        """The largest rank; 0 for a layer that stays dense because no token reached it."""
        return self.directions.shape[1]

    @property
    def has_bias(self) -> bool:
        """Whether the factors have a bias: the layer's own, or one that preserves the mean."""
        return self.layer.has_bias or self.mean is not None

    def options(
        self,
        storage: Storage = Storage.INTERPOLATIVE,
        *,
        number_bytes: int = 2,
        rounded: tuple[RoundedCandidate, ...] = (),
    ) -> LayerCandidates:
        """The layer's candidates for the allocation, among them the `rounded` ones.

        `number_bytes` is what a number takes in the artifacts' precision.
        """
        tile = rank_tile(self.layer)
        largest = min(self.max_rank, break_even_rank(self.layer, self.has_bias, storage))
        return LayerCandidates(
            name=self.layer.name,
            spectrum=self.spectrum.cpu(),
            max_rank=largest // tile * tile,
            dense_cost=self.layer.parameters,
            sides=self.layer.out_features + self.layer.in_features,
            fixed_cost=_fixed_cost(self.layer, self.has_bias, storage),
            storage=storage,
            dense_bytes=self.layer.parameters * number_bytes,
            rounded=rounded,
            tile=tile,
            importance=self._importance(),
        )

    def _importance(self) -> Tensor | None:
        """The outputs' importance, the largest first; None if all are equally important.

        It is the diagonal that L has in every method: for impact-kron a multiple of IMPACT's.
        """
        diagonal = self.left.diagonal.cpu()
        if not self.max_rank or bool((diagonal == diagonal[0]).all()):
            return None
        return diagonal.sort(descending=True).values

    def to_host(self) -> Solution:
        """The same solution in the host's memory."""
        host = torch.device("cpu")
        return replace(
            self,
            left=self.left.to(host),
            spectrum=self.spectrum.to(host),
            directions=self.directions.to(host),
            mean=None if self.mean is None else self.mean.to(host),
            mean_code=None if self.mean_code is None else self.mean_code.to(host),
        )

    def truncate(self, rank: int, weight: Tensor, bias: Tensor | None) -> Factors:
        """The best factors of the given rank, 1 to `max_rank`, for the layer's own weight and bias.

        They are in the weight's dtype, or in float32 if that is a half precision. With b the
        layer's bias, the new bias is ȳ + up U_rᵀ L (b − ȳ) = b + E[Wx] − up U_rᵀ L E[Wx].
        """
        if not 1 <= rank <= self.max_rank:
            raise ValueError(f"{self.layer.name}: rank {rank} is not in 1..{self.max_rank}")
        dtype = torch.promote_types(weight.dtype, torch.float32)
        weight = weight.double()
        directions = self.directions[:, :rank].to(weight)
        up = directions if self.layer.output_is_smaller else weight @ directions
        down = _downwards(self.layer, self.left.to(weight.device), weight, directions, up)
        if not (up.isfinite().all() and down.isfinite().all()):
            raise SolveFailed(f"{self.layer.name}: its factors of rank {rank} are not finite")
        if self.mean is not None and self.mean_code is not None:
            shift = self.mean.to(up) - up @ self.mean_code[:rank].to(up)
            bias = shift if bias is None else shift + bias
        return Factors(
            down.to(dtype), up.to(dtype, copy=True), None if bias is None else bias.to(dtype)
        )


def rank_tile(layer: LinearLayer) -> int:
    """What the layer's ranks are multiples of."""
    return TILE if layer.smaller_side >= LARGE_SIDE else 1


def break_even_rank(
    layer: LinearLayer, has_bias: bool, storage: Storage = Storage.INTERPOLATIVE
) -> int:
    """The largest rank, at least 1, at which the stored layer is smaller than the dense one.

    `has_bias` is whether the stored layer has a bias.
    """
    sides = layer.out_features + layer.in_features
    spare = layer.parameters - _fixed_cost(layer, has_bias, storage)
    ranks = range(1, layer.smaller_side + 1)
    return max(1, bisect_left(ranks, spare, key=lambda rank: storage.parameters(rank, sides)))


def _fixed_cost(layer: LinearLayer, has_bias: bool, storage: Storage) -> int:
    """The parameters of the bias, and of the outputs' order if the form stores it."""
    return layer.out_features * (has_bias + (storage is Storage.INTERPOLATIVE))


def solve_group(
    group: InputGroup,
    weights: Mapping[str, Tensor],
    statistics: GroupStatistics,
    method: Method,
    *,
    dtype: torch.dtype = torch.float64,
    max_rank: int | None = None,
) -> dict[str, Solution]:
    """Solve every layer of a group; the weights, by layer, are (out, in).

    `max_rank` overrides the default, each layer's break-even rank (a larger rank costs more than
    staying dense). Layers that no calibration token reached can only stay dense. Spectra are in
    float64; with a `dtype` of float32 the eigenvectors are computed in it first, see
    `workers.compression.eigen`.

    Raises SolveFailed naming the layer, if its numbers are not finite.
    """
    unreached = statistics.tokens > 0 and statistics.rows == 0
    statistics = statistics.on_smaller_sides(group, weights)
    inputs = _Inputs(group, statistics, method.right)

    def solve(layer: LinearLayer) -> Solution:
        weight = weights[layer.name].detach()
        if unreached:
            return _unsolved(layer, weight)
        left = method.left(statistics, layer).to(weight.device)
        return _solved(layer, weight, left, inputs, dtype, max_rank)

    return {layer.name: solve(layer) for layer in group.layers}


def _unsolved(layer: LinearLayer, weight: Tensor) -> Solution:
    side, nothing = layer.smaller_side, weight.new_zeros(0, dtype=torch.float64)
    left = LeftMetric(nothing.new_ones(layer.out_features))
    return Solution(layer, left, nothing.new_zeros(side), nothing.reshape(side, 0), None, None)


def _solved(
    layer: LinearLayer,
    weight: Tensor,
    left: LeftMetric,
    inputs: _Inputs,
    dtype: torch.dtype,
    max_rank: int | None,
) -> Solution:
    dense = weight.double()
    mean = inputs.mean_response(layer, dense)
    rank = max_rank or break_even_rank(layer, layer.has_bias or mean is not None)
    mean_code = None
    if layer.output_is_smaller:
        spectrum, directions = _solve_outputs(
            layer.name, inputs.response_moment(layer, dense), left, dtype
        )
        directions = directions[:, :rank]
        if mean is not None:
            mean_code = (directions.T @ left.times(mean[:, None])).squeeze(1)
        directions = directions.to(torch.promote_types(weight.dtype, torch.float32))
    else:  # the directions stay in float64: small singular values would amplify rounding
        weighted = _weighted(layer, left, dense)
        spectrum, directions = _solve_inputs(layer.name, weighted, inputs.root, dtype)
        directions = directions[:, :rank]
        if mean is not None:
            mean_code = directions.T @ weighted @ inputs.mean()
    return Solution(layer, left, spectrum, directions.contiguous(), mean, mean_code)


def _weighted(layer: LinearLayer, left: LeftMetric, weight: Tensor) -> Tensor:
    """G W, (out, in), or Wᵀ G W, (in, in), on the layer's smaller side."""
    if layer.output_is_smaller:
        return left.times(weight)
    gram = weight.T @ (left.diagonal[:, None] * weight)
    return gram if left.moment is None else gram + left.moment


def _downwards(
    layer: LinearLayer, left: LeftMetric, weight: Tensor, directions: Tensor, up: Tensor
) -> Tensor:
    """upᵀ G W, (r, in). No matrix of the weight's shape is made on the way."""
    if layer.output_is_smaller:
        return left.times(up).T @ weight
    down = (left.diagonal[:, None] * up).T @ weight
    return down if left.moment is None else down.addmm_(directions.T, left.moment)


class _Inputs:
    """The right metric of a group, given by S = R Rᵀ; computes roots once for the group."""

    def __init__(self, group: InputGroup, statistics: GroupStatistics, right: RightMetric) -> None:
        self._group = group
        self._statistics = statistics
        self._right = right

    @cached_property
    def moment(self) -> Tensor | None:
        """S of the input: (in, in), or its diagonal (in,); None is the identity."""
        if self._right is RightMetric.IDENTITY:
            return None
        if self._right is RightMetric.MAGNITUDES:
            return input_magnitudes(self._statistics, self._group.name)
        return self._of(self._inputs)

    @cached_property
    def root(self) -> Tensor | None:
        """R: (in, in), or its diagonal, or None.

        It is a Cholesky factor, or V √Λ if S is not definite; any root gives the same layers.
        """
        if self.moment is None or self.moment.ndim == 1:
            return None if self.moment is None else self.moment.sqrt()
        factor, failed = torch.linalg.cholesky_ex(finite(self._group.name, self.moment))
        if not failed:
            return torch.as_tensor(factor)
        values, vectors = eigh(self._group.name, self.moment, torch.float64)
        return vectors * _checked(self._group.name, values, self.moment.norm()).sqrt()

    def response_moment(self, layer: LinearLayer, weight: Tensor) -> Tensor:
        """W S Wᵀ, shape (out, out)."""
        kept = self._statistics.outputs.get(layer.name)
        return self._of(kept) if kept is not None else _times(weight, self.moment) @ weight.T

    def mean(self) -> Tensor:
        """E[x], shape (in,)."""
        return self._inputs.mean()

    def mean_response(self, layer: LinearLayer, weight: Tensor) -> Tensor | None:
        """E[W x], shape (out,), if the method preserves it."""
        if self._right is not RightMetric.CENTRED:
            return None
        kept = self._statistics.outputs.get(layer.name)
        return kept.mean() if kept is not None else weight @ self.mean()

    @property
    def _inputs(self) -> Moments:
        if self._statistics.inputs is None:
            raise ValueError("the group keeps its outputs' moments, not its input's")
        return self._statistics.inputs

    def _of(self, moments: Moments) -> Tensor:
        centred = self._right is RightMetric.CENTRED
        return moments.covariance() if centred else moments.second_moment()


def _times(matrix: Tensor, right: Tensor | None) -> Tensor:
    """The product with a matrix, a diagonal or the identity."""
    if right is None:
        return matrix
    return matrix @ right if right.ndim == 2 else matrix * right


def _solve_outputs(
    name: str, response_moment: Tensor, left: LeftMetric, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The eigenvalues of L (W S Wᵀ) Lᵀ, descending, and L⁻¹ U, shape (out, out)."""
    if left.moment is None:
        root = left.diagonal.sqrt()  # (out,): L
        size = left.diagonal.max()
        values, vectors = eigh(name, root[:, None] * response_moment * root, dtype)
        directions = vectors / root[:, None]
    else:
        squared = left.moment + left.diagonal.diag()  # LᵀL
        size, factor = squared.norm(), _cholesky(name, squared)  # Lᵀ
        values, vectors = eigh(name, factor.T @ response_moment @ factor, dtype)
        directions = torch.linalg.solve_triangular(factor.T, vectors, upper=True)
    size = size * response_moment.norm()
    return _checked(name, values, size).flip(0), directions.flip(1)


def _solve_inputs(
    name: str, weighted: Tensor, root: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The eigenvalues of Rᵀ (Wᵀ G W) R, descending, and R V Σ⁻¹, shape (in, in).

    Directions beyond the numerical rank are zero.
    """
    rooted = _times(weighted, root)
    if root is not None:
        rooted = root.T @ rooted if root.ndim == 2 else root[:, None] * rooted
    values, vectors = eigh(name, rooted, dtype)
    size = weighted.norm() * (1 if root is None else root.square().sum())
    values, vectors = _checked(name, values, size).flip(0), vectors.flip(1)
    if root is not None:
        vectors = root @ vectors if root.ndim == 2 else root[:, None] * vectors
    return values, vectors * _inverse_root(values)


def _inverse_root(values: Tensor) -> Tensor:
    """1/√λ, and 0 if λ is a rounding error relative to the largest."""
    return torch.where(values > NUMERICAL_RANK * values[0], values.rsqrt(), 0.0)


def _cholesky(name: str, matrix: Tensor) -> Tensor:
    """The lower factor of a positive definite matrix."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise SolveFailed(f"{name}: its gradients' second moment is not positive")
    return torch.as_tensor(factor)


def _checked(name: str, spectrum: Tensor, size: Tensor) -> Tensor:
    """An ascending spectrum, with negative rounding errors set to zero.

    `size` is the product of the norms of the matrices that were multiplied. It may be far larger
    than the spectrum: where gradients vanish in the directions in which outputs vary.
    """
    if not torch.isfinite(spectrum).all():
        raise SolveFailed(f"{name}: its spectrum is not finite")
    if spectrum[0] < -NEGATIVE_TOLERANCE * size:
        raise SolveFailed(f"{name}: its covariance has the eigenvalue {float(spectrum[0]):.3e}")
    return spectrum.clamp_min(0)
