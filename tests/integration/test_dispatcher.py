"""The dispatcher as it is deployed: a process of its own, between SQLite, Ray and S3."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.local_ray import LocalRay
from service.local_s3 import LocalS3
from service.ports import choose_port
from service.states import JobState
from service.storage import ObjectStorage
from service.store import Store
from tests.fixtures.jobs import small_spec
from tests.fixtures.storage import s3_settings_for
from tests.fixtures.waiting import wait_until

DRIVER = """
import sys
from service.store import Store
store = Store(sys.argv[1])
job_id, attempt = sys.argv[2], int(sys.argv[3])
if store.get(job_id).name == "well":
    store.succeed(job_id, attempt, {"by": "the driver"})
else:
    print("about to be lost", flush=True)
store.close()
"""


@contextmanager
def dispatching(env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A dispatcher with these settings; killed at the end if it still runs."""
    command = [sys.executable, "-m", "service.dispatcher"]
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
    (tmp_path / "driver.py").write_text(DRIVER)
    url = f"sqlite:///{tmp_path / 'data' / 'eigenpress.db'}"
    return {
        "EIGENPRESS_DATA_DIR": str(tmp_path / "data"),
        "EIGENPRESS_RAY_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
        "EIGENPRESS_DRIVER_COMMAND": f"python {tmp_path / 'driver.py'} {url}",
        "EIGENPRESS_S3_ENDPOINT_URL": local_s3.endpoint_url,
        "EIGENPRESS_S3_ACCESS_KEY_ID": local_s3.access_key_id,
        "EIGENPRESS_S3_SECRET_ACCESS_KEY": local_s3.secret_access_key,
        "EIGENPRESS_MAX_ATTEMPTS": "2",
        "EIGENPRESS_POLL_SECONDS": "0.1",
    }


def test_jobs_wait_for_ray_and_then_end_as_their_drivers_do(
    env: dict[str, str], local_s3: LocalS3, tmp_path: Path, dashboard_port: int
) -> None:
    settings = s3_settings_for(local_s3, tmp_path / "data")
    storage = ObjectStorage.from_settings(settings)
    store = Store(settings.database)
    store.migrate()
    log = tmp_path / "dispatcher.log"
    with dispatching(env, log) as dispatcher:
        well, badly = store.create(small_spec("well")), store.create(small_spec("badly"))
        storage.put_bytes(f"jobs/{badly.id}/checkpoints/left-over", b"half")
        wait_until(lambda: "does not answer" in log.read_text())
        assert store.get(well.id) == well

        with LocalRay(tmp_path / "ray", num_cpus=1, dashboard_port=dashboard_port):
            wait_until(lambda: store.get(well.id).state is JobState.SUCCEEDED)
            assert store.report(well.id) == {"by": "the driver"}
            wait_until(lambda: store.get(badly.id).state is JobState.FAILED)
            wait_until(lambda: not store.to_clean())
        lost = store.get(badly.id)
        assert lost.failure is not None
        assert (lost.failure.code, lost.attempt) == ("attempt_lost", 2)
        assert "about to be lost" in lost.failure.detail
        assert list(storage.list_objects(f"jobs/{badly.id}/")) == []

        dispatcher.send_signal(signal.SIGTERM)
        assert dispatcher.wait(30) == 0
    assert log.read_text().count("WARNING __main__ The Ray cluster") <= 2  # once per outage
    store.close()


def test_a_database_that_cannot_be_opened_is_said_without_a_traceback(
    env: dict[str, str], tmp_path: Path
) -> None:
    env["EIGENPRESS_DATABASE_URL"] = f"sqlite:///{tmp_path}"  # a folder
    log = tmp_path / "dispatcher.log"
    with dispatching(env, log) as dispatcher:
        assert dispatcher.wait(30) == 1
    assert log.read_text().startswith("The dispatcher cannot start: The jobs database")
