"""A job's cluster has its workers' machines, and the speeds that docs/scale.md assumes."""

from __future__ import annotations

import pytest

from bench.scale import cluster
from service.domain.costs.machines import CORE, CORES_TOGETHER, GPU, cluster_of
from service.domain.placement import Machine, Placement

ON_GPUS = Machine({"CPU": 64, "GPU": 8}, "H100", 10**12, 10**13, 80 * 10**9)
SMALLER = Machine({"CPU": 32, "GPU": 4}, "A100", 10**11, None, 40 * 10**9)
HEAD = Machine({"CPU": 0}, None, 10**9, 10**9)


@pytest.mark.parametrize("gpus", [1, 8, 64])
def test_unknown_machines_are_those_of_the_scale_page(gpus: int) -> None:
    assert cluster_of(Placement(gpus, 8, 1), []) == cluster(gpus)


def test_the_smallest_machine_with_room_for_a_worker_counts() -> None:
    found = cluster_of(Placement(10, 8, 1), [ON_GPUS, SMALLER, HEAD], 5, 6)
    assert (found.workers, found.workers_per_machine) == (10, 8)
    assert (found.device_memory, found.host_memory, found.disk) == (40 * 10**9, 10**11, 10**13)
    assert (found.worker_memory, found.model_memory) == (5, 6)
    assert found.model_flops == GPU.model_flops


def test_cpus_add_up_in_a_worker_without_a_gpu() -> None:
    found = cluster_of(Placement(3, 4, 0), [Machine({"CPU": 12})])
    assert (found.gpus, found.workers_per_machine, found.device_memory) == (False, 3, 0)
    assert found.float64_flops == pytest.approx(4**CORES_TOGETHER * CORE.float64_flops)
    assert 1.7 < 2**CORES_TOGETHER < 1.8
    assert found.disk_bandwidth == CORE.disk_bandwidth
