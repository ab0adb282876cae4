"""How many workers a job gets on a cluster, and what each of them gets of it: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from service.errors import InsufficientResources

CPUS_PER_CPU_WORKER = 2
"""The default number of CPUs per worker in a cluster without GPUs."""

Resources = Mapping[str, float]
"""The resources of a machine, as Ray reports them: `CPU`, `GPU` and more."""

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label by which a machine says which GPUs it has; Ray sets it where it knows them."""

PLACED = "workers.placed"
"""The event of an attempt that has its workers; its data have the placement."""


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster; None for sizes that it has not reported."""

    resources: Resources
    accelerator_type: str | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    gpu_bytes: int | None = None  # of its smallest GPU


@dataclass(frozen=True)
class Placement:
    """The workers of a job and the resources that Ray reserves for each."""

    workers: int
    cpus: int  # per worker
    gpus: int  # per worker: 0 or 1
    accelerator_type: str | None = None  # of the machines; None: any

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The bundles of the job's placement group, one per worker."""
        bundle: dict[str, float] = {"CPU": self.cpus}
        if self.gpus:
            bundle["GPU"] = self.gpus
        return [dict(bundle) for _ in range(self.workers)]

    @property
    def labels(self) -> list[dict[str, str]] | None:
        """The labels that each bundle asks of its machine."""
        if self.accelerator_type is None:
            return None
        return [{ACCELERATOR_LABEL: self.accelerator_type} for _ in range(self.workers)]

    def count(self, workers: int) -> str:
        """That many of the workers in words, by what each of them needs."""
        what = "GPUs" if self.gpus else "workers"
        kind = f" of type {self.accelerator_type}" if self.accelerator_type else ""
        return f"{workers} {what}{kind}"


def plan_placement(
    requested: int | None,
    nodes: Sequence[Resources],
    concurrent_jobs: int = 1,
    autoscales: Callable[[], bool] = lambda: False,
    accelerator_type: str | None = None,
) -> Placement:
    """Give each worker one GPU if the cluster has GPUs, else an equal share of the CPUs.

    `nodes` has the resources of each machine of the cluster, of those with GPUs of the
    `accelerator_type` if the job names one; a worker never spans two machines.
    Unless a number of workers is `requested`, `concurrent_jobs` jobs divide the GPUs among them,
    or the CPUs if there are no GPUs. If a requested number of workers does not fit, even with one
    CPU each, and the cluster `autoscales`, each worker gets as much as one alone would. Raises
    InsufficientResources if they do not fit otherwise.
    """
    cpus = sum(int(node.get("CPU", 0)) for node in nodes)
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if accelerator_type and not gpus:
        raise InsufficientResources(
            f"no machine of the cluster has GPUs of type {accelerator_type}; what types there are, "
            f"the machines' labels {ACCELERATOR_LABEL} say",
            param="accelerator_type",
        )
    share = max(1, cpus // concurrent_jobs)
    by_default = gpus // concurrent_jobs if gpus else share // CPUS_PER_CPU_WORKER
    workers = requested or max(1, by_default)
    most_cpus = cpus // gpus if gpus else share // workers
    for cpus_each in range(max(1, most_cpus), 0, -1):
        placement = Placement(workers, cpus_each, 1 if gpus else 0, accelerator_type)
        if fits(placement, nodes):
            return placement
    if workers > 1 and requested and autoscales():
        alone = plan_placement(1, nodes, concurrent_jobs, accelerator_type=accelerator_type)
        return replace(alone, workers=workers)
    unit = "GPU and a CPU" if gpus else "CPU"
    where = (
        f"the machines of type {accelerator_type} have" if accelerator_type else "the cluster has"
    )
    raise InsufficientResources(
        f"{workers} workers need a {unit} each; {where} {gpus} GPUs and {cpus} CPUs",
        param="workers",
    )


def fits(placement: Placement, nodes: Sequence[Resources]) -> bool:
    """Whether the machines have room for all workers at once, if no other job uses them."""
    return room(placement, nodes) >= placement.workers


def room(placement: Placement, nodes: Sequence[Resources]) -> int:
    """How many workers of this kind fit on the machines at once, if no other job uses them."""
    return sum(_room(node, placement) for node in nodes)


def _room(node: Resources, placement: Placement) -> int:
    """How many of the workers fit on a node."""
    by_cpus = int(node.get("CPU", 0)) // placement.cpus
    return min(by_cpus, int(node.get("GPU", 0))) if placement.gpus else by_cpus
