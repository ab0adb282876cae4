"""What each process of an installation really writes: one object a line, with its fields."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cluster.ray_jobs import RayCluster
from service.domain.job import DEFAULT_TENANT
from service.domain.spec.job import Limits
from service.domain.states import JobState, Step
from service.log_lines import bound
from service.logs.attempt_logs import AttemptLogs
from service.logs.kept import read_index
from service.logs.mask import Mask
from service.settings import Settings
from service.standalone.ports import LOOPBACK, choose_port
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage
from service.store.store import Store
from tests.fixtures.installation import Installation, ended
from tests.fixtures.jobs import small_spec
from tests.fixtures.waiting import wait_until

STOP_SECONDS = 60
OF_RAY = (
    ":job_id:",
    ":actor_name:",
    "job_manager.py",
    "Running entrypoint",
    "The driver's exit code",
)
"""What Ray and the shell of a driver add to logs."""
FORGED = "%0A2026-01-01%20INFO%20forged"
"""A line, in a path."""

WORKER = """
import sys
from service.domain.spec.job import JobSpec
from service.domain.tenant import EVERY_PLACE
from workers.actors.interface import Worker

spec = JobSpec.model_validate_json(sys.argv[1])
fields = {"job": "job-1", "attempt": 2, "actor": "driver", "request_id": "r-1"}
worker = Worker(spec, "job-1-2", 3, 1, 0, EVERY_PLACE, fields)
worker.worker = None
try:
    worker.load()
except Exception:
    pass
"""
"""The process of an actor, in which a call has a defect; Ray is not needed for that."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    ours = {
        "EIGENPRESS_DATA_DIR": str(tmp_path),
        "EIGENPRESS_LOG_FORMAT": "json",
        "EIGENPRESS_RAY_ADDRESS": f"http://{LOOPBACK}:1",
        "EIGENPRESS_S3_ENDPOINT_URL": f"http://{LOOPBACK}:1",
        "EIGENPRESS_S3_ACCESS_KEY_ID": "id",
        "EIGENPRESS_S3_SECRET_ACCESS_KEY": "canary",
    }
    return os.environ | ours


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(Settings(data_dir=tmp_path).database)
    store.migrate()
    yield store
    store.close()


@contextmanager
def running(arguments: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A process of ours; SIGTERM ends it."""
    with log.open("wb") as file:
        command = [sys.executable, "-m", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)


def lines(log: Path) -> list[dict[str, Any]]:
    """Those of a log, each of which is an object with the fields of every line."""
    found: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"timestamp", "level", "logger", "message"} <= set(line) for line in found)
    return found


def test_of_the_api(tmp_path: Path, store: Store, environment: dict[str, str]) -> None:  # noqa: ARG001
    port, log = choose_port(0, "test"), tmp_path / "api.log"
    api = ["service.cli.main", "api", "--port", str(port)]
    url = f"http://{LOOPBACK}:{port}"
    with running(api, environment, log), httpx.Client(base_url=url, trust_env=False) as http:

        def answers() -> bool:
            try:
                return http.get("/healthz").is_success
            except httpx.TransportError:
                return False

        wait_until(answers, seconds=60)
        http.get(f"/v1/jobs/{FORGED}", headers={"X-Request-ID": "r-1"})
        http.get("/readyz", headers={"X-Request-ID": "r-2"})
    written = lines(log)
    assert {line["actor"] for line in written} == {"api"}
    assert "Application startup complete." in [line["message"] for line in written]
    (asked,) = [line for line in written if line.get("request_id") == "r-1"]
    assert asked["logger"] == "uvicorn.access"
    assert asked["message"].endswith(f'"GET /v1/jobs/{FORGED} HTTP/1.1" 404')
    assert [line for line in written if line.get("request_id") == "r-2"]


def test_of_the_dispatcher(tmp_path: Path, store: Store, environment: dict[str, str]) -> None:
    log = tmp_path / "dispatcher.log"
    soon = small_spec().model_copy(update={"limits": Limits(queue_seconds=1)})
    job = store.users(DEFAULT_TENANT).create(soon)
    with running(["service.dispatch.dispatcher"], environment, log):
        wait_until(lambda: store.records.get(job.id).state is JobState.FAILED, seconds=60)
        wait_until(lambda: job.id in log.read_text())
    written = lines(log)
    assert {line["actor"] for line in written} == {"dispatcher"}
    (late,) = [line for line in written if line.get("job") == job.id]
    assert "attempt" not in late
    assert any("The Ray cluster: " in line["message"] for line in written)


def test_of_a_driver(tmp_path: Path, store: Store, environment: dict[str, str]) -> None:
    job, log = store.users(DEFAULT_TENANT).create(small_spec()), tmp_path / "driver.log"
    with running(["workers.attempt.driver", job.id, "1"], environment, log):
        wait_until(log.read_text, seconds=60)  # that the attempt is not current
    (line,) = lines(log)
    assert (line["job"], line["attempt"], line["actor"]) == (job.id, 1, "driver")
    assert line["level"] == "WARNING"


def test_of_a_worker(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", WORKER, small_spec().model_dump_json()]
    ended = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert ended.stdout == b""
    started, failed = map(json.loads, ended.stderr.splitlines())
    for line in (started, failed):
        fields = {name: line[name] for name in ("job", "attempt", "actor", "request_id")}
        assert fields == {"job": "job-1", "attempt": 2, "actor": "worker-3", "request_id": "r-1"}
    assert (failed["level"], failed["message"]) == ("ERROR", "load failed")
    assert "AttributeError" in failed["exc_info"]


def test_of_a_job_on_ray(tmp_path: Path, local_s3: LocalS3) -> None:
    installation = Installation(tmp_path, local_s3, log_format="json")
    settings, users = installation.settings, installation.store.users(DEFAULT_TENANT)
    with installation.ray(num_cpus=2), installation.dispatching():
        with bound(request_id="r-1"):
            job = users.create(installation.spec())
        job = installation.wait_for(job, ended)
        assert job.state is JobState.SUCCEEDED, job.failure
        storage = ObjectStorage.from_settings(settings)
        wait_until(lambda: read_index(storage, job.id, 1))
        with RayCluster(settings.ray_address, settings.driver_command) as cluster:
            logs = AttemptLogs(cluster, storage, Mask.of(settings))
            text = {
                source: logs.page(job, 1, source, 0, 2**20).text
                for source in ("driver", "worker-0")
            }
    lines_of = {source: each.splitlines() for source, each in text.items()}
    others = [line for each in lines_of.values() for line in each if not line.startswith("{")]
    assert [line for line in others if not any(word in line for word in OF_RAY)] == []
    written = {
        source: [json.loads(line) for line in each if line.startswith("{")]
        for source, each in lines_of.items()
    }
    for line in (*written["driver"], *written["worker-0"]):
        assert (line["job"], line["attempt"], line["request_id"]) == (job.id, 1, "r-1")
    assert {line["actor"] for line in written["driver"]} == {"driver", "worker-0"}
    assert {line["actor"] for line in written["worker-0"]} == {"worker-0"}
    begun = [line["message"] for line in written["driver"] if "begins" in line["message"]]
    steps = [step for step in Step if step is not Step.RECOVER]
    assert begun == ["The attempt begins", *(f"Step {step} begins" for step in steps)]
