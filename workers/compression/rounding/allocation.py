"""Chooses how many bits the weights of each layer get, within a budget of bytes.

The prices of all roundings are in the same unit (see `workers.compression.rounding.group`), so they
are comparable between layers. As for ranks, the corners of a layer's lower convex hull of error
over bytes are its best choices for some multiplier. Steps along the hulls are taken in the order of
what they save per byte, as far as the budget allows. Plain Python: a driver has no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from workers.compression.candidates import LayerCandidates, Width
from workers.compression.errors import BudgetTooSmall


@dataclass(frozen=True)
class _Option:
    nbytes: int
    error: float
    width: Width | None


class ByteBudget:
    """All layers' widths as steps from fewer to more bytes, which serve every budget.

    `units` are the layers that get one width together, because an engine joins them to one matrix.
    A width that is not among `widths` is not chosen; a layer may always stay dense.
    """

    def __init__(
        self,
        layers: Sequence[LayerCandidates],
        units: Sequence[Collection[str]],
        widths: Collection[Width],
    ) -> None:
        by_name = {layer.name: layer for layer in layers}
        self._units = units
        self._options = [
            sorted(
                _options([by_name[name] for name in unit], widths),
                key=lambda option: (option.nbytes, option.error),
            )
            for unit in units
        ]
        self._hulls = [_hull(options) for options in self._options]
        steps = [
            (_saved_per_byte(*pair), number, place)
            for number, hull in enumerate(self._hulls)
            for place, pair in enumerate(pairwise(hull))
        ]
        self._steps = sorted(steps, key=lambda step: (-step[0], step[1], step[2]))

    @property
    def least(self) -> int:
        """The bytes of all layers at their smallest."""
        return sum(options[0].nbytes for options in self._options)

    def allocate(self, budget: int) -> dict[str, Width | None]:
        """The widths with the least error in `budget` bytes; raises BudgetTooSmall."""
        if budget < self.least:
            raise BudgetTooSmall(f"{budget} bytes are less than the {self.least} that are needed")
        chosen = [hull[0] for hull in self._hulls]
        left = budget - sum(option.nbytes for option in chosen)
        for _, number, place in self._steps:
            before, after = self._hulls[number][place : place + 2]
            if chosen[number] is before and after.nbytes - before.nbytes <= left:
                chosen[number] = after
                left -= after.nbytes - before.nbytes
        self._spend(chosen, left)
        return {
            name: option.width
            for unit, option in zip(self._units, chosen, strict=True)
            for name in unit
        }

    def _spend(self, chosen: list[_Option], left: int) -> None:
        """Spend the rest of the budget on whatever saves most per byte, on a hull or not."""
        while True:
            better = [
                (_saved_per_byte(now, option), number, option)
                for number, now in enumerate(chosen)
                for option in self._options[number]
                if now.nbytes < option.nbytes <= now.nbytes + left and option.error < now.error
            ]
            if not better:
                return
            _, number, option = max(better, key=lambda found: (found[0], -found[1]))
            left -= option.nbytes - chosen[number].nbytes
            chosen[number] = option


def _options(layers: Sequence[LayerCandidates], widths: Collection[Width]) -> Iterator[_Option]:
    yield _Option(sum(layer.nbytes(None) for layer in layers), 0.0, None)
    for width in widths:
        yield _Option(
            sum(layer.nbytes(width) for layer in layers),
            sum(layer.error(width) for layer in layers),
            width,
        )


def _hull(options: Sequence[_Option]) -> list[_Option]:
    """The corners of the lower convex hull of options in the order of their bytes.

    It begins with the smallest and ends with the one without error.
    """
    hull: list[_Option] = []
    for option in options:
        if hull and option.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _saved_per_byte(*hull[-2:]) <= _saved_per_byte(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _saved_per_byte(before: _Option, after: _Option) -> float:
    return (before.error - after.error) / (after.nbytes - before.nbytes)
