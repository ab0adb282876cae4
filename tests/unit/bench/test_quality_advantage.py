"""Interpolation and advantage agree with results computed by hand."""

from __future__ import annotations

import math

import pytest

from bench.quality_advantage import Advantage, Point, advantage, best, kept_at

# Perplexity e^(10 (1 − kept)): its logarithm is linear in what is kept, as interpolation takes it.
OURS = [Point(kept, math.exp(10 * (1 - kept))) for kept in (1.0, 0.8, 0.6)]


@pytest.mark.parametrize("kept", [1.0, 0.93, 0.8, 0.71, 0.6])
def test_between_points_log_perplexity_is_linear(kept: float) -> None:
    assert kept_at(OURS, math.exp(10 * (1 - kept))) == pytest.approx(kept)


def test_the_order_of_points_does_not_matter() -> None:
    assert kept_at(OURS[::-1], math.exp(3)) == pytest.approx(0.7)


@pytest.mark.parametrize("perplexity", [0.5, 60.0, math.inf], ids=str)
def test_nothing_is_said_outside_of_the_points(perplexity: float) -> None:
    assert kept_at(OURS, perplexity) is None


def test_where_a_curve_crosses_twice_the_larger_size_counts() -> None:
    wavy = [Point(1.0, 1.0), Point(0.8, 4.0), Point(0.6, 2.0), Point(0.4, 8.0)]
    assert kept_at(wavy, 2.0) == pytest.approx(0.9)


def test_a_point_beyond_measure_ends_the_curve_at_the_last_that_was_measured() -> None:
    assert kept_at([*OURS, Point(0.4, math.inf)], math.exp(5)) == 0.6


def test_to_take_off_twice_as_much_is_an_advantage_of_one() -> None:
    found = advantage(OURS, Point(0.85, math.exp(3)))  # where ours keeps 0.7
    assert found.value == pytest.approx(1.0)
    assert str(found) == "+100%"


def test_to_take_off_less_is_a_negative_advantage() -> None:
    assert advantage(OURS, Point(0.6, math.exp(3))).value == pytest.approx(-0.25)


def test_no_advantage_has_no_sign_to_lose() -> None:
    assert str(Advantage(-0.001)) == "+0%"


def test_a_peer_worse_than_all_of_ours_gives_a_lower_bound() -> None:
    found = advantage(OURS, Point(0.8, 1e6))
    assert found.value == pytest.approx(1.0)
    assert str(found) == "beyond +100%"


def test_over_a_peer_better_than_all_of_ours_nothing_is_said() -> None:
    found = advantage(OURS, Point(0.9, 0.9))
    assert found == Advantage(None)
    assert str(found) == "beyond"


def test_the_best_may_be_another_at_every_size() -> None:
    first = {0.8: Point(0.79, 3.0), 0.6: Point(0.6, 9.0)}
    second = {0.8: Point(0.8, 4.0), 0.6: Point(0.59, 8.0), 0.4: Point(0.4, math.inf)}
    assert best({"first": first, "second": second}) == {
        0.8: ("first", first[0.8]),
        0.6: ("second", second[0.6]),
        0.4: ("second", second[0.4]),
    }
