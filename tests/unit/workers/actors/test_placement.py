"""Every item goes to exactly one worker, and the shares are nearly equal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import InsufficientResources
from workers.actors import placement
from workers.actors.placement import (
    Placement,
    assign_owners,
    choose_placement,
    plan_placement,
    shares,
)
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


@pytest.mark.parametrize(
    ("requested", "resources", "expected"),
    [
        (None, {"CPU": 1}, Placement(1, 1, 0)),
        (None, {"CPU": 2}, Placement(1, 2, 0)),
        (None, {"CPU": 16}, Placement(8, 2, 0)),
        (None, {"CPU": 7}, Placement(3, 2, 0)),
        (1, {"CPU": 16}, Placement(1, 16, 0)),
        (16, {"CPU": 16}, Placement(16, 1, 0)),
        (None, {"CPU": 16, "GPU": 1}, Placement(1, 16, 1)),
        (None, {"CPU": 64, "GPU": 8}, Placement(8, 8, 1)),
        (3, {"CPU": 64, "GPU": 8}, Placement(3, 8, 1)),
        (None, {"CPU": 8.0, "GPU": 2.0, "memory": 1e9, "node:127.0.0.1": 1}, Placement(2, 4, 1)),
    ],
)
def test_the_cluster_is_divided(
    requested: int | None, resources: dict[str, float], expected: Placement
) -> None:
    assert plan_placement(requested, [resources]) == expected


@pytest.mark.parametrize(
    ("requested", "nodes", "expected"),
    [
        (None, [{"CPU": 16}, {"CPU": 8, "GPU": 4}], Placement(4, 2, 1)),
        (None, [{"CPU": 4, "GPU": 4}, {"CPU": 32, "GPU": 4}], Placement(8, 1, 1)),
        (4, [{"CPU": 0}, {"CPU": 3}, {"CPU": 5}], Placement(4, 1, 0)),
        (2, [{"CPU": 6}, {"CPU": 6}], Placement(2, 6, 0)),
        (3, [{"CPU": 6}, {"CPU": 6}], Placement(3, 3, 0)),
    ],
)
def test_no_worker_spans_two_machines(
    requested: int | None, nodes: list[dict[str, float]], expected: Placement
) -> None:
    assert plan_placement(requested, nodes) == expected


def test_jobs_that_run_at_a_time_divide_the_cluster() -> None:
    assert plan_placement(None, [{"CPU": 8}], 2) == Placement(2, 2, 0)
    assert plan_placement(2, [{"CPU": 8}], 2) == Placement(2, 2, 0)
    assert plan_placement(None, [{"CPU": 64, "GPU": 8}], 2) == Placement(4, 8, 1)
    assert plan_placement(None, [{"CPU": 64, "GPU": 8}], 9) == Placement(1, 8, 1)
    assert plan_placement(8, [{"CPU": 64, "GPU": 8}], 2) == Placement(8, 8, 1)


@pytest.mark.parametrize(
    ("requested", "resources", "message"),
    [
        (3, {"CPU": 2}, "3 workers need a CPU each; the cluster has 0 GPUs and 2 CPUs"),
        (9, {"CPU": 64, "GPU": 8}, "9 workers need a GPU and a CPU each"),
        (4, {"CPU": 2, "GPU": 8}, "4 workers need a GPU and a CPU each"),
        (None, {"CPU": 2, "GPU": 8}, "8 workers need a GPU and a CPU each"),
        (None, {"memory": 1e9}, "the cluster has 0 GPUs and 0 CPUs"),
    ],
)
def test_a_cluster_that_is_too_small_is_named(
    requested: int | None, resources: dict[str, float], message: str
) -> None:
    with pytest.raises(InsufficientResources, match=message) as caught:
        plan_placement(requested, [resources])
    assert caught.value.param == "workers"


@pytest.mark.parametrize(
    ("requested", "nodes", "expected"),
    [
        (4, [{"CPU": 0}, {"CPU": 8, "GPU": 1}], Placement(4, 8, 1)),
        (4, [{"CPU": 8}, {"CPU": 16}], Placement(4, 5, 0)),  # they fit: nothing is to be added
        (4, [{"CPU": 2}], Placement(4, 2, 0)),
        (2, [{"CPU": 2}], Placement(2, 1, 0)),
    ],
)
def test_an_autoscaler_is_asked_for_workers_like_one_alone(
    requested: int, nodes: list[dict[str, float]], expected: Placement
) -> None:
    assert plan_placement(requested, nodes, autoscales=lambda: True) == expected


@pytest.mark.parametrize(
    ("requested", "nodes"), [(4, [{"CPU": 0}]), (None, [{"CPU": 1, "GPU": 8}])]
)
def test_an_autoscaler_is_not_asked_for_what_no_job_has_requested(
    requested: int | None, nodes: list[dict[str, float]]
) -> None:
    with pytest.raises(InsufficientResources):
        plan_placement(requested, nodes, autoscales=lambda: True)


def test_a_type_of_gpu_is_asked_of_every_machine() -> None:
    placement = plan_placement(None, [{"CPU": 8, "GPU": 2}], accelerator_type="H100")
    assert placement == Placement(2, 4, 1, "H100")
    assert placement.labels == [{"ray.io/accelerator-type": "H100"}] * 2
    assert placement.count(1) == "1 GPUs of type H100"
    grown = plan_placement(3, [{"CPU": 8, "GPU": 2}], 1, lambda: True, "H100")
    assert grown == Placement(3, 4, 1, "H100")
    assert Placement(2, 4, 1).labels is None


@pytest.mark.parametrize("nodes", [[], [{"CPU": 8}]])
def test_a_type_of_gpu_is_never_replaced_by_cpus(nodes: list[dict[str, float]]) -> None:
    with pytest.raises(InsufficientResources, match="has GPUs of type H100") as caught:
        plan_placement(1, nodes, 1, lambda: True, "H100")
    assert caught.value.param == "accelerator_type"


def test_a_bundle_reserves_what_one_worker_uses() -> None:
    assert Placement(2, 3, 0).bundles == [{"CPU": 3}, {"CPU": 3}]
    assert Placement(1, 3, 1).bundles == [{"CPU": 3, "GPU": 1}]


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
