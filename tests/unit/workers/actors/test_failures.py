"""Every error of an attempt becomes a failure that tells the user what to do."""

from __future__ import annotations

import errno
import os
import pickle
from typing import Any

import pytest
import torch
from ray import exceptions as ray
from ray.core.generated import common_pb2

from service.errors import (
    CalibrationTooShort,
    ClusterUnavailable,
    Failure,
    ModelInvalid,
    StorageUnavailable,
)
from workers.actors.failures import named
from workers.compression.errors import BudgetTooSmall, NotFinite, SolveFailed, UnsupportedLayer

ERRORS = [
    (
        ModelInvalid("no weights", param="model.path"),
        Failure("model_invalid", "no weights", "model.path"),
    ),
    (
        CalibrationTooShort("add text", param="calibration.sequences"),
        Failure("calibration_too_short", "add text", "calibration.sequences"),
    ),
    (
        StorageUnavailable("S3 is away"),
        Failure("storage_unavailable", "S3 is away", retryable=True),
    ),
    (
        UnsupportedLayer("h.0.attn is a Conv1D"),
        Failure("unsupported_layer", "h.0.attn is a Conv1D", "model"),
    ),
    (
        NotFinite("q_proj: its input is not finite"),
        Failure("model_invalid", "q_proj: its input is not finite", "model"),
    ),
    (SolveFailed("q_proj: not finite"), Failure("solve_failed", "q_proj: not finite")),
    (
        ZeroDivisionError("division by zero\nand more"),
        Failure(
            "internal_error",
            "Unexpected ZeroDivisionError: division by zero. The job's log in Ray's dashboard has "
            "more.",
        ),
    ),
    (
        BudgetTooSmall(),
        Failure(
            "internal_error",
            "Unexpected BudgetTooSmall: BudgetTooSmall. The job's log in Ray's dashboard has more.",
        ),
    ),
]

KINDS = pytest.mark.parametrize(
    ("error", "failure"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS]
)


RAY: Any = ray
"""Its exceptions are not typed."""


def failure_of(error: BaseException) -> Failure:
    return named(error).failure()


def in_a_task(error: BaseException) -> Any:
    """The error as an actor's result carries it."""
    crossed = pickle.loads(pickle.dumps(error))
    return RAY.RayTaskError("solve", "Traceback ...", crossed, "worker", 1, "127.0.0.1")


def death(message: str, *, preempted: bool = False) -> ray.ActorDiedError:
    """The death of an actor as Ray tells it."""
    messages: Any = common_pb2
    context = messages.ActorDiedErrorContext(
        error_message=message, class_name="Worker", actor_id=b"a" * 16, pid=7, name="job/worker-0"
    )
    if preempted:
        context.node_death_info.reason = messages.NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED
    died: ray.ActorDiedError = RAY.ActorDiedError(context)
    return died


@KINDS
def test_an_error_becomes_a_failure(error: BaseException, failure: Failure) -> None:
    assert failure_of(error) == failure


@KINDS
def test_it_does_so_wherever_in_the_cluster_it_arose(
    error: BaseException, failure: Failure
) -> None:
    task = in_a_task(error)
    assert failure_of(task) == failure
    assert failure_of(task.as_instanceof_cause()) == failure
    assert failure_of(in_a_task(task)) == failure  # the actor was waiting for another


LOST: list[tuple[str, Exception, str]] = [
    ("worker_lost", ray.ActorDiedError(), "died unexpectedly"),
    ("worker_lost", ray.WorkerCrashedError(), "died unexpectedly"),
    ("worker_lost", death("The worker died: connection error code 2."), "connection error code 2"),
    ("worker_lost", ray.OwnerDiedError("00", b"", ""), "owner has exited"),
    ("node_lost", death("The actor died because its node has died. Node Id: 1"), "Node Id: 1"),
    ("node_lost", death("drained", preempted=True), "drained"),
    ("node_lost", RAY.NodeDiedError("the node is gone"), "the node is gone"),
    ("cluster_unavailable", ray.LocalRayletDiedError(), "raylet"),
    ("cluster_unavailable", ray.ActorPlacementGroupRemoved(), "placement group"),
    ("cluster_unavailable", ClusterUnavailable("full"), "full"),
]


@pytest.mark.parametrize(("code", "error", "said"), LOST, ids=str)
def test_what_was_lost_is_told_apart_and_tried_again(
    code: str, error: Exception, said: str
) -> None:
    failure = failure_of(error)
    assert failure.code == code
    assert failure.retryable
    assert said in failure.detail
    assert "\n" not in failure.detail


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "GPU"),
        (MemoryError("no room"), "machine"),
        (RAY.OutOfMemoryError("Task was killed due to the node running low on memory."), "machine"),
        (ray.ObjectStoreFullError("no room"), "machine"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "machine"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_out_of_memory_says_what_to_change(error: Exception, where: str) -> None:
    for raised in (error, in_a_task(error)):
        failure = failure_of(raised)
        assert (failure.code, failure.param) == ("out_of_memory", "calibration.batch_size")
        assert not failure.retryable
        assert f"A worker's {where} ran out of memory" in failure.detail
        for change in ("calibration.batch_size", "workers"):
            assert change in failure.detail


ENDED = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: \
10.0.0.1, ID: 34) was 22.50GB used / 23.54GB limit (0.95)
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
31\t16.25\tray::Worker.solve
14\t3.50\tray::Worker.calibrate
15\t1.50\tpython train.py
"""


def test_memory_that_others_took_is_told_apart_and_tried_again() -> None:
    error = RAY.OutOfMemoryError(ENDED)
    for raised in (error, in_a_task(error)):
        failure = named(raised, {14, 16}).failure()
        assert (failure.code, failure.retryable) == ("memory_taken", True)
        assert "22.50 GB" in failure.detail
        assert "3.50 GB" in failure.detail


@pytest.mark.parametrize(
    ("message", "pids"), [(ENDED, {31}), (ENDED, {14, 31}), (ENDED, set()), ("full", {14})]
)
def test_memory_of_the_job_itself_runs_out_again(message: str, pids: set[int]) -> None:
    failure = named(RAY.OutOfMemoryError(message), pids).failure()
    assert (failure.code, failure.retryable) == ("out_of_memory", False)


def test_colours_of_a_traceback_are_left_out() -> None:
    assert "\x1b" not in failure_of(death("\x1b[36mray::Worker\x1b[39m")).detail
    assert "Unexpected RuntimeError: red." in failure_of(RuntimeError("\x1b[31mred")).detail


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"),
        ray.OutOfDiskError("full"),
        RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_named_and_tried_again(error: Exception) -> None:
    for raised in (error, in_a_task(error)):
        failure = failure_of(raised)
        assert failure.code == "disk_full"
        assert failure.retryable
        assert "EIGENPRESS_DATA_DIR" in failure.detail


def test_a_worker_that_cannot_start_says_why() -> None:
    failure = failure_of(RAY.ActorDiedError(in_a_task(ImportError("no torch"))))
    assert failure.code == "internal_error"
    assert failure.detail.startswith("A worker did not start: ")
    assert not failure.retryable
