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

from service.domain.job import DEFAULT_TENANT
from service.domain.spec import Limits
from service.domain.states import JobState
from service.settings import Settings
from service.standalone.ports import LOOPBACK, choose_port
from service.store.store import Store
from tests.fixtures.jobs import small_spec
from tests.fixtures.waiting import wait_until

STOP_SECONDS = 60
FORGED = "%0A2026-01-01%20INFO%20forged"
"""A line, in a path."""

WORKER = """
import sys
from service.domain.spec import JobSpec
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
