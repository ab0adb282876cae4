"""Suspends an attempt for longer than its lease, and continues it while another one runs.

This simulates the suspension of a machine: the driver, its supervisor in Ray and, with `whole`, its
actors get SIGSTOP in the middle of a step, and SIGCONT once the next attempt works.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from service.domain.states import JobState, Step
from service.standalone.subprocesses import is_running
from tests.chaos.checker import bucket_problems, read_history, violations
from tests.chaos.installation import Installation
from tests.chaos.kills import JOB_SECONDS, Undisturbed, current_step, finish, weights_of
from tests.fixtures.waiting import wait_until

_SUPERVISION = ("ray::JobSupervisor",)
_ACTORS = ("ray::Worker",)


@dataclass(frozen=True)
class Suspended:
    """The results of one suspension."""

    step: str
    whole: bool
    processes: int
    attempts: int
    stale_rows: int
    stale_objects: int
    seconds: float
    problems: list[str]


def run_suspended(
    installation: Installation, undisturbed: Undisturbed, step: Step, *, whole: bool
) -> Suspended:
    """Suspend attempt 1 in `step`; the installation must have room for two attempts."""
    start = time.monotonic()
    store = installation.store
    job_id = installation.submit(undisturbed.spec)
    wait_until(lambda: current_step(installation, job_id) == step, JOB_SECONDS)
    stopped = _processes(installation, job_id, whole=whole)
    _signal(stopped, signal.SIGSTOP)
    wait_until(
        lambda: store.records.get(job_id).attempt == 2 and store.records.get(job_id).steps,
        JOB_SECONDS,
    )
    _signal(stopped, signal.SIGCONT)
    job = finish(installation, job_id)
    wait_until(lambda: not any(map(is_running, stopped)), 60)
    wait_until(lambda: all(other.id != job_id for other in store.claims.to_clean()), 60)
    history = read_history(store, job_id)
    problems = violations(history) + bucket_problems(installation.storage, history)
    if job.state is not JobState.SUCCEEDED:
        problems.append(f"{job_id} is {job.state}: {job.failure}")
    elif weights_of(installation, job_id) != undisturbed.hashes:
        problems.append(f"{job_id} has other weights than the undisturbed run")
    first_end = next(e.id for e in history.events if e.type == "job.retried")
    return Suspended(
        step.value,
        whole,
        len(stopped),
        job.attempt,
        sum(e.attempt == 1 and e.id > first_end for e in history.events),
        sum("left over" in line for line in problems),
        round(time.monotonic() - start, 1),
        problems,
    )


def _processes(installation: Installation, job_id: str, *, whole: bool) -> list[psutil.Process]:
    titles = _SUPERVISION + (_ACTORS if whole else ())
    found = []
    for process in installation.processes():
        with suppress(psutil.Error):
            command = process.cmdline()
            if job_id in " ".join(command) or (command and command[0].startswith(titles)):
                found.append(process)
    return found


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
