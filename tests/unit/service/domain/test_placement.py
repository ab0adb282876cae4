"""A job gets workers that fit the machines, or an error that says what is missing."""

from __future__ import annotations

import pytest

from service.domain.placement import Placement, plan_placement
from service.errors import InsufficientResources


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
