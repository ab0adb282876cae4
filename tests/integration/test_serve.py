"""`eigenpress serve` becomes ready, listens on loopback only, and stops cleanly."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.client.answers import Job
from service.client.client import Client
from service.client.credentials import ADDRESS_FILE, ADMIN_KEY_FILE
from service.errors import InfrastructureError
from service.signals import StopRequest
from service.standalone.ports import choose_port
from service.standalone.serve import Installation, ServeOptions
from service.standalone.subprocesses import is_running
from tests.fixtures.listener import listening
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from tests.fixtures.waiting import wait_until

START_SECONDS = 120
STOP_SECONDS = 60
JOB_SECONDS = 240
MARKER = "EIGENPRESS_TEST_MARKER"
"""An environment variable that every process of a server inherits, daemons included."""


@dataclass(frozen=True)
class Server:
    """A running `eigenpress serve`."""

    process: subprocess.Popen[bytes]
    url: str
    data_dir: Path
    temp_dir: Path
    output: Path

    def family(self) -> set[psutil.Process]:
        """The processes of this server that run, wherever they hang in the tree."""
        return {process for process in psutil.process_iter() if self._started(process)}

    @property
    def key(self) -> str:
        return (self.data_dir / ADMIN_KEY_FILE).read_text().strip()

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def _started(self, process: psutil.Process) -> bool:
        """By the environment, or, where a process has overwritten its own, by a path it names."""
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if not is_running(process):
                return False
            root = str(self.data_dir.parent)
            words = [*process.cmdline(), process.environ().get(MARKER, "")]
            return any(root in word for word in words)
        return False


def assert_gone(server: Server, family: set[psutil.Process]) -> None:
    """Neither those that were there nor any that came since, and no files outside the data."""
    left = server.family() | {process for process in family if is_running(process)}
    assert left == set()
    assert list(server.temp_dir.iterdir()) == []


def long_job(folder: Path) -> dict[str, Any]:
    """A job on a tiny model that calibrates for some seconds."""
    save_tiny_model(folder / "llama", tiny_llama_config())
    (folder / "texts").mkdir()
    for number in range(30):
        (folder / "texts" / f"{number}.txt").write_text(f"The number is {number}.\n" * 400)
    return {
        "model": {"source": "local", "path": str(folder / "llama")},
        "calibration": {
            "data": {"source": "local", "path": str(folder / "texts")},
            "sequences": 2000,
            "sequence_length": 32,
        },
        "targets": [{"keep": 0.7}],
        "evaluation": {"sequences": 4, "decode_tokens": 0},
    }


def start(tmp_path: Path, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
    temp_dir = tmp_path / "t"
    temp_dir.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(temp_dir), MARKER: str(tmp_path / "data")}
    del environment["RAY_AUTH_TOKEN"]  # it makes a token of its own
    command = [
        sys.executable,
        "-m",
        "service.cli.main",
        "serve",
        "--data-dir",
        str(tmp_path / "data"),
    ]
    with output.open("wb") as log:
        return subprocess.Popen(
            [*command, "--dashboard-port", "0", "--num-cpus", "1", "--allow", tmp_path, *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Short enough for the Unix sockets that Ray makes below it."""
    with tempfile.TemporaryDirectory(prefix="ep-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def server(short_path: Path) -> Iterator[Server]:
    port = choose_port(0, "")
    output = short_path / "serve.log"
    process = start(short_path, output, "--port", str(port))
    server = Server(
        process, f"http://127.0.0.1:{port}", short_path / "data", short_path / "t", output
    )
    try:
        wait_until_ready(server)
        yield server
    finally:
        for left in server.family():
            left.kill()
        process.wait()


def wait_until_ready(server: Server) -> None:
    def ready_or_ended() -> bool:
        said_so = "Ctrl-C stops everything" in server.output.read_text()
        return said_so or server.process.poll() is not None

    wait_until(ready_or_ended, START_SECONDS)
    assert server.process.poll() is None, server.output.read_text()
    assert httpx.get(f"{server.url}/readyz", trust_env=False, timeout=30).json()["ready"]


def listening_addresses(processes: set[psutil.Process]) -> set[str]:
    return {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    }


def test_it_listens_on_loopback_keeps_its_keys_stays_alone_and_leaves_nothing_behind(
    server: Server,
) -> None:
    family = server.family()
    names = {process.name() for process in family}
    assert {"weed", "raylet", "gcs_server"} <= names
    assert listening_addresses(family) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

    credentials, token = server.data_dir / "s3" / "credentials.json", server.data_dir / "ray/token"
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    key = json.loads(credentials.read_text())["secret_access_key"]
    admin_key = server.data_dir / ADMIN_KEY_FILE
    secrets = ((credentials, key), (token, token.read_text()), (admin_key, server.key))
    for path, secret in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert secret not in server.output.read_text()
        assert all(secret not in " ".join(process.cmdline()) for process in family)

    assert_asks_for_its_key(server, family)
    output = server.output.with_name("second.log")
    second = start(server.output.parent, output, "--port", "0")
    assert second.wait(START_SECONDS) == 1
    assert "Another server runs in" in output.read_text()
    assert server.process.poll() is None

    server.process.send_signal(signal.SIGINT)  # Ctrl-C, pressed twice
    assert server.stop(signal.SIGINT) == 0
    assert_gone(server, family)
    assert "Traceback" not in server.output.read_text()
    assert not (server.data_dir / ADDRESS_FILE).exists()


def assert_asks_for_its_key(server: Server, family: set[psutil.Process]) -> None:
    """The API answers the owner's clients and browser; of its processes it alone has the key."""
    jobs = f"{server.url}/v1/jobs"
    assert httpx.get(jobs, trust_env=False, timeout=30).status_code == 401
    command = [sys.executable, "-m", "service.cli.main", "jobs", "--url", server.url]
    env = os.environ | {"EIGENPRESS_DATA_DIR": str(server.data_dir)}
    assert subprocess.run(command, env=env, check=True, capture_output=True).stderr
    (link,) = re.findall(r"http://\S+/sign-in\?code=\w+", server.output.read_text())
    with httpx.Client(trust_env=False, timeout=30) as browser:
        assert browser.get(link).status_code == 303
        assert browser.get(jobs).status_code == 200
    log = (server.data_dir / "logs" / "api.log").read_text()
    assert "GET /sign-in HTTP" in log
    assert link.partition("code=")[2] not in log
    having = [process for process in family if "EIGENPRESS_ADMIN_KEY" in process.environ()]
    assert [
        " ".join(process.cmdline())
        for process in having
        if "uvicorn" not in " ".join(process.cmdline())
    ] == []


@pytest.mark.parametrize("name", ["weed", "gcs_server"])
def test_a_part_that_dies_stops_the_others(server: Server, name: str) -> None:
    family = server.family()
    (victim,) = (process for process in family if process.name() == name)
    victim.kill()
    assert server.process.wait(STOP_SECONDS) == 1
    assert_gone(server, family)
    _, error, last_words = server.output.read_text().partition("\nError: The ")
    assert error
    assert "has died" in last_words


def test_killed_it_takes_all_with_it_and_the_next_one_finishes_the_job(
    server: Server, short_path: Path
) -> None:
    with Client(server.url, key=server.key) as client:
        job = client.submit(long_job(short_path))["id"]
        wait_until(lambda: calibrates(client.job(job)), JOB_SECONDS)
    family = server.family()
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(map(is_running, family)), STOP_SECONDS)

    port = server.url.rpartition(":")[2]
    process = start(short_path, server.output, "--port", port)
    second = replace(server, process=process)
    wait_until_ready(second)
    with Client(server.url, key=server.key) as client:
        wait_until(lambda: client.job(job)["state"] in ("succeeded", "failed"), JOB_SECONDS)
        ended = client.job(job)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2), ended
    family = second.family()
    assert second.stop(signal.SIGTERM) == 0
    assert_gone(second, family)


def calibrates(job: Job) -> bool:
    assert job["error"] is None, job["error"]
    return any(step["step"] == "calibrate" and step["done"] for step in job["steps"])


def test_the_key_goes_to_no_other_process_that_has_taken_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    installation = Installation(ServeOptions(data_dir=tmp_path / "data", port=0))
    with listening() as other, ExitStack() as running:
        settings = installation.settings.model_copy(update={"api_port": other.port})
        monkeypatch.setattr(installation, "settings", settings)
        installation.start_api(running)
        with pytest.raises(InfrastructureError, match=f"at port {other.port}"):
            installation.wait_until_ready(StopRequest())
    assert other.seen == []


def test_a_stop_while_it_starts_leaves_nothing_behind(short_path: Path) -> None:
    output = short_path / "serve.log"
    process = start(short_path, output, "--port", "0")
    server = Server(process, "", short_path / "data", short_path / "t", output)
    wait_until((server.data_dir / "ray" / "ray.log").exists, START_SECONDS)
    family = server.family()
    assert server.stop(signal.SIGTERM) == 0
    assert_gone(server, family)
    assert "ready" not in output.read_text()
