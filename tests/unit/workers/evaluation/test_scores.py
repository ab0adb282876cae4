"""Scores of batches add up to those of the task, and comparisons are paired by problem."""

from __future__ import annotations

import pytest

from service.errors import InvalidParameter
from workers.evaluation.estimates import Estimate, mean
from workers.evaluation.scores import Scores

BATCHES = [Scores(2, {"acc": (1.0, 0.0)}), Scores(1, {"acc": (1.0,)})]


def test_batches_add_up() -> None:
    total = Scores.total(BATCHES)
    assert total == Scores(3, {"acc": (1.0, 0.0, 1.0)})
    assert total.estimates() == {"acc": mean([1.0, 0.0, 1.0])}


def test_tasks_of_a_group_stand_beside_each_other() -> None:
    group = Scores(4, {"a/acc": (1.0, 1.0, 0.0, 0.0)}, {"a/f1": Estimate(0.4, 0.1)})
    total = Scores.union([group, Scores(1, {"b/acc": (1.0,)})])
    assert total.problems == 5
    assert list(total.estimates()) == ["a/acc", "b/acc", "a/f1"]


@pytest.mark.parametrize(
    "member",
    [Scores(1, {"a/acc": (1.0,)}), Scores(1, {}, {"a/f1": Estimate(0.4, 0.1)})],
    ids=["values", "summary"],
)
def test_a_group_and_its_member_are_not_counted_twice(member: Scores) -> None:
    group = Scores(2, {"a/acc": (1.0,), "b/acc": (0.0,)}, {"a/f1": Estimate(0.4, 0.1)})
    with pytest.raises(InvalidParameter, match=r"'a/.*' is measured by 2"):
        Scores.union([group, member])


def test_differences_are_of_pairs_and_only_where_there_are_pairs() -> None:
    dense = Scores(3, {"acc": (1.0, 1.0, 1.0)}, {"f1": Estimate(0.5, 0.1)})
    other = Scores(3, {"acc": (1.0, 0.0, 1.0), "f1": (0.0, 0.0, 0.0)})
    (metric, difference), *rest = other.differences(dense).items()
    assert (metric, rest) == ("acc", [])
    assert difference.value == pytest.approx(-1 / 3)
    assert difference.standard_error == pytest.approx(1 / 3)
