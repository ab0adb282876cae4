"""The error and the cost of each layer at every rank: plain data.

A driver imports it, so it needs torch only for the type of a spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T", int, "Tensor")

Ranks = Mapping[str, int | None]
"""The rank of each layer; None leaves it dense."""


@dataclass(frozen=True, order=True)
class Width:
    """How many bits a weight takes as an integer; see `workers.compression.rounding.grid`."""

    bits: int

    @property
    def lowest(self) -> int:
        """The smallest integer."""
        return -(1 << self.bits - 1)

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << self.bits - 1) - 1


class Storage(Enum):
    """The form in which a layer of rank r is stored; it determines the cost of a rank."""

    INTERPOLATIVE = "interpolative"
    """r (out + in − r) parameters: see `workers.compression.interpolation`."""

    FACTORS = "factors"
    """r (out + in) parameters: two plain factors, as in other methods."""

    def parameters(self, rank: T, sides: int) -> T:
        """The parameters of a layer with out + in = `sides`, for a rank or a tensor of ranks."""
        return rank * (sides - rank) if self is Storage.INTERPOLATIVE else rank * sides


@dataclass(frozen=True)
class LayerCandidates:
    """The error and the cost of one layer for every rank, and for staying dense."""

    name: str
    spectrum: Tensor  # (k,) float64, descending
    max_rank: int  # 0: it can only stay dense
    dense_cost: int  # parameters
    sides: int  # out + in
    fixed_cost: int  # parameters at any rank: the order of the outputs, the bias
    storage: Storage = Storage.INTERPOLATIVE

    def cost(self, rank: int | None) -> int:
        """The number of parameters of the stored layer."""
        if rank is None:
            return self.dense_cost
        return self.fixed_cost + self.storage.parameters(rank, self.sides)

    @property
    def least_cost(self) -> int:
        return self.cost(1 if self.max_rank else None)

    def error(self, rank: int | None) -> float:
        """The sum of the dropped eigenvalues; 0 for a dense layer."""
        return 0.0 if rank is None else float(self.spectrum[rank:].sum())


def total_cost(layers: Sequence[LayerCandidates], ranks: Ranks) -> int:
    return sum(layer.cost(ranks[layer.name]) for layer in layers)


def total_error(layers: Sequence[LayerCandidates], ranks: Ranks) -> float:
    return math.fsum(layer.error(ranks[layer.name]) for layer in layers)


def least_cost(layers: Sequence[LayerCandidates]) -> int:
    """The number of parameters with rank 1 everywhere, which is the smallest possible budget."""
    return sum(layer.least_cost for layer in layers)
