"""Computes how much more one method removes from a model than another, at equal perplexity.

A method's curve consists of its measured points, perplexity by the fraction kept, and of the dense
model's at 1. Between two points the logarithm of the perplexity is interpolated linearly. Beyond
the last point nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Point:
    """A measured model: the fraction of the linear parameters kept, and its perplexity."""

    kept: float
    perplexity: float


Curve = Sequence[Point]


@dataclass(frozen=True)
class Advantage:
    """(1 − kept of ours) / (1 − kept of the peer) − 1, at the peer's perplexity."""

    value: float | None  # None: ours never reaches the peer's perplexity
    beyond: bool = False  # ours is still better at its smallest size: the value is a lower bound

    def __str__(self) -> str:
        if self.value is None:
            return "beyond"
        shown = f"{round(self.value, 2) + 0.0:+.0%}"  # never -0 %
        return f"beyond {shown}" if self.beyond else shown


def kept_at(curve: Curve, perplexity: float) -> float | None:
    """The fraction that the method keeps at `perplexity`; None outside of its points.

    If a curve crosses the perplexity more than once, the crossing with the largest fraction counts.
    """
    ordered = sorted(curve, key=lambda point: point.kept, reverse=True)
    if not ordered or perplexity < ordered[0].perplexity:
        return None
    for above, below in pairwise(ordered):
        if below.perplexity >= perplexity:
            return _crossing(above, below, perplexity)
    last = ordered[-1]
    return last.kept if last.perplexity == perplexity else None


def advantage(ours: Curve, peer: Point) -> Advantage:
    """The advantage of our curve over one point of a peer's, which must keep less than all."""
    kept, beyond = kept_at(ours, peer.perplexity), False
    if kept is None:
        smallest = min(ours, key=lambda point: point.kept)
        beyond = smallest.perplexity < peer.perplexity
        if not beyond:
            return Advantage(None)
        kept = smallest.kept
    return Advantage((1 - kept) / (1 - peer.kept) - 1, beyond)


def best(curves: Mapping[str, Mapping[float, Point]]) -> dict[float, tuple[str, Point]]:
    """For every requested keep, the method with the lowest perplexity, and its point."""
    keeps = {keep for curve in curves.values() for keep in curve}
    return {
        keep: min(
            ((name, curve[keep]) for name, curve in curves.items() if keep in curve),
            key=lambda entry: entry[1].perplexity,
        )
        for keep in sorted(keeps, reverse=True)
    }


def _crossing(above: Point, below: Point, perplexity: float) -> float:
    """The fraction kept on the segment from `above`, which keeps more, to `below`."""
    rise = math.log(below.perplexity) - math.log(above.perplexity)
    if rise == 0 or math.isinf(rise):
        return above.kept
    share = (math.log(perplexity) - math.log(above.perplexity)) / rise
    return above.kept + share * (below.kept - above.kept)
