"""Checks that each of many jobs ends once, with its expected result, while PostgreSQL restarts.

It runs two dispatchers, attempts in threads, and some real jobs if a Ray is given.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from service.cluster.ray_jobs import AttemptStatus, Cluster
from service.cluster.ray_logs import LogReader
from service.domain.spec.job import JobSpec
from service.domain.states import TERMINAL, JobState
from service.errors import DatabaseUnavailable
from service.retrying import retry
from service.settings import Settings
from service.store.listing import JobFilter
from service.store.store import Store
from tests.chaos.background import Background
from tests.chaos.checker import bucket_problems, read_history, violations
from tests.chaos.dispatching import Connections, dispatching, numbered_spec, problems_of
from tests.chaos.inprocess import InProcessCluster
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.waiting import wait_until

MODES = ("fast", "immediate", "kill")
LONGEST_DOWN_SECONDS = 2.0

Pause = Callable[[random.Random], float]


@dataclass(frozen=True)
class RealJobs:
    """Jobs for a real Ray, all with the same expected weights."""

    cluster: Cluster
    spec: JobSpec
    count: int


@dataclass(frozen=True)
class Outages:
    """The results of a run."""

    seed: int
    jobs: int
    real_jobs: int
    restarts: int
    attempts: int
    seconds: float
    problems: list[str]


class Routed:
    """A cluster that submits real jobs to Ray and all others to threads."""

    def __init__(self, threads: Cluster, real: Cluster | None) -> None:
        self.real_ids: set[str] = set()
        self._threads = threads
        self._real = real

    def _of(self, job_id: str) -> Cluster:
        return self._real if self._real and job_id in self.real_ids else self._threads

    def check(self) -> None:
        self._threads.check()
        if self._real:
            self._real.check()

    def submit(self, job_id: str, attempt: int, name: str | None = None) -> None:
        self._of(job_id).submit(job_id, attempt, name)

    def status(self, job_id: str, attempt: int) -> AttemptStatus:
        return self._of(job_id).status(job_id, attempt)

    def stop(self, job_id: str, attempt: int) -> None:
        self._of(job_id).stop(job_id, attempt)

    def log_tail(self, job_id: str, attempt: int, lines: int = 30) -> str:
        return self._of(job_id).log_tail(job_id, attempt, lines)

    def logs(self, job_id: str, attempt: int) -> Mapping[str, LogReader]:
        return self._of(job_id).logs(job_id, attempt)

    def forget(self, job_id: str, attempt: int) -> None:
        self._of(job_id).forget(job_id, attempt)


class Restarter(Background):
    """Restarts the server in several ways, after random pauses, until it is stopped."""

    def __init__(self, server: PostgresServer, seed: int, shortest: float, longest: float) -> None:
        super().__init__()
        self.restarts = 0
        self._server = server
        self._random = random.Random(seed)
        self._pauses = (shortest, longest)

    def run(self) -> None:
        while not self.stopped.wait(self._random.uniform(*self._pauses)):
            mode = self._random.choice(MODES)
            if mode == "kill":
                self._server.kill()
            else:
                self._server.stop(mode)
            time.sleep(self._random.uniform(0, LONGEST_DOWN_SECONDS))
            self._server.start()
            self.restarts += 1


def run_outages(
    server: PostgresServer,
    settings: Settings,
    *,
    seed: int,
    jobs: int,
    pauses: tuple[float, float],
    least_restarts: int,
    step_seconds: float,
    real: RealJobs | None = None,
    end_seconds: float = 3000.0,
) -> Outages:
    """Run `jobs` jobs in threads, and the real ones, on the server's database of `settings`."""
    start = time.monotonic()
    ours, attempts, *dispatchers = (Connections.open(settings) for _ in range(4))
    threads = InProcessCluster(
        attempts.store, attempts.storage, settings, seed=seed, step_seconds=step_seconds
    )
    cluster = Routed(threads, real.cluster if real else None)
    for number in range(real.count if real else 0):  # before a dispatcher can claim them
        job_id = _submit(ours.store, real.spec, f"real-{seed}-{number}", "real")  # type: ignore[union-attr]
        cluster.real_ids.add(job_id)
    with dispatching(cluster, settings, dispatchers):
        with Restarter(server, seed, *pauses) as restarter:
            job_ids = [
                _submit(ours.store, numbered_spec(number), f"{seed}-{number}", "threads")
                for number in range(jobs)
            ]
            everything = [*cluster.real_ids, *job_ids]
            wait_until(
                lambda: restarter.restarts >= least_restarts and _ended(ours.store),
                end_seconds,
            )
        wait_until(partial(_cleaned, ours.store), 120)
    threads.join()
    problems = problems_of(ours.store, ours.storage, job_ids)
    problems += _real_problems(ours, sorted(cluster.real_ids))
    listed = len(ours.store.records.list_jobs(limit=100 * (jobs + 1)))
    if listed != len(everything):
        problems.append(f"{len(everything)} submissions created {listed} jobs")
    numbers = [ours.store.records.get(job_id).attempt for job_id in everything]
    for own in (ours, attempts, *dispatchers):
        own.store.close()
    seconds = round(time.monotonic() - start, 1)
    return Outages(
        seed,
        len(everything),
        len(cluster.real_ids),
        restarter.restarts,
        sum(numbers),
        seconds,
        problems,
    )


def _submit(store: Store, spec: JobSpec, key: str, tenant: str) -> str:
    create = partial(store.users(tenant).create_once, spec, key)
    job, _ = retry(create, on=DatabaseUnavailable, seconds=120)
    return job.id


def _ended(store: Store) -> bool:
    time.sleep(0.5)
    try:
        listed = store.records.list_jobs(JobFilter(states=set(JobState) - TERMINAL), limit=1)
    except DatabaseUnavailable:
        return False
    return not listed


def _cleaned(store: Store) -> bool:
    try:
        return not store.claims.to_clean()
    except DatabaseUnavailable:
        return False


def _real_problems(own: Connections, job_ids: Sequence[str]) -> list[str]:
    """Check that these real jobs of one specification succeeded with the same weights."""
    found: list[str] = []
    weights = set()
    for job_id in job_ids:
        history = read_history(own.store, job_id)
        found += violations(history) + bucket_problems(own.storage, history)
        if history.job.state is not JobState.SUCCEEDED:
            found.append(f"{job_id} is {history.job.state}: {history.job.failure}")
        else:
            weights.add(
                tuple(
                    (artifact.name, file.path, file.sha256)
                    for artifact in history.artifacts
                    for file in artifact.files
                    if file.path.endswith(".safetensors")
                )
            )
    if len(weights) > 1:
        found.append(f"{len(weights)} different results of one specification")
    return found
