"""Kills one process of an installation with SIGKILL while a real job is in one of its steps.

One installation goes through all kills, one job after the other. After each kill the job must
succeed with the same bytes as the undisturbed run, its event log must have no violations, and
within a minute all resources of the job must be free again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from service.domain.job import Job
from service.domain.spec.job import JobSpec
from service.domain.states import TERMINAL, JobState, Step
from tests.chaos.baseline import Holdings, holdings, settle
from tests.chaos.checker import bucket_problems, read_history, violations
from tests.chaos.installation import API, DISPATCHERS, RAY, S3, Installation
from tests.fixtures.waiting import wait_until

DRIVER, WORKER, RAYLET, DISPATCHER = "driver", "worker", "raylet", "dispatcher"
VICTIMS = (DRIVER, WORKER, DISPATCHER, API, RAYLET, S3)

JOB_SECONDS = 400.0
TRIES = 4
"""How often a kill is tried if its step is over too early."""

S3_AWAY_SECONDS = 2.0
"""How long the S3 server is down, which is longer than boto's own tries take."""


@dataclass(frozen=True)
class Kill:
    """The process to kill, and when: at the start of a step, or some time after the submission."""

    victim: str
    step: Step | None = None
    after_seconds: float = 0.0


@dataclass
class Killed:
    """The results of one kill."""

    victim: str
    step: str
    at_random: bool
    attempts: int
    job_seconds: float
    settle_seconds: float
    problems: list[str] = field(default_factory=list)


def every_pair() -> list[Kill]:
    """A kill of each process in each step."""
    return [Kill(victim, step) for victim in VICTIMS for step in Step]


def random_moments(seed: int, count: int, longest_seconds: float) -> list[Kill]:
    """Kills of random processes at random moments, from a seed."""
    stream = random.Random(seed)
    return [
        Kill(stream.choice(VICTIMS), None, round(stream.uniform(0, longest_seconds), 2))
        for _ in range(count)
    ]


class Undisturbed:
    """The results of a job without a kill, and the installation's holdings after it."""

    def __init__(self, installation: Installation, spec: JobSpec) -> None:
        start = time.monotonic()
        job = finish(installation, installation.submit(spec))
        self.seconds = time.monotonic() - start
        assert job.state is JobState.SUCCEEDED, job.failure
        self.spec = spec
        self.hashes = weights_of(installation, job.id)
        self.steps = {
            step.step.value: ((step.finished_at or step.started_at) - step.started_at)
            for step in job.steps
        }
        self.base = _resting(installation)


def weights_of(installation: Installation, job_id: str) -> dict[str, str]:
    """The sha256 of every safetensors file that the job has published."""
    return {
        f"{artifact.name}/{file.path}": file.sha256
        for artifact in installation.store.records.artifacts(job_id)
        for file in artifact.files
        if file.path.endswith(".safetensors")
    }


def run_kills(
    installation: Installation, undisturbed: Undisturbed, kills: Sequence[Kill]
) -> Iterator[Killed]:
    """Run one job for each kill, one after the other."""
    for number, kill in enumerate(kills):
        yield _run_kill(installation, undisturbed, kill, number)


def _run_kill(
    installation: Installation, undisturbed: Undisturbed, kill: Kill, number: int
) -> Killed:
    for _ in range(TRIES):
        start = time.monotonic()
        job_id = installation.submit(undisturbed.spec)
        step = _strike(installation, kill, job_id, number)
        job = finish(installation, job_id)
        seconds = round(time.monotonic() - start, 1)
        settled, problems = settle(installation, undisturbed.base)
        if job.state is not JobState.SUCCEEDED:
            problems.append(f"{job_id} is {job.state}: {job.failure}")
        elif weights_of(installation, job_id) != undisturbed.hashes:
            problems.append(f"{job_id} has other weights than the undisturbed run")
        problems += violations(read_history(installation.store, job_id))
        if problems or kill.step is None or step == kill.step:
            break
    else:
        problems.append(f"never in {kill.step}")
    at_random = kill.step is None
    return Killed(kill.victim, step or "-", at_random, job.attempt, seconds, settled, problems)


def _strike(installation: Installation, kill: Kill, job_id: str, number: int) -> str | None:
    """Kill the process at its time and restart the part; return the step that was hit."""
    if kill.step is None:
        time.sleep(kill.after_seconds)
    else:
        wait_until(lambda: current_step(installation, job_id) == kill.step, JOB_SECONDS)
    part = {DISPATCHER: DISPATCHERS[number % 2], RAYLET: RAY}.get(kill.victim, kill.victim)
    pid = _wait_for_pid(installation, kill, part, job_id)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    hit = current_step(installation, job_id) if pid is not None else None
    if kill.victim == S3:
        time.sleep(S3_AWAY_SECONDS)
    if kill.victim not in (DRIVER, WORKER):
        installation.restart(part)
    return hit


def _wait_for_pid(installation: Installation, kill: Kill, part: str, job_id: str) -> int | None:
    """The process to kill; a worker may need time to start. None if there is none."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid = _pid(installation, kill.victim, part, job_id)
        in_time = kill.step is None or current_step(installation, job_id) == kill.step
        if pid is not None or kill.step is None or not in_time:
            return pid
    return None


def _pid(installation: Installation, victim: str, part: str, job_id: str) -> int | None:
    if victim == S3:
        return installation.s3.pid
    if victim in (API, DISPATCHER):
        return installation.daemons[part].pid
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if _is_victim(process, victim, job_id, installation.ray.pid):
                return int(process.pid)
    return None


def _is_victim(process: psutil.Process, victim: str, job_id: str, head: int | None) -> bool:
    command: list[str] = process.cmdline()
    if victim == DRIVER:
        return "workers.attempt.driver" in command and job_id in command
    if not command or os.getsid(process.pid) != head:
        return False
    return command[0].startswith("ray::Worker") if victim == WORKER else _is_raylet(process)


def _is_raylet(process: psutil.Process) -> bool:
    return bool(process.name() == "raylet")


def current_step(installation: Installation, job_id: str) -> str | None:
    """The step that the job is in."""
    open_ = [
        step for step in installation.store.records.get(job_id).steps if step.finished_at is None
    ]
    return open_[-1].step.value if open_ else None


def finish(installation: Installation, job_id: str) -> Job:
    wait_until(lambda: installation.store.records.get(job_id).state in TERMINAL, JOB_SECONDS)
    return installation.store.records.get(job_id)


def _resting(installation: Installation) -> Holdings:
    """The base line: the holdings once two consecutive measurements agree."""
    before = holdings(installation)
    for _ in range(60):
        time.sleep(1)
        now = holdings(installation)
        if now.is_idle and not now.beyond(before) and not before.beyond(now):
            return now
        before = now
    raise AssertionError("the installation does not come to rest")


def left_over(installation: Installation, job_ids: Sequence[str]) -> list[str]:
    """The objects of these jobs that the bucket has in excess, or lacks."""
    storage = installation.storage
    return [
        line
        for job_id in job_ids
        for line in bucket_problems(storage, read_history(installation.store, job_id))
    ]
