"""The logs of real drivers and actors, while Ray has them and afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.cluster.ray_jobs import TOKEN_VARIABLE, RayCluster, Unknown
from service.domain.job import DEFAULT_TENANT, Job, new_job_id
from service.domain.states import JobState
from service.errors import LogNotFound
from service.logs.attempt_logs import AttemptLogs, LogPage
from service.logs.kept import read_index
from service.logs.mask import Mask
from service.standalone.ray_head import LocalRay
from service.storage.s3 import ObjectStorage
from tests.fixtures.cluster import is_active
from tests.fixtures.installation import Installation, ended
from tests.fixtures.waiting import wait_until

DRIVER = """
import sys
import ray
attempt = f"{sys.argv[1]}-{sys.argv[2]}"
ray.init(namespace=attempt)

@ray.remote(num_cpus=0)
class Worker:
    def speak(self, number):
        print(f"worker {number} speaks: größer", file=sys.stderr, flush=True)
        print("x" * 100_000, file=sys.stderr, flush=True)

for number in range(2):
    worker = Worker.options(name=f"{attempt}/worker-{number}").remote()
    ray.get(worker.speak.remote(number))
print("the driver speaks", flush=True)
"""


def test_each_process_of_an_attempt_has_its_log(local_ray: LocalRay, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    job_id = new_job_id()
    with RayCluster(local_ray.dashboard_url, f"python {tmp_path / 'driver.py'}") as cluster:
        cluster.submit(job_id, 1)
        wait_until(lambda: not is_active(cluster, job_id, 1), seconds=120)
        logs = cluster.logs(job_id, 1)
        assert sorted(logs) == ["driver", "worker-0", "worker-1"]
        printed = {name: b"".join(read()).decode() for name, read in logs.items()}
        for number in range(2):
            assert f"worker {number} speaks: größer\n" in printed[f"worker-{number}"]
            assert f"worker {1 - number} speaks" not in printed[f"worker-{number}"]
            assert "x" * 100_000 in printed[f"worker-{number}"]
        assert "the driver speaks\n" in printed["driver"]
        cluster.forget(job_id, 1)
        with pytest.raises(LogNotFound):
            b"".join(logs["driver"]())


def whole(logs: AttemptLogs, job: Job, source: str) -> LogPage:
    page = logs.page(job, 1, source, 0, 2**20)
    assert page.complete
    return page


def test_the_logs_of_a_job_outlive_its_records_on_ray_and_hold_no_secret(
    running_installation: Installation, local_ray: LocalRay
) -> None:
    installation = running_installation
    settings = installation.settings
    job = installation.store.users(DEFAULT_TENANT).create(installation.spec(workers=2))
    storage = ObjectStorage.from_settings(settings)
    with RayCluster(settings.ray_address, settings.driver_command) as cluster:
        logs = AttemptLogs(cluster, storage, Mask.of(settings))
        running = installation.wait_for(job, lambda job: job.attempt and job.steps)
        if running.state is JobState.RUNNING:
            assert "driver" in logs.page(running, 1, "driver", 0, 1024).sources
        job = installation.wait_for(job, ended)
        assert job.state is JobState.SUCCEEDED, job.failure
        wait_until(lambda: read_index(storage, job.id, 1))
        wait_until(lambda: cluster.status(job.id, 1) == Unknown())
        driver = whole(logs, job, "driver")
        assert driver.sources == ("driver", "worker-0", "worker-1")
        assert f"Running entrypoint for job {job.id}-1" in driver.text
        assert whole(logs, job, "worker-1").missing is None

    # As the processes wrote them, not masked.
    folder = Path(str(local_ray._session)) / "r" / "session_latest" / "logs"
    (log,) = folder.glob(f"job-driver-{job.id}-1.log")
    written = [log, *folder.glob("worker-*")]
    assert len(written) >= 3
    everything = b"".join(file.read_bytes() for file in written)
    keys = (installation.s3.access_key_id, installation.s3.secret_access_key)
    for secret in (*keys, os.environ[TOKEN_VARIABLE]):
        assert secret.encode() not in everything
    assert b"X-Amz-Signature" not in everything
    assert log.read_bytes().decode().startswith(driver.text)
