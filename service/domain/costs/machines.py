"""The machines that the cost model assumes, and the cluster of a job on machines that are known.

A GPU is one in the manner of an H100, as in docs/scale.md, and is not measured. On a core of a CPU
products reach 115 GFLOP/s in float32, 250 in bfloat16 and 60 in float64, and decompositions 4, as
jobs of small models do on an AMD EPYC with AVX-512 BF16. The jobs of an installation say how far
all that is from its machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.domain.costs.cluster import Cluster
from service.domain.placement import Machine, Placement, room

GPU = Cluster(
    workers=1,
    workers_per_machine=1,
    gpus=True,
    device_memory=80 * 10**9,
    host_memory=2 * 10**12,
    disk=28 * 10**12,
    model_flops=989e12,
    float32_flops=67e12,
    float64_flops=67e12,
    products_share=0.45,
    solving_share=0.01,
    memory_bandwidth=3.35e12,
    loading_bandwidth=4e9,
    disk_bandwidth=12e9,
    network_bandwidth=12.5e9,
    start_seconds=4,
)
"""One worker on a machine of eight GPUs in the manner of an H100 (SXM)."""

CORE = replace(
    GPU,
    gpus=False,
    device_memory=0,
    host_memory=64 * 10**9,
    disk=500 * 10**9,
    model_flops=560e9,
    float32_flops=255e9,
    float64_flops=133e9,
    solving_share=0.03,
    memory_bandwidth=10e9,
    loading_bandwidth=0.5e9,
    disk_bandwidth=1e9,
    network_bandwidth=1.25e9,
    call_seconds=0.001,
)
"""One worker with one core of a server that multiplies numbers in bfloat16."""


CORES_TOGETHER = 0.8
"""The work of n cores is that of n to this power: they share their memory, and wait for each other.
Two processes did 1.75 times the work of one on the machine of the README."""


def cluster_of(
    placement: Placement,
    machines: Sequence[Machine],
    worker_memory: int | None = None,
    model_memory: int | None = None,
) -> Cluster:
    """The cluster of these workers, at the assumed speeds; the last two are settings.

    The smallest machine with room for a worker counts; where none says its sizes, the assumed ones.
    """
    used = [each for each in machines if room(placement, [each.resources])]
    assumed = GPU if placement.gpus else CORE
    together = max((room(placement, [each.resources]) for each in used), default=8)
    cores = 1 if placement.gpus else placement.cpus**CORES_TOGETHER
    return replace(
        assumed,
        workers=placement.workers,
        workers_per_machine=min(placement.workers, together),
        device_memory=_smallest([each.gpu_bytes for each in used], assumed.device_memory),
        host_memory=_smallest([each.memory_bytes for each in used], assumed.host_memory),
        disk=_smallest([each.disk_bytes for each in used], assumed.disk),
        model_flops=assumed.model_flops * cores,
        float32_flops=assumed.float32_flops * cores,
        float64_flops=assumed.float64_flops * cores,
        memory_bandwidth=assumed.memory_bandwidth * cores,
        worker_memory=worker_memory,
        model_memory=model_memory,
    )


def _smallest(reported: Sequence[int | None], assumed: int) -> int:
    return min((each for each in reported if each is not None), default=assumed)
