"""Runs dispatchers as threads of this process, with jobs for attempts in threads."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from service.cluster.ray_jobs import Cluster
from service.dispatch.dispatcher import Dispatcher
from service.domain.spec.job import JobSpec
from service.domain.states import TERMINAL, JobState
from service.errors import EigenpressError
from service.settings import Settings
from service.signals import StopRequest
from service.storage.s3 import ObjectStorage
from service.store.store import Store
from tests.chaos.background import Background
from tests.chaos.checker import bucket_problems, read_history, violations
from tests.chaos.inprocess import expected_hashes
from tests.fixtures.jobs import small_spec


@dataclass(frozen=True)
class Connections:
    """A separate store and storage, like those of one process of an installation."""

    store: Store
    storage: ObjectStorage

    @classmethod
    def open(cls, settings: Settings, *, patience_seconds: float = 0) -> Connections:
        storage = ObjectStorage.from_settings(settings, patience_seconds=patience_seconds)
        return cls(Store(settings.database), storage)


@contextmanager
def dispatching(
    cluster: Cluster, settings: Settings, each: Sequence[Connections]
) -> Iterator[None]:
    """Run one dispatcher on each of the connections until the block ends."""
    stop = StopRequest()
    with ExitStack() as running:
        for own in each:
            dispatcher = Dispatcher(own.store, cluster, own.storage, settings)
            thread = threading.Thread(target=dispatcher.run, args=(stop,))
            thread.start()
            running.callback(thread.join)
        running.callback(stop.make, signal.SIGTERM)
        yield


def numbered_spec(number: int) -> JobSpec:
    """A job with two artifacts; each number gives a different job."""
    spec = small_spec(f"number-{number}")
    targets = [{"keep": 0.8}, {"keep": 0.6}]
    return JobSpec.model_validate(spec.model_dump() | {"targets": targets})


def all_ended(store: Store, job_ids: Sequence[str]) -> bool:
    return all(store.records.get(job_id).state in TERMINAL for job_id in job_ids)


def problems_of(store: Store, storage: ObjectStorage, job_ids: Sequence[str]) -> list[str]:
    """The problems of these jobs of `numbered_spec`, all of which have ended and been cleaned."""
    found = []
    for job_id in job_ids:
        history = read_history(store, job_id)
        found += violations(history) + bucket_problems(storage, history)
        if history.job.state is not JobState.SUCCEEDED:
            found.append(f"{job_id} is {history.job.state}: {history.job.failure}")
            continue
        published = {
            artifact.name: {file.path: file.sha256 for file in artifact.files}
            for artifact in history.artifacts
        }
        if published != expected_hashes(history.job.spec):
            found.append(f"{job_id} has published unexpected files")
    return found


class Reader(Background):
    """A user who reads every job repeatedly, and checks that published artifacts are whole."""

    def __init__(self, own: Connections, job_ids: Sequence[str]) -> None:
        super().__init__()
        self.reads = 0
        self.problems: list[str] = []
        self._own = own
        self._job_ids = job_ids

    def run(self) -> None:
        while not self.stopped.is_set():
            for job_id in list(self._job_ids):
                try:
                    self._read(job_id)
                except EigenpressError as error:
                    self.problems.append(f"{job_id} cannot be read: {error}")
                if self.stopped.wait(0.02):
                    return

    def _read(self, job_id: str) -> None:
        job = self._own.store.records.get(job_id)
        if job.state is not JobState.SUCCEEDED:
            return
        self.reads += 1
        history = read_history(self._own.store, job_id)
        missing = [
            line for line in bucket_problems(self._own.storage, history) if "left over" not in line
        ]
        self.problems += missing
