"""The Ray client passes the cluster's contract tests against a real Ray."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service.cluster import ray_jobs as cluster_module
from service.cluster.ray_jobs import RayCluster, authorization, submission_id
from service.domain.job import new_job_id
from service.errors import ClusterUnavailable
from service.standalone.ray_head import LocalRay
from tests.fixtures.cluster import PRINTED, ClusterContract, is_active
from tests.fixtures.waiting import wait_until

SLEEPING = "import time; time.sleep(600)"
PRINTING = f"print({chr(10).join(PRINTED)!r})"


def python(code: str) -> str:
    """A driver's command; job id and attempt follow as arguments."""
    return shlex.join([sys.executable, "-c", code])


def connected(local_ray: LocalRay, code: str) -> Iterator[RayCluster]:
    with RayCluster(local_ray.dashboard_url, python(code)) as cluster:
        yield cluster


class TestRayCluster(ClusterContract):
    @pytest.fixture
    def running(self, local_ray: LocalRay) -> Iterator[RayCluster]:
        yield from connected(local_ray, SLEEPING)

    @pytest.fixture
    def ending(self, local_ray: LocalRay) -> Iterator[RayCluster]:
        yield from connected(local_ray, PRINTING)

    @pytest.fixture
    def unreachable(self) -> Iterator[RayCluster]:
        with socket.socket() as taken:  # bound, and nobody listens
            taken.bind(("127.0.0.1", 0))
            with RayCluster(f"http://127.0.0.1:{taken.getsockname()[1]}", "true") as cluster:
                yield cluster


def test_a_dashboard_that_hangs_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "READ_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            RayCluster(url, "true") as cluster,
            pytest.raises(ClusterUnavailable, match="timed out"),
        ):
            cluster.check()


def test_a_driver_gets_its_ids(local_ray: LocalRay, tmp_path: Path) -> None:
    out = tmp_path / "seen.json"
    code = f"import sys, json; open({str(out)!r}, 'w').write(json.dumps(sys.argv[1:]))"
    job_id = new_job_id()
    with RayCluster(local_ray.dashboard_url, python(code)) as cluster:
        cluster.submit(job_id, 3, "named")
        wait_until(lambda: not is_active(cluster, job_id, 3))
    assert json.loads(out.read_text()) == [job_id, "3"]


def test_the_dashboard_shows_which_job_it_is(local_ray: LocalRay) -> None:
    job_id = new_job_id()
    with RayCluster(local_ray.dashboard_url, python("")) as cluster:
        cluster.submit(job_id, 1, "named")
        path = f"{cluster.dashboard_url}/api/jobs/{submission_id(job_id, 1)}"
        shown = httpx.get(path, headers=authorization(), trust_env=False, timeout=30).json()
    assert shown["metadata"]["job_name"] == "named"
    assert shown["metadata"]["eigenpress_job"] == job_id
    assert shown["metadata"]["eigenpress_attempt"] == "1"


def test_the_dashboard_says_which_machines_there_are(local_ray: LocalRay) -> None:
    with RayCluster(local_ray.dashboard_url, python("")) as cluster:
        # The machine's agent reports its sizes a moment after the machine has joined.
        wait_until(lambda: all(each.memory_bytes for each in cluster.machines()))
        (machine,) = cluster.machines()
    assert machine.resources["CPU"] == 2
    assert "GPU" not in machine.resources
    assert (machine.accelerator_type, machine.gpu_bytes) == (None, None)
    assert 0 < (machine.memory_bytes or 0) <= psutil.virtual_memory().total  # of a container less
    assert machine.disk_bytes in {shutil.disk_usage(each).total for each in ("/", "/tmp")}
