"""What each layer can be compressed to, at what error and cost: plain data.

Free of torch, but for the type of a spectrum, so that a driver can name it.
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
"""Per layer its rank; None leaves it dense."""


class Storage(Enum):
    """The form in which a layer of rank r is stored, which is what a rank costs."""

    INTERPOLATIVE = "interpolative"
    """r (out + in − r) parameters: see `workers.compression.interpolation`."""

    FACTORS = "factors"
    """r (out + in) parameters: two plain factors, as other methods' authors store them."""

    def parameters(self, rank: T, sides: int) -> T:
        """Of the factors of a layer with out + in = `sides`; a rank or a tensor of ranks."""
        return rank * (sides - rank) if self is Storage.INTERPOLATIVE else rank * sides


@dataclass(frozen=True)
class LayerCandidates:
    """What one layer offers: an error and a cost for every rank, and for staying dense."""

    name: str
    spectrum: Tensor  # (k,) float64, descending
    max_rank: int  # 0: it can only stay dense
    dense_cost: int  # parameters
    sides: int  # out + in
    fixed_cost: int  # parameters at any rank: the order of the outputs, the bias
    storage: Storage = Storage.INTERPOLATIVE

    def cost(self, rank: int | None) -> int:
        """Parameters of the layer as it is stored."""
        if rank is None:
            return self.dense_cost
        return self.fixed_cost + self.storage.parameters(rank, self.sides)

    @property
    def least_cost(self) -> int:
        return self.cost(1 if self.max_rank else None)

    def error(self, rank: int | None) -> float:
        """The sum of the eigenvalues dropped; 0 for a dense layer."""
        return 0.0 if rank is None else float(self.spectrum[rank:].sum())


def total_cost(layers: Sequence[LayerCandidates], ranks: Ranks) -> int:
    return sum(layer.cost(ranks[layer.name]) for layer in layers)


def total_error(layers: Sequence[LayerCandidates], ranks: Ranks) -> float:
    return math.fsum(layer.error(ranks[layer.name]) for layer in layers)


def least_cost(layers: Sequence[LayerCandidates]) -> int:
    """The parameters of rank 1 everywhere: no budget below it can be met."""
    return sum(layer.least_cost for layer in layers)
