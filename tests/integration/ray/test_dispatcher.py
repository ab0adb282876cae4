"""The dispatcher as deployed: a separate process with a database, Ray and S3."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from service.domain.job import DEFAULT_TENANT, EventType, Job
from service.domain.manifest import checkpoints_prefix
from service.domain.states import JobState
from service.settings import Settings
from service.standalone.ports import choose_port
from service.standalone.ray_head import LocalRay
from service.standalone.s3_server import LocalS3
from service.standalone.subprocesses import is_running
from service.storage.s3 import ObjectStorage
from service.store.store import Store
from tests.fixtures.jobs import small_spec
from tests.fixtures.waiting import wait_until

DRIVER = """
import os, pathlib, sys, time
from service.store.store import Store
store = Store(sys.argv[1])
job_id, attempt = sys.argv[3], int(sys.argv[4])
name = store.records.get(job_id).name
if name == "badly":
    print("about to be lost", flush=True)
elif name == "slowly" and attempt == 1:
    store.attempts.renew(job_id, attempt, 60)
    pid = pathlib.Path(sys.argv[2], job_id)
    pid.with_suffix(".tmp").write_text(str(os.getpid()))
    pid.with_suffix(".tmp").rename(pid)
    time.sleep(600)
else:
    store.attempts.succeed(job_id, attempt, {"by": "the driver"})
