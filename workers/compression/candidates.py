"""The error and the cost of each layer in every form: plain data.

A driver imports it, so it needs torch only for the type of a spectrum.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

BYTES_OF_16_BITS = 2
"""Fractions of bytes are those of this many for a parameter."""

FAST_TILE = 32
"""Ranks that are meant to be fast are multiples of this."""

SECOND_PRODUCT = 1 << 19
"""How many weights more a layer could read in the time that a second product and the order of the
outputs take with one token: an estimate for two CPU cores, see docs/method.md."""

T = TypeVar("T", int, "Tensor")


@dataclass(frozen=True, order=True)
class Width:
    """How many bits a weight takes as an integer; see `workers.compression.rounding.grid`."""

    bits: int

    def __str__(self) -> str:
        return f"int{self.bits}"

    @property
    def lowest(self) -> int:
        """The smallest integer."""
        return -(1 << self.bits - 1)

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << self.bits - 1) - 1


@dataclass(frozen=True)
class Recovered:
    """A layer that was trained after the cut, for one of the job's targets."""

    form: int | Width  # before it was trained
    target: str


Form = int | Recovered | Width | None
"""What becomes of a layer: low rank, with its rank; integers, with their width; None: dense."""

Forms = Mapping[str, Form]
"""The form of each layer."""


def rank_of(form: Form) -> int | None:
    """The rank of a layer in this form; None if it has its full rank."""
    form = untrained(form)
    return form if isinstance(form, int) else None


def width_of(form: Form) -> Width | None:
    """The width of a layer in this form; None if it is not in integers."""
    form = untrained(form)
    return form if isinstance(form, Width) else None


def untrained(form: Form) -> int | Width | None:
    """The form before the layer was trained."""
    return form.form if isinstance(form, Recovered) else form


def as_recovered(target: str, forms: Forms, layers: Collection[str]) -> Forms:
    """The forms of a target once these layers are trained."""
    return {
        name: Recovered(form, target) if name in layers and isinstance(form, int | Width) else form
        for name, form in forms.items()
    }


def as_cut(forms: Forms) -> Forms:
    """The forms before any layer was trained."""
    return {name: untrained(form) for name, form in forms.items()}


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
class RoundedCandidate:
    """One layer in integers of some width."""

    width: Width
    nbytes: int  # as stored, with scales, shape and bias
    error: float


@dataclass(frozen=True)
class LayerCandidates:
    """The error and the cost of one layer for every rank, for staying dense, and for each width."""

    name: str
    spectrum: Tensor  # (k,) float64, descending
    max_rank: int  # a multiple of the tile; 0: it can only stay dense
    dense_cost: int  # parameters
    sides: int  # out + in
    fixed_cost: int  # parameters at any rank: the order of the outputs, the bias
    storage: Storage = Storage.INTERPOLATIVE
    dense_bytes: int = 0  # as stored in the artifacts' precision
    rounded: tuple[RoundedCandidate, ...] = ()
    tile: int = 1  # every rank is a multiple of it
    importance: Tensor | None = None  # (out,), descending, if the method weighs outputs

    def __post_init__(self) -> None:
        if self.max_rank % self.tile:
            raise ValueError(f"{self.name}: {self.max_rank} is not a multiple of {self.tile}")

    def cost(self, form: Form) -> int:
        """The number of parameters of the stored layer; rounding changes none."""
        if (rank := rank_of(form)) is not None:
            return self.fixed_cost + self.storage.parameters(rank, self.sides)
        return self.dense_cost

    def nbytes(self, form: Form) -> int:
        """The bytes of the stored layer. A number of a low-rank layer counts as in a dense one."""
        if width := width_of(form):
            return self._rounded(width).nbytes
        return self.cost(form) * self.dense_bytes // self.dense_cost

    @property
    def least_cost(self) -> int:
        return self.cost(self.tile if self.max_rank else None)

    def error(self, form: Form) -> float:
        """The sum of the dropped eigenvalues, or the price of the rounding; 0 if it is dense.

        It is that of the cut: what training recovers afterwards is not predicted.
        """
        if width := width_of(form):
            return self._rounded(width).error
        rank = rank_of(form)
        return 0.0 if rank is None else float(self.spectrum[rank:].sum())

    def _rounded(self, width: Width) -> RoundedCandidate:
        return next(each for each in self.rounded if each.width == width)


def faster_than_dense(layer: LayerCandidates, *, joined: bool) -> LayerCandidates:
    """The layer with only those ranks at which it takes less time than dense.

    `joined` is whether engines join the dense layer to others with the same input; of low rank it
    then needs a product of its own. Time is counted in weights that are read.
    """
    spare = layer.dense_cost - SECOND_PRODUCT * (1 + joined)
    ranks = range(FAST_TILE, layer.max_rank + 1, FAST_TILE)
    fast = bisect_left(ranks, spare, key=layer.cost)
    return replace(layer, tile=FAST_TILE, max_rank=fast * FAST_TILE)


def total_cost(layers: Sequence[LayerCandidates], forms: Forms) -> int:
    return sum(layer.cost(forms[layer.name]) for layer in layers)


def total_bytes(layers: Sequence[LayerCandidates], forms: Forms) -> int:
    return sum(layer.nbytes(forms[layer.name]) for layer in layers)


def total_error(layers: Sequence[LayerCandidates], forms: Forms) -> float:
    return math.fsum(layer.error(forms[layer.name]) for layer in layers)


def least_cost(layers: Sequence[LayerCandidates]) -> int:
    """The number of parameters at the lowest ranks, which is the smallest possible budget."""
    return sum(layer.least_cost for layer in layers)
