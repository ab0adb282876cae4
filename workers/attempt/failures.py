"""Turns an error from anywhere in the cluster into the failure that the user sees."""

from __future__ import annotations

import sys

from ray import exceptions as ray

from service.disk_full import is_full_disk
from service.errors import (
    ClusterUnavailable,
    DiskFull,
    EigenpressError,
    Failure,
    NodeLost,
    OutOfMemory,
    SolveFailed,
    UnsupportedLayer,
    WorkerLost,
)
from workers.compression import errors as compression

NODE_DIED = "its node has died"
"""Ray's message about an actor whose machine is lost; the exception has no other sign of it."""

MEMORY_ERRORS = (MemoryError, ray.OutOfMemoryError, ray.ObjectStoreFullError)

CLUSTER_ERRORS = (
    ray.LocalRayletDiedError,
    ray.RaySystemError,
    ray.RpcError,
    ray.ActorUnschedulableError,
    ray.TaskUnschedulableError,
    ray.ActorPlacementGroupRemoved,
    ray.TaskPlacementGroupRemoved,
    ray.RuntimeEnvSetupError,
)
"""They mean that Ray itself failed, or withdrew a reservation."""


def failure_of(error: BaseException) -> Failure:
    """The failure that ends the attempt; failures of a machine or a service are retryable."""
    if isinstance(error, ray.RayTaskError):
        return failure_of(error.cause)
    if isinstance(error, EigenpressError):
        return error.failure()
    if isinstance(error, compression.UnsupportedLayer):
        return UnsupportedLayer(str(error), param="model").failure()
    if isinstance(error, compression.SolveFailed):
        return SolveFailed(str(error)).failure()
    found = _of_memory(error) or _of_disk(error) or _of_cluster(error)
    if found is None:
        found = EigenpressError(
            f"Unexpected {type(error).__name__}: {_first_line(error)}. The driver's log has more."
        )
    return found.failure()


def _of_memory(error: BaseException) -> EigenpressError | None:
    if _is_of_gpu(error):
        where, workers = "A worker's GPU", "more workers need as much memory each"
    elif isinstance(error, MEMORY_ERRORS) or compression.CPU_ALLOCATOR in str(error):
        where, workers = "A worker's machine", "fewer workers share a machine's memory"
    else:
        return None
    return OutOfMemory(
        f"{where} ran out of memory: lower calibration.batch_size, set "
        f"calibration.gradient_checkpointing, or change the number of workers ({workers}). "
        f"The error: {_first_line(error)}",
        param="calibration.batch_size",
    )


def _is_of_gpu(error: BaseException) -> bool:
    """Whether torch raised it for a full GPU; the driver itself does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _of_disk(error: BaseException) -> EigenpressError | None:
    if isinstance(error, ray.OutOfDiskError) or is_full_disk(error):
        return DiskFull(
            "A machine's disk is full: make room there, or set EIGENPRESS_DATA_DIR to a larger "
            f"one. The error: {_first_line(error)}"
        )
    return None


def _of_cluster(error: BaseException) -> EigenpressError | None:
    if isinstance(error, CLUSTER_ERRORS):
        return ClusterUnavailable(f"The Ray cluster failed: {_first_line(error)}")
    if not isinstance(error, ray.RayError):
        return None
    if isinstance(error, ray.ActorDiedError) and error.actor_init_failed:
        return EigenpressError(f"A worker did not start: {_first_line(error)}")
    preempted = isinstance(error, ray.RayActorError) and error.preempted
    if preempted or isinstance(error, ray.NodeDiedError) or NODE_DIED in str(error):
        return NodeLost(f"A worker's machine was lost: {_gist(error)}")
    # An actor, or an object that it owned, is gone.
    return WorkerLost(f"A worker was lost: {_gist(error)}")


def _gist(error: BaseException) -> str:
    """Ray's message, without the table of an actor's properties."""
    lines = [line for line in str(error).splitlines() if line.strip() and line[0] != "\t"]
    return " ".join(line.strip() for line in lines) or type(error).__name__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
