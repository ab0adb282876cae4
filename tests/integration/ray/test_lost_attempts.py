"""Drivers are lost on a real Ray in several ways, and each failure names the cause."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from service.cluster.diagnosis import explain
from service.cluster.ray_jobs import RayCluster, Unknown
from service.domain.job import new_job_id
from service.errors import (
    AttemptLost,
    ClusterRestarted,
    DriverKilled,
    DriverStopped,
    EigenpressError,
)
from service.standalone.ray_head import LocalRay
from service.standalone.subprocesses import is_running
from tests.fixtures.cluster import is_active
from tests.fixtures.waiting import wait_until

DRIVER = """
import os, pathlib, signal, sys, time
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("at work", flush=True)
pathlib.Path(sys.argv[2]).write_text(str(os.getpid()))
if sys.argv[1] == "failing":
    sys.exit(5)
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
    assert "exit code 5" in error.detail
    assert "at work" in error.detail


def test_a_driver_that_ignores_being_stopped_is_killed_within_seconds(lost: Lost) -> None:
    with lost.cluster("stubborn") as cluster:
        driver = lost.submit(cluster)
        cluster.stop(lost.job_id, 1)
        wait_until(lambda: not is_active(cluster, lost.job_id, 1), seconds=15)
        wait_until(lambda: not is_running(driver))


def test_a_cluster_that_was_restarted_knows_nothing(tmp_path: Path) -> None:
    with LocalRay(tmp_path / "ray", num_cpus=1) as ray:
        lost = Lost(ray, tmp_path)
        with lost.cluster("obedient") as cluster:
            driver = lost.submit(cluster)
            ray.stop()
            assert not is_running(driver)
            ray.start()
            assert cluster.status(lost.job_id, 1) == Unknown()
            assert type(lost.explain(cluster)) is ClusterRestarted
