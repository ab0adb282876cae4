"""Turns an error from anywhere in the cluster into one of `service.errors`, which the user sees.

A worker does so before its error crosses to the driver: not every library's error survives the
pickling, and one that does not looks like the loss of a worker.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection

from ray import exceptions as ray

from service.disk_full import is_full_disk
from service.errors import (
    ClusterUnavailable,
    DiskFull,
    EigenpressError,
    MemoryTaken,
    ModelInvalid,
    NodeLost,
    OutOfMemory,
    SolveFailed,
    UnsupportedLayer,
    WorkerLost,
)
from service.printable import uncoloured
from workers.compression import errors as compression

NODE_DIED = "its node has died"
"""Ray's message about an actor whose machine is lost; the exception has no other sign of it."""

MEMORY_ERRORS = (MemoryError, ray.OutOfMemoryError, ray.ObjectStoreFullError)

_USED_MEMORY = re.compile(r"Memory on the node .* was ([\d.]+)GB used")
_MEMORY_USER = re.compile(r"^(\d+)\t([\d.]+)\t", re.MULTILINE)
"""In Ray's message about a worker that it ended: a line for each of the largest processes."""

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


def named(error: BaseException, pids: Collection[int] = ()) -> EigenpressError:
    """The error by one of our names; those of a machine or a service are retryable.

    `pids` are the attempt's workers: Ray tells which processes hold a full machine's memory.
    """
    if isinstance(error, ray.RayTaskError):
        return named(error.cause, pids)
    if isinstance(error, EigenpressError):
        return error
    if isinstance(error, compression.UnsupportedLayer):
        return UnsupportedLayer(str(error), param="model")
    if isinstance(error, compression.NotFinite):
        return ModelInvalid(str(error), param="model")
    if isinstance(error, compression.SolveFailed):
        return SolveFailed(str(error))
    return (
        _of_others(error, pids)
        or _of_memory(error)
        or _of_disk(error)
        or _of_cluster(error)
        or EigenpressError(
            f"Unexpected {type(error).__name__}: {_first_line(error)}. The job's log in Ray's "
            "dashboard has more."
        )
    )


def _of_others(error: BaseException, pids: Collection[int]) -> EigenpressError | None:
    """MemoryTaken if Ray ended a worker because processes of others held most of the memory."""
    if not isinstance(error, ray.OutOfMemoryError) or not pids:
        return None
    used = _USED_MEMORY.search(str(error))
    if used is None:
        return None
    own = sum(float(size) for pid, size in _MEMORY_USER.findall(str(error)) if int(pid) in pids)
    if own * 2 > float(used[1]):
        return None
    return MemoryTaken(
        f"A worker's machine ran out of memory, {used[1]} GB of which were in use; the job's "
        f"workers there held {own:.2f} GB, and other processes the rest. Lower "
        "EIGENPRESS_MAX_RUNNING_JOBS if these are other jobs."
    )


def _of_memory(error: BaseException) -> EigenpressError | None:
    if _is_of_gpu(error):
        where, workers = "A worker's GPU", "more workers need as much memory each"
    elif isinstance(error, MEMORY_ERRORS) or compression.CPU_ALLOCATOR in str(error):
        where, workers = "A worker's machine", "fewer workers share a machine's memory"
    else:
        return None
    return OutOfMemory(
        f"{where} ran out of memory: lower calibration.batch_size, or change the number of workers "
        f"({workers}). The error: {_first_line(error)}",
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
    lines = [line for line in _plain(error).splitlines() if line.strip() and line[0] != "\t"]
    return " ".join(line.strip() for line in lines) or type(error).__name__


def _first_line(error: BaseException) -> str:
    return (_plain(error).splitlines() or [type(error).__name__])[0]


def _plain(error: BaseException) -> str:
    return uncoloured(str(error)).strip()
