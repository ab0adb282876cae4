"""Every item goes to exactly one worker, and the shares are nearly equal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain.placement import Placement, plan_placement
from service.errors import InsufficientResources
from workers.actors import placement
from workers.actors.placement import assign_owners, choose_placement, shares
from workers.compression.shapes import InputGroup, LinearLayer


def group(name: str, size: int) -> InputGroup:
    return InputGroup((LinearLayer(name, size, size, has_bias=False),))


def groups(most: int) -> st.SearchStrategy[list[InputGroup]]:
    return st.lists(st.integers(1, 64), max_size=most).map(
        lambda sizes: [group(f"layer-{number}", size) for number, size in enumerate(sizes)]
    )


def longest(owned: Iterable[Iterable[InputGroup]]) -> int:
    """The load of the worker that ends last."""
    return max(sum(g.solve_operations for g in part) for part in owned)


@given(st.lists(st.integers(), max_size=50), st.integers(1, 20))
def test_shares_partition_in_order_and_differ_by_one_at_most(items: list[int], count: int) -> None:
    parts = shares(items, count)
    assert [item for part in parts for item in part] == items
    lengths = [len(part) for part in parts]
    assert len(lengths) == count
    assert max(lengths) - min(lengths) <= 1


@given(groups(30), st.integers(1, 8))
def test_every_group_has_one_owner(drawn: list[InputGroup], count: int) -> None:
    owned = assign_owners(drawn, count)
    assert len(owned) == count
    assert sorted(g.name for part in owned for g in part) == sorted(g.name for g in drawn)
    costs = [g.solve_operations for g in drawn]
    assert longest(owned) <= sum(costs) / count + max(costs, default=0)
    assert assign_owners(drawn[::-1], count) == owned


@given(groups(6), st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_the_last_worker_ends_within_four_thirds_of_the_best(
    drawn: list[InputGroup], count: int
) -> None:
    best = min(
        longest(
            [g for g, owner in zip(drawn, owners, strict=True) if owner == worker]
            for worker in range(count)
        )
        for owners in product(range(count), repeat=len(drawn))
    )
    # Graham, 1969: longest processing time first.
    assert 3 * count * longest(assign_owners(drawn, count)) <= (4 * count - 1) * best


def test_the_most_expensive_go_first_and_to_the_least_loaded() -> None:
    owned = assign_owners([group("small", 2), group("large", 8), group("middle", 6)], 2)
    assert [[g.name for g in part] for part in owned] == [["large"], ["middle", "small"]]


class Machines:
    """A cluster whose machines come and go, one look after the other; the last view stays."""

    def __init__(self, *views: list[dict[str, float]]) -> None:
        self.views = list(views)
        self.looks = 0

    def __call__(self) -> list[dict[str, float]]:
        self.looks += 1
        return self.views[min(self.looks, len(self.views)) - 1]


HEAD, NODE = {"CPU": 0.0}, {"CPU": 8.0, "GPU": 4.0}
FOUR, EIGHT = Placement(4, 2, 1), Placement(8, 2, 1)


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "POLL_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("earlier", "views", "expected"),
    [
        (None, [[HEAD, NODE]], FOUR),
        (None, [[HEAD], [HEAD], [HEAD, NODE]], FOUR),  # a cluster that has just been started
        (EIGHT, [[HEAD, NODE], [HEAD, NODE], [HEAD, NODE, NODE]], EIGHT),  # a node was lost
        (FOUR, [[HEAD, NODE, NODE]], FOUR),  # the same places, for the sake of its checkpoints
    ],
)
def test_machines_that_are_on_their_way_are_waited_for(
    earlier: Placement | None, views: list[list[dict[str, float]]], expected: Placement
) -> None:
    machines = Machines(*views)
    assert choose(earlier, machines, 60) == expected
    assert machines.looks == len(views)


def test_machines_that_do_not_come_back_are_done_without() -> None:
    assert choose(EIGHT, Machines([HEAD, NODE]), 0.05) == FOUR


@pytest.mark.parametrize("earlier", [None, EIGHT])
def test_an_empty_cluster_is_given_up_in_the_end(earlier: Placement | None) -> None:
    with pytest.raises(InsufficientResources, match="the cluster has 0 GPUs and 0 CPUs"):
        choose(earlier, Machines([HEAD]), 0.05)


def test_what_began_on_gpus_does_not_silently_go_on_without() -> None:
    with pytest.raises(InsufficientResources, match="all its GPUs"):
        choose(EIGHT, Machines([{"CPU": 16.0}]), 0.05)


def test_a_mistaken_wish_is_refused_at_once() -> None:
    machines = Machines([NODE])
    with pytest.raises(InsufficientResources, match="9 workers"):
        choose_placement(None, lambda nodes: plan_placement(9, nodes), machines, 60)
    assert machines.looks == 1


def choose(earlier: Placement | None, machines: Machines, patience_seconds: float) -> Placement:
    return choose_placement(
        earlier, lambda nodes: plan_placement(None, nodes), machines, patience_seconds
    )
