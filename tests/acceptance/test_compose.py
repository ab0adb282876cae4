"""The services of docker-compose.yml, started without Docker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file

from tests.fixtures.composition import Composition
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from tests.fixtures.strangers import (
    assert_refuses_clients_with,
    assert_refuses_clients_without_tls,
    listening_ports,
)
from tests.fixtures.waiting import wait_until

CLIENT = "127.0.0.77"
"""An address of this machine that no service has."""
JOB_SECONDS = 240.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is mounted as /inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_model(folder / "llama", tiny_llama_config())
    (folder / "texts").mkdir()
    for number in range(40):
        (folder / "texts" / f"{number}.txt").write_text(f"The number is {number}.\n" * 400)
    return folder


@pytest.fixture(scope="module")
def composition(inputs: Path) -> Iterator[Composition]:
    variables = {
        "EIGENPRESS_INPUTS": str(inputs),
        "EIGENPRESS_S3_PUBLIC_ENDPOINT_URL": "http://seaweedfs:8333",
        "EIGENPRESS_CPU_WORKERS": "2",
        "EIGENPRESS_WORKER_CPUS": "1",
    }
    with Composition(variables) as running:
        yield running


@pytest.fixture(scope="module")
def http(composition: Composition) -> Iterator[httpx.Client]:
    url = f"http://{composition.address('proxy')}:8400"
    key = (composition.secrets / "eigenpress_admin_key").read_text()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30) as client:
        yield client


def eigenpress(http: httpx.Client, *arguments: str) -> str:
    """What the command line prints, at the one address that all replicas have."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli.main", *arguments],
        env=os.environ
        | {
            "EIGENPRESS_URL": str(http.base_url),
            "EIGENPRESS_KEY": http.headers["Authorization"].removeprefix("Bearer "),
        },
        capture_output=True,
        text=True,
        timeout=JOB_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_it_is_ready_and_its_ray_is_guarded(composition: Composition, http: httpx.Client) -> None:
    wait_until(lambda: http.get("/readyz").is_success)
    assert len(composition.replicas["api"]) == len(composition.replicas["dispatcher"]) == 2
    dashboard = f"http://{composition.address('ray-head')}:8265"
    answer = httpx.get(f"{dashboard}/api/jobs/", trust_env=False, timeout=30)
    assert answer.status_code == 401
    jobs = http.base_url.join("/v1/jobs")
    assert httpx.get(jobs, trust_env=False, timeout=30).status_code == 401


def test_the_audit_log_knows_the_client_behind_the_proxy(http: httpx.Client) -> None:
    headers = {"Authorization": http.headers["Authorization"], "X-Forwarded-For": "203.0.113.9"}
    transport = httpx.HTTPTransport(local_address=CLIENT)
    with httpx.Client(transport=transport, headers=headers, base_url=http.base_url) as client:
        client.post("/v1/tenants", json={"name": "audited"}).raise_for_status()
    record, *_ = http.get("/v1/audit").raise_for_status().json()["records"]
    assert (record["action"], record["address"]) == ("create_tenant", CLIENT)


def test_seaweedfs_answers_strangers_on_the_s3_port_alone(composition: Composition) -> None:
    """Its S3 server, and so its gRPC port, listens on all addresses of the container."""
    (server,) = composition.replicas["seaweedfs"]
    assert server.process is not None
    ports = listening_ports(server.process.pid)
    assert {8333, 18333} < ports
    certificate = composition.path("seaweedfs", "/var/lib/seaweedfs/security/certificate.pem")
    for port in ports - {8333}:
        assert_refuses_clients_without_tls(server.address, port)
        assert_refuses_clients_with(None, server.address, port, certificate)


def submit(http: httpx.Client, inputs: Path, workers: int) -> str:
    """Start a job that takes a while to calibrate; its id."""
    job = eigenpress(
        http, "submit", "--model", str(inputs / "llama"), "--data", str(inputs / "texts"),
        "--sequences", "2000", "--sequence-length", "32", "--keep", "0.7",
        "--workers", str(workers),
    )  # fmt: skip
    assert re.fullmatch(r"job-\w+", job)
    wait_until(lambda: calibrates(http, job), JOB_SECONDS)
    assert state(http, job)["state"] == "running"
    return job


def calibrates(http: httpx.Client, job: str) -> bool:
    steps = state(http, job)["steps"]
    return any(step["done"] for step in steps if step["step"] == "calibrate")


def state(http: httpx.Client, job: str) -> dict[str, Any]:
    read: dict[str, Any] = http.get(f"/v1/jobs/{job}").raise_for_status().json()
    assert read["error"] is None, read["error"]
    return read


def test_a_job_outlives_an_api_and_a_dispatcher(
    composition: Composition, http: httpx.Client, inputs: Path, tmp_path: Path
) -> None:
    job = submit(http, inputs, workers=1)
    composition.replicas["api"][0].kill()
    composition.replicas["dispatcher"][0].kill()
    wait_until(lambda: http.get("/healthz").is_success)

    eigenpress(http, "watch", job)
    ended = state(http, job)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
    eigenpress(http, "download", job, "keep-0.7", str(tmp_path / "smaller"))
    (weights,) = (tmp_path / "smaller").glob("*.safetensors")
    assert load_file(weights)


def test_a_job_waits_for_a_machine_that_comes_back(
    composition: Composition, http: httpx.Client, inputs: Path
) -> None:
    job = submit(http, inputs, workers=2)
    machine = composition.replicas["ray-worker"][1]
    machine.kill()
    wait_until(lambda: state(http, job)["attempt"] == 2, JOB_SECONDS)
    composition.start(machine)

    eigenpress(http, "watch", job)
    ended = state(http, job)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    events = http.get(f"/v1/jobs/{job}/events").raise_for_status().json()["events"]
    placed = [event["data"] for event in events if event["type"] == "workers.placed"]
    first, second = (each["placement"] for each in placed)
    assert first == second == {"workers": 2, "cpus": 1, "gpus": 0, "accelerator_type": None}
