"""Two dispatchers work on one PostgreSQL database while it restarts; the drivers are threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from service.cluster.ray_jobs import Active
from service.dispatch.dispatcher import Dispatcher
from service.domain.job import EventType
from service.domain.states import JobState
from service.errors import AttemptStale, DatabaseUnavailable
from service.retrying import retry
from service.settings import Settings
from service.signals import StopRequest
from service.store.listing import JobFilter
from service.store.store import Store
from tests.fixtures.cluster import FakeCluster
from tests.fixtures.jobs import small_spec
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.storage import MemoryStorage
from tests.fixtures.waiting import wait_until

JOBS = 120
RUNNING = 12
LEASE_SECONDS = 5.0
OUTAGE_SECONDS = 120.0


class WorkingCluster(FakeCluster):
    """Its drivers are threads that work for a moment, and ride out an outage as real ones do."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._drivers = ThreadPoolExecutor(RUNNING)
        self._starting = threading.Lock()
        self.started: Counter[str] = Counter()

    def submit(self, job_id: str, attempt: int, name: str | None = None) -> None:
        with self._starting:
            known = f"{job_id}-{attempt}" in self.known
            super().submit(job_id, attempt, name)
            if not known:
                self.started[job_id] += 1
                self._drivers.submit(self._drive, job_id, attempt)

    def _drive(self, job_id: str, attempt: int) -> None:
        def write() -> None:
            self._store.attempts.renew(job_id, attempt, LEASE_SECONDS)
            self._store.attempts.succeed(job_id, attempt, {"by": attempt})

        try:
            retry(write, on=DatabaseUnavailable, seconds=OUTAGE_SECONDS)
        except AttemptStale:
            pass
        finally:
            if self.status(job_id, attempt) == Active():
                self.end(job_id, attempt)

    def close(self) -> None:
        self._drivers.shutdown()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """Its own, to be restarted."""
    with PostgresServer() as server:
        yield server


def test_restarts_of_the_database_lose_no_job(server: PostgresServer, tmp_path: Path) -> None:
    stores = [Store(server.create_database("jobs")), Store(server.url_of("jobs"))]
    stores[0].migrate()
    jobs = [stores[0].users(f"tenant-{n % 3}").create(small_spec()).id for n in range(JOBS)]
    cluster, stop = WorkingCluster(stores[0]), StopRequest()
    settings = Settings(
        data_dir=tmp_path,
        max_running_jobs=RUNNING,
        lease_seconds=LEASE_SECONDS,
        poll_seconds=0.1,
        retry_first_seconds=0,
    )
    threads = []
    for store in stores:
        dispatcher = Dispatcher(store, cluster, MemoryStorage(), settings)
        threads.append(threading.Thread(target=dispatcher.run, args=(stop,)))
        threads[-1].start()

    def done() -> int:
        finished = stores[0].records.list_jobs(JobFilter([JobState.SUCCEEDED]), limit=JOBS)
        return len(finished)

    def reached(share: float) -> bool:
        return done() >= share * JOBS

    try:
        for share, mode in ((0.1, "immediate"), (0.3, "fast"), (0.5, "immediate")):
            wait_until(partial(reached, share), seconds=120)
            server.restart(mode)
        wait_until(lambda: done() == JOBS, seconds=180)
    finally:
        stop.make(15)
        for thread in threads:
            thread.join()
        cluster.close()
    for job in jobs:
        ends = [e for e in stores[0].records.events(job) if e.type == EventType.SUCCEEDED]
        assert len(ends) == 1
        assert stores[0].records.get(job).attempt == cluster.started[job] == 1
    for store in stores:
        store.close()
