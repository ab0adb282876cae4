"""What a cluster can do, and what a step asks of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import add

from service.domain.costs.shapes import Model

SHARE_FOR_HIDDEN_STATES = 0.25  # of a machine's memory; as much is for solved layers
SHARE_OF_GPU = 0.25  # of its free memory, for hidden states
SHARE_OF_DISK = 0.5  # for hidden states
SHARE_FOR_A_MODEL = 0.8  # of a machine's memory, for a whole model


@dataclass(frozen=True)
class Cluster:
    """The workers and the ceilings of their machines, in bytes, bytes/s and FLOP/s."""

    workers: int
    workers_per_machine: int
    gpus: bool  # one for each worker
    device_memory: int  # of a GPU
    host_memory: int  # of a machine
    disk: int  # of a machine
    model_flops: float  # of a worker: peak of matrix products in the model's precision
    float32_flops: float
    float64_flops: float
    products_share: float  # of their peak that products reach
    solving_share: float  # of float64's peak that decompositions reach
    memory_bandwidth: float  # of a worker, where it computes
    loading_bandwidth: float  # of a worker: from a file in memory to weights that are checked
    disk_bandwidth: float  # of a machine
    network_bandwidth: float  # of a machine
    worker_memory: int | None = None  # the settings of these names; None: the shares above
    model_memory: int | None = None
    call_seconds: float = 0  # of a batch in a block, beside its arithmetic
    start_seconds: float = 0  # of a process, until it has imported its libraries

    @property
    def states_memory(self) -> float:
        """The host's memory for a worker's hidden states, and as much for its solved layers."""
        share = self.host_memory * SHARE_FOR_HIDDEN_STATES / self.workers_per_machine
        return share if self.worker_memory is None else self.worker_memory

    @property
    def whole_model_memory(self) -> float:
        """The host's memory that a worker may take for a whole model."""
        share = self.host_memory * SHARE_FOR_A_MODEL / self.workers_per_machine
        return share if self.model_memory is None else self.model_memory

    def tiers(self, outside_bytes: float) -> tuple[float, float, float]:
        """The room for a worker's hidden states on its GPU, in memory and in files.

        `outside_bytes` of the GPU are taken by what lies outside the blocks.
        """
        free = max(0.0, self.device_memory - outside_bytes) if self.gpus else 0.0
        disk = self.disk * SHARE_OF_DISK / self.workers_per_machine
        return free * SHARE_OF_GPU, self.states_memory, disk

    @property
    def remote_share(self) -> float:
        """The share of what workers exchange that crosses the network."""
        return max(0.0, 1 - self.workers_per_machine / self.workers)

    def number_bytes(self, model: Model) -> int:
        """Of a weight where it is computed with."""
        return model.stored_bytes if self.gpus else 4

    @property
    def sum_bytes(self) -> int:
        """Of a number of the statistics."""
        return 4 if self.gpus else 8


@dataclass(frozen=True)
class Cost:
    """What one worker does in a step, and the most that it holds meanwhile."""

    model_operations: float = 0  # in the model's precision
    float32_operations: float = 0
    float64_operations: float = 0  # products
    decompositions: float = 0  # operations of eigenproblems, in float64
    memory_moved: float = 0  # bytes, where it computes
    loaded: float = 0  # bytes of weights
    calls: float = 0  # of blocks
    starts: float = 0  # of processes, one after the other
    disk_moved: float = 0  # the worker's part of what its machine reads and writes
    network_moved: float = 0
    device_held: float = 0  # bytes, where it computes
    host_held: float = 0  # beside those; with a GPU on another memory
    files_held: float = 0

    def __add__(self, other: Cost) -> Cost:
        """Of steps that take turns on the worker: work adds up, memory is the larger of both."""
        return Cost(
            **{
                each.name: (max if each.name.endswith("_held") else add)(
                    getattr(self, each.name), getattr(other, each.name)
                )
                for each in fields(self)
            }
        )

    def seconds(self, cluster: Cluster) -> dict[str, float]:
        """By resource; see `whole_seconds` for all of the step."""
        together, share = cluster.workers_per_machine, cluster.products_share
        return {
            "arithmetic": self.model_operations / (cluster.model_flops * share)
            + self.float32_operations / (cluster.float32_flops * share)
            + self.float64_operations / (cluster.float64_flops * share)
            + self.decompositions / (cluster.float64_flops * cluster.solving_share),
            "memory": self.memory_moved / cluster.memory_bandwidth,
            "loading": self.loaded / cluster.loading_bandwidth,
            "disk": self.disk_moved * together / cluster.disk_bandwidth,
            "network": self.network_moved * together / cluster.network_bandwidth,
            "calls": self.calls * cluster.call_seconds,
            "starts": self.starts * cluster.start_seconds,
        }

    def whole_seconds(self, cluster: Cluster) -> float:
        """All of the step: processes start first, then the slowest resource sets the pace.

        Without a GPU the same cores compute, move memory and load, one after the other.
        """
        seconds = self.seconds(cluster)
        starts = seconds.pop("starts")
        if not cluster.gpus:
            seconds["arithmetic"] += sum(
                seconds.pop(each) for each in ("memory", "loading", "calls")
            )
        return starts + max(seconds.values())

    def in_host(self, cluster: Cluster) -> float:
        """The bytes of the host's memory that the worker holds."""
        return self.host_held + (0 if cluster.gpus else self.device_held)

    def exceeded(self, cluster: Cluster) -> list[str]:
        """What the step needs more of than there is."""
        host = self.in_host(cluster) * cluster.workers_per_machine
        held = {
            "GPU": (self.device_held, cluster.device_memory if cluster.gpus else None),
            "host": (host, cluster.host_memory),
            "files": (self.files_held * cluster.workers_per_machine, cluster.disk),
        }
        return [name for name, (need, has) in held.items() if has is not None and need > has]
