"""Explains why an attempt was lost, from Ray's status and the driver's log; a pure function.

Each case was observed on Ray 2.60, and the tests reproduce each there.

    driver killed             exit code 128 + signal, from the shell that Ray runs it in
    ... with that shell       the log breaks off without an exit code
    ... with Ray's watcher    JOB_SUPERVISOR_ACTOR_DIED, its worker process has died
    node lost                 JOB_SUPERVISOR_ACTOR_DIED, "its node has died", after some 15 s
    stopped by somebody       STOPPED
    cluster restarted         404: jobs end with their cluster
    agent or raylet hangs     RUNNING, for ever; only the lapsed lease shows it
    another schema            exit code 5: the driver must not write to that database
"""

from __future__ import annotations

import signal

from service.cluster.ray_jobs import AttemptStatus, Ended, Unknown, exit_code_in
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

EXIT_SCHEMA_MISMATCH = 5
"""The exit status of a driver that left the database alone, because its schema differs."""

Loss = AttemptLost | NodeLost | SchemaMismatch

_NOT_STARTED = frozenset(
    {
        "RUNTIME_ENV_SETUP_FAILURE",
        "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        "JOB_SUPERVISOR_ACTOR_START_FAILURE",
        "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE",
        "JOB_ENTRYPOINT_COMMAND_START_ERROR",
    }
)
_NODE_DIED = "because its node has died"
_MAX_MESSAGE_CHARACTERS = 1000
_FIRST_SIGNAL = 128


def explain(status: AttemptStatus, printed: str | None) -> Loss:
    """Explain the loss of an attempt by its `status` and the end of its log, None if unreadable.

    If Ray still reports the attempt as active, its lease has lapsed.
    """
    match status:
        case Ended():
            return _explain_end(status, printed)
        case Unknown():
            return ClusterRestarted()
        case _:
            return LeaseLapsed()


def _explain_end(ended: Ended, printed: str | None) -> Loss:
    message = ended.message[:_MAX_MESSAGE_CHARACTERS]
    if ended.status == "STOPPED":
        return DriverStopped(_with_log(DriverStopped().detail, printed))
    if ended.error_type == "JOB_SUPERVISOR_ACTOR_DIED":
        kind = NodeLost if _NODE_DIED in ended.message else DriverKilled
        return kind(f"{kind().detail} Ray reports: {message}")
    if ended.error_type in _NOT_STARTED:
        return DriverNotStarted(f"{DriverNotStarted().detail} Ray reports: {message}")
    return _explain_exit(printed)


def _explain_exit(printed: str | None) -> Loss:
    if printed is None:
        return AttemptLost(_with_log(AttemptLost().detail, printed))
    code = exit_code_in(printed)
    if code is None:
        return DriverKilled(_with_log(DriverKilled().detail, printed))
    if code == EXIT_SCHEMA_MISMATCH:
        detail = (
            "The driver and the jobs database have different versions: run `eigenpress migrate` of "
            "the newer one, install that version on every node of Ray, then retry the job."
        )
        return SchemaMismatch(_with_log(detail, printed))
    if code > _FIRST_SIGNAL:
        name = _signal_name(code - _FIRST_SIGNAL)
        return DriverKilled(_with_log(f"{DriverKilled().detail} It received {name}.", printed))
    ended = f"The driver ended with exit code {code} without writing a result to the database."
    return AttemptLost(_with_log(ended, printed))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _with_log(detail: str, printed: str | None) -> str:
    if printed is None:
        # The log is on the driver's node, which may be lost.
        return f"{detail} Its log cannot be read."
    return f"{detail} It last printed:\n{printed}" if printed else f"{detail} It printed nothing."
