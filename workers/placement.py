"""Who does what: how many workers a job gets, and which worker solves which layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from service.errors import InsufficientResources
from workers.compression.layers import InputGroup

CPUS_PER_CPU_WORKER = 2
"""Without GPUs and without a wish of the user's, one worker per so many CPUs."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Placement:
    """The workers of a job and what Ray reserves for each."""

    workers: int
    cpus: int  # per worker
    gpus: int  # per worker: 0 or 1

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The bundles of the job's placement group, one per worker."""
        bundle: dict[str, float] = {"CPU": self.cpus}
        if self.gpus:
            bundle["GPU"] = self.gpus
        return [dict(bundle) for _ in range(self.workers)]


def plan_placement(requested: int | None, resources: Mapping[str, float]) -> Placement:
    """Divide the cluster: one GPU each where there are GPUs, else an equal share of the CPUs.

    `resources` is what `ray.cluster_resources()` returns. Raises InsufficientResources if the
    cluster has fewer GPUs, or without GPUs fewer CPUs, than workers are asked for.
    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    unit, available = ("GPUs", gpus) if gpus else ("CPUs", cpus)
    workers = requested or gpus or max(1, cpus // CPUS_PER_CPU_WORKER)
    if workers > min(available, cpus):
        short = unit if workers > available else "CPUs"
        raise InsufficientResources(
            f"{workers} workers need as many {short}; the cluster has {gpus} GPUs and {cpus} CPUs",
            param="workers",
        )
    return Placement(workers, cpus // workers, 1 if gpus else 0)


def shares(items: Sequence[Item], workers: int) -> list[Sequence[Item]]:
    """Static, contiguous shares of nearly equal length, one per worker."""
    bounds = [len(items) * worker // workers for worker in range(workers + 1)]
    return [items[start:end] for start, end in pairwise(bounds)]


def assign_owners(groups: Sequence[InputGroup], workers: int) -> list[list[InputGroup]]:
    """Bin-pack the groups by cost: the most expensive first, each to the least loaded worker."""
    loads = [0] * workers
    owned: list[list[InputGroup]] = [[] for _ in range(workers)]
    for group in sorted(groups, key=lambda group: (-group.solve_operations, group.name)):
        owner = loads.index(min(loads))
        owned[owner].append(group)
        loads[owner] += group.solve_operations
    return owned
