"""The cause of a lost attempt follows from what Ray really reported in each case."""

from __future__ import annotations

import pytest

from service.cluster.diagnosis import EXIT_SCHEMA_MISMATCH, explain
from service.cluster.ray_jobs import Active, AttemptStatus, Ended, Unknown
from service.errors import (
    AttemptLost,
    ClusterRestarted,
    DriverKilled,
    DriverNotStarted,
    DriverStopped,
    LeaseLapsed,
    NodeLost,
    SchemaMismatch,
)

SUCCEEDED = Ended("SUCCEEDED", None, "Job finished successfully.")
DIED = "Job supervisor actor died: The actor died unexpectedly before finishing this task.\n"
WATCHER_DIED = Ended(
    "FAILED",
    "JOB_SUPERVISOR_ACTOR_DIED",
    DIED + "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR",
)
NODE_DIED = Ended(
    "FAILED",
    "JOB_SUPERVISOR_ACTOR_DIED",
    DIED + "The actor died because its node has died. Node Id: 4fa1\n"
    "the actor's node was terminated unexpectedly: health check failed due to missing too many",
)


def failed(error_type: str) -> Ended:
    return Ended("FAILED", error_type, "as Ray says")


def exited(code: int, printed: str = "loading") -> str:
    return f"{printed}\nThe driver's exit code: {code}"


@pytest.mark.parametrize(
    ("status", "printed", "kind", "says"),
    [
        (Unknown(), "", ClusterRestarted, "restarted"),
        (Active(), "", LeaseLapsed, "no heartbeat"),
        (SUCCEEDED, exited(137), DriverKilled, r"SIGKILL.*\nloading"),
        (SUCCEEDED, exited(139), DriverKilled, "SIGSEGV"),
        (SUCCEEDED, exited(255), DriverKilled, "signal 127"),
        (SUCCEEDED, "loading", DriverKilled, "out of memory.*\nloading"),
        (SUCCEEDED, "", DriverKilled, "It printed nothing"),
        (SUCCEEDED, exited(0), AttemptLost, "exit code 0"),
        (
            failed("JOB_ENTRYPOINT_COMMAND_ERROR"),
            exited(1),
            AttemptLost,
            "exit code 1 without writing",
        ),
        (
            failed("JOB_ENTRYPOINT_COMMAND_ERROR"),
            exited(EXIT_SCHEMA_MISMATCH, "The schema is 0004"),
            SchemaMismatch,
            r"install that version on every node of Ray(.|\n)*The schema is 0004",
        ),
        (failed("JOB_ENTRYPOINT_COMMAND_ERROR"), None, AttemptLost, "log cannot be read"),
        (failed("JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE"), None, AttemptLost, "log cannot be read"),
        (Ended("STOPPED"), exited(143), DriverStopped, "cancel it here"),
        (WATCHER_DIED, "loading", DriverKilled, "worker process has died"),
        (NODE_DIED, None, NodeLost, "its node has died"),
        (failed("RUNTIME_ENV_SETUP_FAILURE"), "", DriverNotStarted, "as Ray says"),
        (failed("JOB_SUPERVISOR_ACTOR_START_TIMEOUT"), "", DriverNotStarted, "as Ray says"),
        (failed("JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE"), "", DriverNotStarted, "as Ray says"),
    ],
)
def test_each_loss_has_its_name(
    status: AttemptStatus, printed: str | None, kind: type[Exception], says: str
) -> None:
    error = explain(status, printed)
    assert type(error) is kind
    assert error.failure().retryable is (kind is not SchemaMismatch)
    with pytest.raises(kind, match=f"(?s){says}"):
        raise error


def test_a_long_message_of_ray_is_cut() -> None:
    assert len(explain(Ended("FAILED", "RUNTIME_ENV_SETUP_FAILURE", "x" * 10**6), "").detail) < 2000
