"""Standard errors agree with closed forms."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.evaluation.estimates import Estimate, mean, paired_difference, ratio

NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50)


@given(NUMBERS)
def test_the_error_of_a_mean_is_the_textbook_one(values: list[float]) -> None:
    estimate = mean(values)
    assert estimate.value == pytest.approx(statistics.fmean(values), abs=1e-9)
    expected = statistics.stdev(values) / math.sqrt(len(values))
    assert estimate.standard_error == pytest.approx(expected, abs=1e-9)


def test_zeros_and_ones_have_a_binomial_error() -> None:
    estimate = mean([1.0] * 30 + [0.0] * 70)
    assert estimate.standard_error == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


def test_equal_rates_have_no_error_however_large_the_clusters() -> None:
    assert ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == Estimate(0.5, 0.0)


def test_one_cluster_says_nothing_of_the_error() -> None:
    assert ratio([3.0], [2.0]) == Estimate(1.5, None)


def test_what_two_models_share_cancels_in_their_difference() -> None:
    before = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    assert paired_difference(before, before) == Estimate(0.0, 0.0)
    worse = paired_difference([0.0, *before[1:-1], 0.0], before)
    assert worse.value == pytest.approx(-1 / 6)
    assert worse.standard_error == pytest.approx(math.sqrt(1 / 6 * 5 / 6 / 5))


def test_the_error_of_an_exponential_is_scaled_by_its_slope() -> None:
    assert Estimate(2.0, 0.1).exp() == Estimate(math.exp(2.0), 0.1 * math.exp(2.0))
    assert Estimate(800.0, 0.1).exp() == Estimate(math.inf, None)
    assert Estimate(1.0, None).exp() == Estimate(math.e, None)
