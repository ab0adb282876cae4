"""Rounds a weight so that the errors of its entries make up for each other.

What a change E of a weight costs the loss is tr(G E S Eᵀ), with a left metric G of the gradients
of the outputs and a right metric S of the inputs. With G = A D Aᵀ and S = B Δ Bᵀ, A and B unit
upper triangular and D and Δ diagonal, this is Σᵢⱼ Dᵢ Δⱼ Nᵢⱼ² for N = Aᵀ E B. Here Nᵢⱼ is Eᵢⱼ plus
terms of entries Eₖₗ with k ≤ i and l ≤ j. So if entry (i, j) is rounded when all of those are
known, to the point nearest to its weight less their terms, then N has nothing but the errors of
single roundings. This is LDLQ (QuIP, arXiv 2307.13304; GPTQ, arXiv 2210.17323, is the same) with
feedback on both sides, as in YAQA (arXiv 2505.22988). Without a left metric it is GPTQ, without
both it is rounding to nearest.

Entries whose i + j are equal do not depend on each other. So the matrix is cut into square tiles,
the tiles of an anti-diagonal are worked on together, and in them the entries of an anti-diagonal,
for all widths at once. A matrix product takes the feedback from the tiles before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from workers.compression.candidates import Width
from workers.compression.errors import SolveFailed
from workers.compression.rounding.grid import RoundedWeight

TILE = 64
"""The side of a tile. Larger ones need fewer and larger steps, but more arithmetic."""

MOST_BYTES = 1 << 28
"""As many widths are rounded at once as have their errors in so many bytes, or one."""


@dataclass(frozen=True)
class Metric:
    """A positive definite matrix M as A D Aᵀ, in the order in which its entries are rounded.

    The entries with the largest diagonal come first, while there are most others to make up for
    their errors.

    A grid is chosen by `importance`, between two costs of an error. That of a single rounding is D,
    much less than the diagonal of M for an entry that makes up for others. But the feedback also
    widens what is rounded there, so that less clipping is best. Their geometric mean is near the
    better one, on layers of real models and on random problems.
    """

    order: Tensor  # (n,)
    factor: Tensor  # (n, n) A, in that order, unit upper triangular
    importance: Tensor  # (n,) the geometric mean of D and the diagonal, in the order of M

    @classmethod
    def of(cls, matrix: Tensor) -> Metric:
        """Factors a matrix in float64. Raises SolveFailed if it is not positive definite."""
        order = matrix.diagonal().argsort(descending=True, stable=True)
        ordered = matrix[order][:, order].double()
        root, failed = torch.linalg.cholesky_ex(ordered.flip(0, 1))
        if failed:
            raise SolveFailed("a metric of the rounding is not positive definite")
        root = root.flip(0, 1)
        diagonal = root.diagonal()
        pivots = torch.empty_like(diagonal).index_copy_(0, order, diagonal.square())
        importance = (pivots * matrix.diagonal()).sqrt()
        return cls(order, (root / diagonal).float(), importance.float())

    @classmethod
    def identity(cls, size: int, device: torch.device) -> Metric:
        """The metric in which all entries count the same, each for itself."""
        ones = torch.ones(size, device=device)
        return cls(torch.arange(size, device=device), ones.diag(), ones)


def round_with_feedback(
    weight: Tensor, scales: Sequence[Tensor], widths: Sequence[Width], left: Metric, right: Metric
) -> list[RoundedWeight]:
    """Round a weight (out, in) at several widths, each to the grid of its own scales.

    `left` is of its outputs, `right` of its inputs.
    """
    rows, columns = left.order, right.order
    ordered = weight.float()[rows][:, columns]
    group = weight.shape[1] // scales[0].shape[1]
    step_sizes = [each.float()[rows][:, columns // group] for each in scales]
    at_once = max(1, MOST_BYTES // (2 * ordered.nbytes))
    tiles = _Tiles(ordered, left.factor.T, right.factor)
    rounded = []
    for first in range(0, len(widths), at_once):
        part = slice(first, first + at_once)
        codes = tiles.rounded(torch.stack(step_sizes[part]), widths[part])
        for each, scale, width in zip(codes, scales[part], widths[part], strict=True):
            back = each[rows.argsort()][:, columns.argsort()]
            rounded.append(RoundedWeight(width, back, scale))
    return rounded


class _Tiles:
    """A weight in square tiles, with zeros beyond its edges, and the factors of its feedback."""

    def __init__(self, weight: Tensor, lower: Tensor, upper: Tensor) -> None:
        self._shape = weight.shape
        self._high, self._wide = (-(-size // TILE) for size in self._shape)
        high, wide = self._high, self._wide
        self._weight = self._tiled(weight)  # (high, wide, TILE, TILE)
        lower = self._padded(lower, high, high).tril(-1)
        upper = self._padded(upper, wide, wide).triu(1)
        self._down = lower.view(high, TILE, -1)  # rows of the lower factor
        self._right = upper.T.contiguous().view(wide, TILE, -1)  # columns of the upper factor
        # The factors inside a tile; reversed, so that an anti-diagonal meets a slice of them.
        self._down_inside = _diagonal_tiles(lower, high).flip(2).contiguous()
        self._right_inside = _diagonal_tiles(upper, wide).flip(1).contiguous()

    def rounded(self, scales: Tensor, widths: Sequence[Width]) -> list[Tensor]:
        """The codes (out, in) int8 at each width; `scales` are (widths, out, in)."""
        count, high, wide = len(widths), self._high, self._wide
        lowest, highest = (
            torch.tensor([[[float(bound)]] for bound in bounds], device=scales.device)
            for bounds in ((w.lowest for w in widths), (w.highest for w in widths))
        )
        steps = torch.stack([self._tiled(each, 1.0) for each in scales])
        errors = scales.new_zeros(count, high, TILE, wide, TILE)  # E
        spread = scales.new_zeros(count, wide, TILE, high, TILE)  # (E B)ᵀ
        codes = scales.new_zeros(count, high, wide, TILE, TILE, dtype=torch.int8)
        for stage in range(high + wide - 1):
            p = torch.arange(max(0, stage - wide + 1), min(high, stage + 1), device=scales.device)
            q = stage - p
            beside = errors[:, p].flatten(-2) @ self._right[q].transpose(1, 2)
            above = (spread[:, q].flatten(-2) @ self._down[p].transpose(1, 2)).transpose(2, 3)
            tile = _round_tiles(
                self._weight[p, q],
                steps[:, p, q],
                (lowest, highest),
                beside.contiguous(),
                (self._weight[p, q] - above).contiguous(),
                self._right_inside[q],
                self._down_inside[p],
            )
            codes[:, p, q] = tile[0].to(torch.int8)
            errors[:, p, :, q] = tile[1].transpose(0, 1)
            spread[:, q, :, p] = tile[2].transpose(2, 3).transpose(0, 1)
        out, into = self._shape
        whole = codes.transpose(2, 3).reshape(count, high * TILE, wide * TILE)
        return list(whole[:, :out, :into])

    def _tiled(self, matrix: Tensor, beyond: float = 0.0) -> Tensor:
        padded = self._padded(matrix, self._high, self._wide, beyond)
        return padded.view(self._high, TILE, self._wide, TILE).transpose(1, 2)

    @staticmethod
    def _padded(matrix: Tensor, high: int, wide: int, beyond: float = 0.0) -> Tensor:
        missing = (0, wide * TILE - matrix.shape[1], 0, high * TILE - matrix.shape[0])
        return pad(matrix, missing, value=beyond).contiguous()


def _diagonal_tiles(matrix: Tensor, count: int) -> Tensor:
    """The tiles on the diagonal of a square matrix, (count, TILE, TILE)."""
    return matrix.view(count, TILE, count, TILE).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _round_tiles(
    weight: Tensor,
    steps: Tensor,
    bounds: tuple[Tensor, Tensor],
    beside: Tensor,
    wanted: Tensor,
    right: Tensor,
    down: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round tiles, one anti-diagonal of their entries after the other; all (…, TILE, TILE).

    `beside` has (E B − E) of the tiles to the left, and `wanted` the weight less the feedback of
    the tiles above; both change here. Returns codes, E and E B.
    """
    weight = weight.contiguous()
    steps = steps.contiguous()
    codes, errors, spread = (torch.zeros_like(steps) for _ in range(3))
    for place in range(2 * TILE - 1):
        first, last = max(0, place - TILE + 1), min(TILE, place + 1)  # rows
        where = place, first, last
        known = _anti_diagonal(beside, *where)
        step = _anti_diagonal(steps, *where)
        code = ((_anti_diagonal(wanted, *where) - known) / step).round_().clamp_(*bounds)
        error = torch.addcmul(-_anti_diagonal(weight, *where), code, step)
        whole = error + known
        _anti_diagonal(codes, *where).copy_(code)
        _anti_diagonal(errors, *where).copy_(error)
        _anti_diagonal(spread, *where).copy_(whole)
        offset = TILE - 1 - place
        beside[..., first:last, :].addcmul_(
            error[..., None], right[:, offset + first : offset + last]
        )
        wanted[..., place - last + 1 : place - first + 1].addcmul_(
            down[..., TILE - last : TILE - first], whole.flip(-1)[..., None, :], value=-1
        )
    return codes, errors, spread


def _anti_diagonal(tiles: Tensor, place: int, first: int, last: int) -> Tensor:
    """A view of the entries (i, place − i) of each tile, for rows i from `first` to before `last`.

    The tiles are contiguous.
    """
    return tiles.as_strided(
        (*tiles.shape[:-2], last - first),
        (*tiles.stride()[:-2], TILE - 1),
        tiles.storage_offset() + place + first * (TILE - 1),
    )
