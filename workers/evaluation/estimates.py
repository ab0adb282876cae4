"""Estimates over a sample of clusters, each with its standard error.

A cluster is a sequence of text or a problem of a task. Observations within a cluster are not
independent, so errors are computed over clusters. With totals a and weights w per cluster, the
estimate is θ = Σa / Σw, and its linearised variance is n/(n−1) · Σ(a − θw)² / (Σw)². If every
weight is 1, this is the sample standard error of a mean; for zeros and ones it is the binomial
√(p(1−p)/(n−1)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LARGEST_EXPONENT = math.log(1.7976931348623157e308)


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, which is None for a single cluster or an infinite value."""

    value: float
    standard_error: float | None

    def exp(self) -> Estimate:
        """The estimate of the exponential, by the delta method; infinite if a float overflows."""
        if self.value > LARGEST_EXPONENT:
            return Estimate(math.inf, None)
        value = math.exp(self.value)
        error = self.standard_error
        return Estimate(value, None if error is None else value * error)


def ratio(totals: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Σ totals / Σ weights over clusters; their order does not change the result."""
    weight, count = math.fsum(weights), len(totals)
    value = math.fsum(totals) / weight
    if count < 2 or not math.isfinite(value):
        return Estimate(value, None)
    squares = math.fsum((a - value * w) ** 2 for a, w in zip(totals, weights, strict=True))
    return Estimate(value, math.sqrt(count / (count - 1) * squares) / weight)


def mean(values: Sequence[float]) -> Estimate:
    """The mean of independent values."""
    return ratio(values, [1.0] * len(values))


def paired_difference(after: Sequence[float], before: Sequence[float]) -> Estimate:
    """The mean of after − before on the same problems; its error is smaller than with two means."""
    return mean([a - b for a, b in zip(after, before, strict=True)])
