"""Drivers are lost on a real Ray, or refuse to run, and each failure names the cause."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from service.cluster.diagnosis import explain
from service.cluster.ray_jobs import RayCluster, Unknown
from service.domain.job import DEFAULT_TENANT, Job, new_job_id
from service.domain.states import JobState
from service.errors import (
    AttemptLost,
    ClusterRestarted,
    DriverKilled,
    DriverStopped,
    EigenpressError,
    SchemaMismatch,
)
from service.standalone.ray_head import LocalRay
from service.standalone.subprocesses import is_running
from service.store.store import Store
from tests.fixtures.cluster import is_active
from tests.fixtures.installation import Installation
from tests.fixtures.waiting import wait_until

DRIVER = """
import os, pathlib, signal, sys, time
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("at work", flush=True)
pathlib.Path(sys.argv[2]).write_text(str(os.getpid()))
if sys.argv[1] == "failing":
    sys.exit(7)
time.sleep(600)
"""


class Lost:
    """One attempt on Ray, and the processes that it consists of there."""

    def __init__(self, ray: LocalRay, folder: Path) -> None:
        self._ray = ray
        self._pid_path = folder / "pid"
        self._script = folder / "driver.py"
        self._script.write_text(DRIVER)
        self.job_id = new_job_id()

    def cluster(self, behaviour: str) -> RayCluster:
        words = [sys.executable, str(self._script), behaviour, str(self._pid_path)]
        return RayCluster(self._ray.dashboard_url, shlex.join(words))

    def submit(self, cluster: RayCluster) -> psutil.Process:
        """Start the driver; returns its process."""
        cluster.submit(self.job_id, 1)
        wait_until(lambda: self._pid_path.exists() and self._pid_path.read_text())
        return psutil.Process(int(self._pid_path.read_text()))

    def explain(self, cluster: RayCluster) -> EigenpressError:
        wait_until(lambda: not is_active(cluster, self.job_id, 1))
        printed = cluster.log_tail(self.job_id, 1)
        return explain(cluster.status(self.job_id, 1), printed)


@pytest.fixture
def lost(local_ray: LocalRay, tmp_path: Path) -> Lost:
    return Lost(local_ray, tmp_path)


@pytest.fixture
def cluster(lost: Lost) -> Iterator[RayCluster]:
    with lost.cluster("obedient") as cluster:
        yield cluster


def parents(process: psutil.Process, generations: int) -> psutil.Process:
    return process if generations == 0 else parents(process.parent(), generations - 1)


@pytest.mark.parametrize(
    ("kill", "says"),
    [
        (lambda driver: driver.kill(), "SIGKILL"),
        (lambda driver: [parents(driver, 1).kill(), driver.kill()], "at work"),
        (lambda driver: parents(driver, 2).kill(), "worker process has died"),
    ],
    ids=["driver", "driver and its shell", "Ray's watcher"],
)
def test_a_driver_that_is_killed(
    lost: Lost, cluster: RayCluster, kill: Callable[[psutil.Process], object], says: str
) -> None:
    kill(lost.submit(cluster))
    error = lost.explain(cluster)
    assert type(error) is DriverKilled
    assert says in error.detail


def test_a_driver_that_ray_is_told_to_stop(lost: Lost, cluster: RayCluster) -> None:
    lost.submit(cluster)
    cluster.stop(lost.job_id, 1)
    assert type(lost.explain(cluster)) is DriverStopped


def test_a_driver_that_fails_and_does_not_say_so(lost: Lost) -> None:
    with lost.cluster("failing") as cluster:
        cluster.submit(lost.job_id, 1)
        error = lost.explain(cluster)
    assert type(error) is AttemptLost
    assert "exit code 7" in error.detail
    assert "at work" in error.detail


def test_a_driver_that_ignores_being_stopped_is_killed_within_seconds(lost: Lost) -> None:
    with lost.cluster("stubborn") as cluster:
        driver = lost.submit(cluster)
        cluster.stop(lost.job_id, 1)
        wait_until(lambda: not is_active(cluster, lost.job_id, 1), seconds=15)
        wait_until(lambda: not is_running(driver))


def test_a_cluster_that_does_not_know_the_attempt_was_restarted(
    lost: Lost, cluster: RayCluster
) -> None:
    assert cluster.status(lost.job_id, 1) == Unknown()
    assert type(lost.explain(cluster)) is ClusterRestarted


OF_OTHER_CODE = """
import sys
from workers.attempt import driver, pipeline

own_versions = pipeline.own_versions
pipeline.own_versions = lambda: own_versions() | {"code": "0" * 64}
sys.exit(driver.main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[Store]:
    """A database that no dispatcher works on."""
    store = Store(f"sqlite:///{tmp_path / 'own.db'}")
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def claimed(own_store: Store, stopped_installation: Installation) -> Job:
    own_store.users(DEFAULT_TENANT).create(stopped_installation.spec(workers=1))
    job = own_store.claims.claim()
    assert job is not None
    return job


def run_driver(ray: LocalRay, job: Job, database: Path, *words: str) -> EigenpressError:
    """Run the driver of a claimed job to its end, which is explained as a dispatcher would."""
    command = ["env", f"EIGENPRESS_DATABASE_URL=sqlite:///{database}", sys.executable, *words]
    with RayCluster(ray.dashboard_url, shlex.join(command)) as cluster:
        cluster.submit(job.id, 1)
        wait_until(lambda: not is_active(cluster, job.id, 1), seconds=120)
        return explain(cluster.status(job.id, 1), cluster.log_tail(job.id, 1))


def test_a_driver_of_another_version_than_the_workers_fails_the_job(
    local_ray: LocalRay, own_store: Store, claimed: Job, tmp_path: Path
) -> None:
    script = tmp_path / "driver.py"
    script.write_text(OF_OTHER_CODE)
    error = run_driver(local_ray, claimed, tmp_path / "own.db", str(script))
    ended = own_store.records.get(claimed.id)
    assert ended.state is JobState.FAILED, error
    assert ended.failure is not None
    assert ended.failure.code == "version_mismatch", ended.failure
    assert "worker 0 on " in ended.failure.detail
    assert "Ray's head node 00000" in ended.failure.detail


def test_a_driver_of_another_version_than_the_database_leaves_it_alone(
    local_ray: LocalRay, own_store: Store, claimed: Job, tmp_path: Path
) -> None:
    with own_store._database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    error = run_driver(local_ray, claimed, tmp_path / "own.db", "-m", "workers.attempt.driver")
    assert type(error) is SchemaMismatch
    assert "The schema of the jobs database is 9999" in error.detail
    assert own_store.records.get(claimed.id) == claimed
