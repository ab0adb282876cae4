"""Suspends a dispatcher before any of its calls until another one has done its work.

This has the effect of SIGSTOP and SIGCONT at an exact moment: before the call with a given number,
claims expire, the other dispatcher makes its passes, and the job ends.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from service.cluster.ray_jobs import Cluster
from service.dispatch.dispatcher import Dispatcher
from service.domain.job import DEFAULT_TENANT, EventType, Job
from service.domain.states import TERMINAL, JobState
from service.errors import AttemptStale, EigenpressError, InvalidParameter
from service.settings import Settings
from service.store.store import Store
from tests.fixtures.cluster import FakeCluster
from tests.fixtures.jobs import lapse, small_spec
from tests.fixtures.storage import MemoryStorage

CALLS = range(1, 17)
"""As many as two passes make; a test of a number that is never reached is a plain run."""


class Suspending:
    """Passes calls through to `real`; before the one of a given number, something happens."""

    def __init__(self, real: object, before: Callable[[], None]) -> None:
        self._real = real
        self._before = before

    def __getattr__(self, name: str) -> Any:
        act = getattr(self._real, name)
        if not callable(act):  # a side of the store
            return Suspending(act, self._before)

        def call(*args: object, **kwargs: object) -> object:
            self._before()
            return act(*args, **kwargs)

        return call


class World:
    """Two dispatchers over one store, cluster and bucket; the first is suspended once."""

    def __init__(self, store: Store, settings: Settings, suspended_before: int) -> None:
        self.store = store
        self.cluster = FakeCluster()
        self.bucket = MemoryStorage()
        self.started: Counter[str] = Counter()
        self.meanwhile: Callable[[], None] = lambda: None
        self._calls_left = suspended_before
        self._counting = threading.Lock()
        self.suspended = Dispatcher(
            cast(Store, Suspending(store, self._before)),
            cast(Cluster, Suspending(self.cluster, self._before)),
            self.bucket,
            settings,
        )
        self.other = Dispatcher(store, self.cluster, self.bucket, settings)

    def _before(self) -> None:
        with self._counting:
            self._calls_left -= 1
            if self._calls_left == 0:
                self.meanwhile()

    def finish(self, job: Job) -> None:
        """The driver of the attempt on the cluster, if one is there, does its work to the end."""
        for key in self.cluster.active:
            attempt = int(key.rpartition("-")[2])
            try:
                self.store.attempts.renew(job.id, attempt, 60)
                self.store.attempts.succeed(job.id, attempt, {"by": attempt})
            except AttemptStale:
                pass  # as drivers do, it ends without a trace
            self.cluster.end(job.id, attempt)

    def settle(self, job: Job) -> Job:
        """Both dispatchers go on until the job has ended and is cleaned up after."""
        for _ in range(30):
            self.suspended.tick()
            self.other.tick()
            self.finish(job)
            if (
                self.store.records.get(job.id).state in TERMINAL
                and not self.store.claims.to_clean()
            ):
                break
        self.suspended.close()
        self.other.close()
        return self.store.records.get(job.id)


@pytest.fixture(params=CALLS)
def world(request: pytest.FixtureRequest, job_store: Store, tmp_path: Path) -> World:
    settings = Settings(
        cleanup_grace_seconds=0,
        data_dir=tmp_path,
        max_attempts=3,
        retry_first_seconds=0,
        lease_seconds=1,
        checkpoint_retention_seconds=0,
    )
    return World(job_store, settings, request.param)


def ends(store: Store, job: Job) -> list[str]:
    terminal = {EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED}
    return [event.type for event in store.records.events(job.id) if event.type in terminal]


def test_while_it_submits(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    job = world.store.users(DEFAULT_TENANT).create(small_spec())

    def meanwhile() -> None:
        lapse(world.store, job)
        world.other.tick()
        world.finish(job)
        world.other.tick()

    world.meanwhile = meanwhile
    done = world.settle(job)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
    assert ends(world.store, job) == [EventType.SUCCEEDED]
    assert world.cluster.active == []
    assert no_defects(caplog)


def test_while_it_cancels(world: World, caplog: pytest.LogCaptureFixture) -> None:
    job = world.store.users(DEFAULT_TENANT).create(small_spec())
    world.other.tick()
    world.store.users(DEFAULT_TENANT).cancel(job.id)

    def meanwhile() -> None:
        world.other.tick()
        world.other.tick()

    world.meanwhile = meanwhile
    done = world.settle(job)
    assert (done.state, done.attempt) == (JobState.CANCELLED, 1)
    assert ends(world.store, job) == [EventType.CANCELLED]
    assert world.cluster.active == []
    assert no_defects(caplog)


def test_while_it_ends_a_lost_attempt(world: World, caplog: pytest.LogCaptureFixture) -> None:
    job = world.store.users(DEFAULT_TENANT).create(small_spec())
    world.other.tick()
    world.cluster.end(job.id, 1, code=137)

    def meanwhile() -> None:
        world.other.tick()  # which starts the next attempt
        world.other.tick()

    world.meanwhile = meanwhile
    done = world.settle(job)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 2)
    assert world.store.records.report(job.id) == {"by": 2}
    assert world.cluster.active == []
    assert no_defects(caplog)


def test_while_it_cleans_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    job = world.store.users(DEFAULT_TENANT).create(small_spec())
    world.other.tick()
    world.bucket.put_bytes(f"jobs/{job.id}/checkpoints/f/1-0000000a/part", b"of attempt 1")
    world.store.attempts.fail(job.id, 1, InvalidParameter().failure(), Settings().retry_policy)
    world.cluster.end(job.id, 1)
    live = f"jobs/{job.id}/checkpoints/f/2-0000000b/part"
    retried = []

    def meanwhile() -> None:
        retried.append(world.store.users(DEFAULT_TENANT).retry(job.id))
        world.other.tick()
        world.bucket.put_bytes(live, b"of attempt 2")

    world.meanwhile = meanwhile
    world.suspended.tick()
    if retried:
        now = world.store.records.get(job.id)
        assert (now.state, now.attempt) == (JobState.RUNNING, 2)
        assert world.cluster.active == [f"{job.id}-2"]
        assert live in world.bucket.objects
    assert world.settle(job).state in TERMINAL
    assert world.bucket.besides_logs == {}
    assert no_defects(caplog)


def no_defects(caplog: pytest.LogCaptureFixture) -> bool:
    defects = [record for record in caplog.records if record.exc_info]
    return all(isinstance(d.exc_info and d.exc_info[1], EigenpressError) for d in defects)
