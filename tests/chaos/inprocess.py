"""A cluster of threads, whose attempts write to store and bucket as a driver does.

They renew a lease, report the steps, publish artifacts with the real functions and end their job
within milliseconds. The published files are random, but determined by the specification, so that
every job has one expected result for all its attempts.
"""

from __future__ import annotations

import hashlib
import logging
import random
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from service.cluster.ray_jobs import Active, AttemptStatus, Ended, Unknown
from service.cluster.ray_logs import LogReader
from service.domain.job import Job
from service.domain.spec.job import JobSpec
from service.domain.states import Step
from service.errors import (
    AttemptStale,
    DatabaseUnavailable,
    EigenpressError,
)
from service.retrying import retry
from service.settings import Settings
from service.storage.publication import publish
from service.storage.s3 import ObjectStorage
from service.store.store import Store

log = logging.getLogger(__name__)

FILES = ("config.json", "model.safetensors", "report.json")
FILE_BYTES = 2_000

Result = TypeVar("Result")


def contents(spec: JobSpec, target: str) -> dict[str, bytes]:
    """The files of an artifact by name, the job's one expected result."""
    seed = hashlib.sha256(f"{spec.model_dump_json()} {target}".encode()).digest()
    stream = random.Random(seed)
    return {name: stream.randbytes(FILE_BYTES) for name in FILES}


def expected_hashes(spec: JobSpec) -> dict[str, dict[str, str]]:
    """The expected sha256 of every file of every artifact of the job."""
    return {
        target.name: {
            name: hashlib.sha256(data).hexdigest()
            for name, data in contents(spec, target.name).items()
        }
        for target in spec.targets
    }


@dataclass
class _Running:
    thread: threading.Thread
    stopped: threading.Event


class InProcessCluster:
    """Runs attempts as threads of this process. Dispatchers share it.

    `death_rate` is the fraction of attempts that die silently at a random call.
    """

    def __init__(
        self,
        store: Store,
        storage: ObjectStorage,
        settings: Settings,
        *,
        seed: int = 0,
        death_rate: float = 0.0,
        step_seconds: float = 0.0,
    ) -> None:
        self._store = store
        self._storage = storage
        self._settings = settings
        self._random = random.Random(seed)
        self._death_rate = death_rate
        self._step_seconds = step_seconds
        self._lock = threading.Lock()
        self._attempts: dict[tuple[str, int], _Running] = {}
        self.deaths = 0

    def check(self) -> None:
        pass

    def submit(self, job_id: str, attempt: int, name: str | None = None) -> None:  # noqa: ARG002
        with self._lock:
            if (job_id, attempt) in self._attempts:
                return
            stopped = threading.Event()
            thread = threading.Thread(target=self._run, args=(job_id, attempt, stopped))
            thread.daemon = True
            self._attempts[job_id, attempt] = _Running(thread, stopped)
            thread.start()

    def status(self, job_id: str, attempt: int) -> AttemptStatus:
        known = self._attempts.get((job_id, attempt))
        if known is None:
            return Unknown()
        return Active() if known.thread.is_alive() else Ended("SUCCEEDED")

    def stop(self, job_id: str, attempt: int) -> None:
        known = self._attempts.get((job_id, attempt))
        if known is not None:
            known.stopped.set()

    def log_tail(self, job_id: str, attempt: int, lines: int = 30) -> str:  # noqa: ARG002
        return ""

    def logs(self, job_id: str, attempt: int) -> dict[str, LogReader]:  # noqa: ARG002
        return {}

    def forget(self, job_id: str, attempt: int) -> None:
        if not isinstance(self.status(job_id, attempt), Active):
            self._attempts.pop((job_id, attempt), None)

    def join(self) -> None:
        """Wait for every attempt to end."""
        for known in list(self._attempts.values()):
            known.thread.join()

    def _run(self, job_id: str, attempt: int, stopped: threading.Event) -> None:
        with self._lock:
            dies_at = self._random.randrange(20) if self._random.random() < self._death_rate else -1
        try:
            _Attempt(self._store, self._storage, self._settings, stopped, dies_at).run(
                job_id, attempt, self._step_seconds
            )
        except _Died:
            self.deaths += 1
        except (AttemptStale, _Stopped) as error:
            log.info("%s-%d ends: %r", job_id, attempt, error)


class _Died(BaseException):
    """Ends an attempt without a record, as kill -9 does."""


class _Stopped(BaseException):
    """Ends an attempt that the cluster was asked to stop."""


class _Attempt:
    def __init__(
        self,
        store: Store,
        storage: ObjectStorage,
        settings: Settings,
        stopped: threading.Event,
        dies_at: int,
    ) -> None:
        self._store = store
        self._storage = storage
        self._settings = settings
        self._stopped = stopped
        self._dies_at = dies_at
        self._calls = 0

    def run(self, job_id: str, attempt: int, step_seconds: float) -> None:
        job = self._do(lambda: self._store.records.get(job_id))
        if job.attempt != attempt:
            raise AttemptStale
        try:
            self._work(job, step_seconds)
        except AttemptStale:
            raise
        except EigenpressError as error:
            failure, policy = error.failure(), self._settings.retry_policy
            self._do(lambda: self._store.attempts.fail(job_id, attempt, failure, policy))

    def _work(self, job: Job, step_seconds: float) -> None:
        store, key = self._store, (job.id, job.attempt)
        for step in list(Step)[:-1]:
            self._do(lambda: store.attempts.renew(*key, self._settings.lease_seconds))
            self._do(lambda step=step: store.attempts.progress(*key, step, 0, 1, "steps"))  # type: ignore[misc]
            self._stopped.wait(step_seconds)
            self._do(lambda step=step: store.attempts.progress(*key, step, 1, 1, "steps"))  # type: ignore[misc]
        known = {artifact.name for artifact in self._do(lambda: store.records.artifacts(job.id))}
        for position, target in enumerate(job.spec.targets):
            if target.name not in known:
                self._publish(job, position, target.name)
        self._do(lambda: store.attempts.succeed(*key, {"job": job.id}))

    def _publish(self, job: Job, position: int, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for file, data in contents(job.spec, name).items():
                (Path(folder) / file).write_bytes(data)
            artifact = self._do(
                lambda: publish(self._storage, job.id, job.attempt, name, Path(folder))
            )
        self._do(lambda: self._store.attempts.published(job.id, job.attempt, position, artifact))

    def _do(self, act: Callable[[], Result]) -> Result:
        """Make one call with retries; before it, this attempt may die or be stopped."""
        if self._stopped.is_set():
            raise _Stopped
        if self._calls == self._dies_at:
            raise _Died
        self._calls += 1
        return retry(act, on=DatabaseUnavailable, seconds=self._settings.retry_timeout_seconds)