store.close()
"""


@contextmanager
def dispatching(env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A dispatcher with these settings; killed at the end if it still runs."""
    command = [sys.executable, "-m", "service.dispatch.dispatcher"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=os.environ | env, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def dashboard_port() -> int:
    return choose_port(0, "")


@pytest.fixture
def env(local_s3: LocalS3, tmp_path: Path, dashboard_port: int) -> dict[str, str]:
    return {
        "EIGENPRESS_DATA_DIR": str(tmp_path / "data"),
        "EIGENPRESS_RAY_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
        **working_on(f"sqlite:///{tmp_path / 'data' / 'eigenpress.db'}", tmp_path),
        "EIGENPRESS_S3_ENDPOINT_URL": local_s3.endpoint_url,
        "EIGENPRESS_S3_ACCESS_KEY_ID": local_s3.access_key_id,
        "EIGENPRESS_S3_SECRET_ACCESS_KEY": local_s3.secret_access_key,
        "EIGENPRESS_MAX_ATTEMPTS": "2",
        "EIGENPRESS_MAX_RUNNING_JOBS": "2",
        "EIGENPRESS_RETRY_FIRST_SECONDS": "0",
        "EIGENPRESS_CHECKPOINT_RETENTION_SECONDS": "0",
        "EIGENPRESS_POLL_SECONDS": "0.1",
        "EIGENPRESS_CLEANUP_GRACE_SECONDS": "1",
    }


def working_on(database_url: str, folder: Path) -> dict[str, str]:
    """What makes dispatchers and drivers use that database."""
    script = folder / "driver.py"
    script.write_text(DRIVER)
    return {
        "EIGENPRESS_DATABASE_URL": database_url,
        "EIGENPRESS_DRIVER_COMMAND": f"python {script} {database_url} {folder}",
    }


@pytest.fixture
def store(s3_settings: Settings) -> Iterator[Store]:
    store = Store(s3_settings.database)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def ray(tmp_path: Path, dashboard_port: int) -> Iterator[LocalRay]:
    with LocalRay(tmp_path / "ray", num_cpus=1, dashboard_port=dashboard_port) as ray:
        yield ray


def test_jobs_wait_for_ray_and_then_end_as_their_drivers_do(
    env: dict[str, str], storage: ObjectStorage, store: Store, tmp_path: Path, dashboard_port: int
) -> None:
    log = tmp_path / "dispatcher.log"
    with dispatching(env, log) as dispatcher:
        well, badly = (
            store.users(DEFAULT_TENANT).create(small_spec("well")),
            store.users(DEFAULT_TENANT).create(small_spec("badly")),
        )
        storage.put_bytes(f"jobs/{badly.id}/checkpoints/left-over", b"half")
        wait_until(lambda: "does not answer" in log.read_text())
        assert store.records.get(well.id) == well

        with LocalRay(tmp_path / "ray", num_cpus=1, dashboard_port=dashboard_port):
            wait_until(lambda: store.records.get(well.id).state is JobState.SUCCEEDED)
            assert store.records.report(well.id) == {"by": "the driver"}
            wait_until(lambda: store.records.get(badly.id).state is JobState.FAILED)
            wait_until(lambda: not list(storage.list_objects(checkpoints_prefix(badly.id))))
        lost = store.records.get(badly.id)
        assert lost.failure is not None
        assert (lost.failure.code, lost.attempt) == ("attempt_lost", 2)
        assert "about to be lost" in lost.failure.detail

        dispatcher.send_signal(signal.SIGTERM)
        assert dispatcher.wait(30) == 0
    assert (
        log.read_text().count("WARNING service.dispatch.dispatcher The Ray cluster") <= 2
    )  # once per outage


def started(store: Store, job: Job, folder: Path) -> int:
    """Wait for the driver of a slow job's first attempt; its process id."""
    wait_until(lambda: (folder / job.id).exists() and store.records.get(job.id).submitted_at)
    return int((folder / job.id).read_text())


def why_retried(store: Store, job: Job) -> list[str]:
    events = store.records.events(job.id)
    return [event.data["code"] for event in events if event.type == EventType.RETRIED]


def test_a_killed_driver_and_a_restarted_ray_cost_an_attempt(
    env: dict[str, str], store: Store, tmp_path: Path, ray: LocalRay
) -> None:
    with dispatching(env, tmp_path / "dispatcher.log"):
        killed = store.users(DEFAULT_TENANT).create(small_spec("slowly"))
        os.kill(started(store, killed, tmp_path), signal.SIGKILL)
        wait_until(lambda: store.records.get(killed.id).state is JobState.SUCCEEDED)
        assert why_retried(store, killed) == ["driver_killed"]

        restarted = store.users(DEFAULT_TENANT).create(small_spec("slowly"))
        started(store, restarted, tmp_path)
        ray.stop()
        ray.start()
        wait_until(lambda: store.records.get(restarted.id).state is JobState.SUCCEEDED)
        assert why_retried(store, restarted) == ["cluster_restarted"]
        assert store.records.get(restarted.id).attempt == 2


def test_a_running_job_is_cancelled_within_seconds(
    env: dict[str, str], store: Store, tmp_path: Path, local_ray: LocalRay
) -> None:
    env["EIGENPRESS_RAY_ADDRESS"] = local_ray.dashboard_url
    with dispatching(env, tmp_path / "dispatcher.log"):
        job = store.users(DEFAULT_TENANT).create(small_spec("slowly"))
        driver = psutil.Process(started(store, job, tmp_path))
        store.users(DEFAULT_TENANT).cancel(job.id)
        wait_until(lambda: store.records.get(job.id).state is JobState.CANCELLED, seconds=15)
        wait_until(lambda: not is_running(driver), seconds=15)


def test_of_two_dispatchers_one_may_be_killed_or_suspended(
    env: dict[str, str], postgres_url: str, tmp_path: Path, local_ray: LocalRay
) -> None:
    """On PostgreSQL: on SQLite, one that is suspended in a write holds up the other."""
    env["EIGENPRESS_RAY_ADDRESS"] = local_ray.dashboard_url
    env |= working_on(postgres_url, tmp_path)
    with (
        closing(Store(postgres_url)) as store,
        dispatching(env, tmp_path / "one.log") as one,
        dispatching(env, tmp_path / "other.log") as other,
    ):
        jobs = [store.users(DEFAULT_TENANT).create(small_spec("well")) for _ in range(8)]

        def done() -> int:
            return sum(store.records.get(job.id).state is JobState.SUCCEEDED for job in jobs)

        wait_until(lambda: done() > 0)
        one.send_signal(signal.SIGSTOP)
        wait_until(lambda: done() > 4, 120)  # one may have to be taken over
        one.send_signal(signal.SIGCONT)
        other.kill()
        wait_until(lambda: done() == len(jobs), 120)
        assert {store.records.get(job.id).attempt for job in jobs} == {1}


def test_a_database_that_cannot_be_opened_is_said_without_a_traceback(
    env: dict[str, str], tmp_path: Path
) -> None:
    env["EIGENPRESS_DATABASE_URL"] = f"sqlite:///{tmp_path}"  # a folder
    log = tmp_path / "dispatcher.log"
    with dispatching(env, log) as dispatcher:
        assert dispatcher.wait(30) == 1
    (line,) = log.read_text().splitlines()
    assert "CRITICAL" in line
    assert "The dispatcher cannot start: The jobs database" in line
