"""The stored form of a low-rank layer: an interpolative decomposition.

Factors of rank r are only defined up to an invertible r × r matrix: up · down = (up T)(T⁻¹ down).
If T turns r rows of `up` into the identity, these r² numbers need not be stored: `basis` computes r
of the layer's outputs, and the others are linear combinations of those (Cheng, Gimbutas, Martinsson
and Rokhlin, 2005). At any rank the layer computes the same with r (out + in − r) parameters instead
of r (out + in), so even full rank costs no more than staying dense.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compression.solve import Factors


@dataclass(frozen=True)
class Interpolation:
    """One layer at rank r: with z = basis · x, y = [z; rest · z][order] + bias."""

    basis: Tensor  # (r, in): rows of the approximated weight
    rest: Tensor  # (out − r, r)
    order: Tensor  # (out,) int32: the position of each output in [z; rest · z]
    bias: Tensor | None  # (out,)

    @property
    def rank(self) -> int:
        return self.basis.shape[0]

    @property
    def nbytes(self) -> int:
        parts = (self.basis, self.rest, self.order, self.bias)
        return sum(part.nbytes for part in parts if part is not None)


def interpolate(factors: Factors) -> Interpolation:
    """The same layer with r of its outputs as the basis, in the precision of the factors.

    The outputs are the pivots of an LU decomposition of `up` in float64, which keeps the entries of
    `rest` small. Zero directions, beyond the numerical rank, do no harm: only the lower factor,
    whose diagonal is one, is inverted.
    """
    up, rank = factors.up.double(), factors.rank
    packed, pivots, _ = torch.linalg.lu_factor_ex(up)
    permutation = _permutation(pivots, len(up))  # [basis outputs, the others]
    lower = packed.tril_(-1)  # (out, r)
    corner = lower[:rank] + torch.eye(rank, dtype=up.dtype, device=up.device)
    rest = torch.linalg.solve_triangular(
        corner, lower[rank:], upper=False, unitriangular=True, left=False
    )
    basis = up[permutation[:rank]] @ factors.down.double()
    dtype = factors.down.dtype
    order = permutation.argsort().to(torch.int32)
    return Interpolation(basis.to(dtype), rest.to(dtype).contiguous(), order, factors.bias)


def _permutation(pivots: Tensor, size: int) -> Tensor:
    """Convert LAPACK's row exchanges, counted from 1, to the row that ends at each position."""
    rows = list(range(size))
    for place, other in enumerate((pivots - 1).tolist()):
        rows[place], rows[other] = rows[other], rows[place]
    return torch.tensor(rows, device=pivots.device)
