"""An installation in separate processes, each of which can be killed and restarted.

It consists of an API, two dispatchers, a Ray head with a logical GPU, an S3 server and a database
server. `Installation.restart` does the work of a supervisor.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from service.domain.spec.job import JobSpec
from service.settings import Settings
from service.standalone.ports import LOOPBACK, choose_port
from service.standalone.ray_head import LocalRay
from service.standalone.s3_server import LocalS3
from service.standalone.serve import environment
from service.standalone.subprocesses import is_running
from service.storage.s3 import ObjectStorage
from service.store.migrate import migrate
from service.store.store import Store
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.waiting import wait_until

API, RAY, S3 = "api", "ray", "s3"
DISPATCHERS = ("dispatcher-1", "dispatcher-2")
READY_SECONDS = 120.0

SERVE = ["uvicorn", "--factory", "api.app:create_app", "--host", LOOPBACK]

QUICK: dict[str, Any] = {
    "lease_seconds": 6,
    "start_seconds": 120,
    "retry_first_seconds": 0.5,
    "retry_longest_seconds": 4,
    "retry_timeout_seconds": 120,
    "cleanup_grace_seconds": 2,
    "poll_seconds": 0.2,
    "checkpoint_blocks": 1,
    "checkpoint_share_of_time": 1.0,
    "max_attempts": 10,
    "require_keys": False,
}
"""Settings with which the installation reacts to a kill quickly."""


class Daemon:
    """One process of the installation, in a session of its own."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self._command = [sys.executable, "-m", *command]
        self._env = {**os.environ, **env}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ask it to end, kill it if it does not, and reap it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class Installation:
    """All parts on one database; a context manager that starts and stops them."""

    def __init__(
        self, folder: Path, database_url: str, *, cpus: int = 2, gpus: int = 1, **settings: Any
    ) -> None:
        self.folder = folder
        self.inputs = folder / "inputs"
        self.temporary = folder / "tmp"
        folder.mkdir(exist_ok=True)
        self.s3 = LocalS3(folder / "s3", port=choose_port(0, ""))
        dashboard, self._api_port = choose_port(0, ""), choose_port(0, "")
        values: dict[str, Any] = {
            "data_dir": folder / "data",
            "database_url": database_url,
            "ray_address": f"http://{LOOPBACK}:{dashboard}",
            "s3_endpoint_url": self.s3.endpoint_url,
            "s3_access_key_id": self.s3.access_key_id,
            "s3_secret_access_key": self.s3.secret_access_key,
            "allowed_roots": (self.inputs, *settings.pop("roots", ())),
            "api_port": self._api_port,
        }
        self.settings = Settings(**(values | QUICK | settings))
        self.settings.data_dir.mkdir()
        self.store = Store(database_url)
        self.store.migrate()
        env = process_environment(self.settings, self.temporary)
        self.ray = LocalRay(
            folder / "ray", num_cpus=cpus, num_gpus=gpus, dashboard_port=dashboard, env=env
        )
        logs = folder / "logs"
        self.daemons = {
            name: Daemon(["service.dispatch.dispatcher"], env, logs / f"{name}.log")
            for name in DISPATCHERS
        } | {API: Daemon([*SERVE, "--port", str(self._api_port)], env, logs / "api.log")}

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self._api_port}"

    @property
    def storage(self) -> ObjectStorage:
        return ObjectStorage.from_settings(self.settings)

    def __enter__(self) -> Self:
        with ExitStack() as started:
            started.callback(self.store.close)
            started.enter_context(self.s3)
            started.enter_context(self.ray)
            for daemon in self.daemons.values():
                started.callback(daemon.stop)
                daemon.start()
            self.wait_until_ready()
            self._running = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def wait_until_ready(self) -> None:
        """Wait until the API reports that it is ready."""
        wait_until(self._is_ready, READY_SECONDS)

    def restart(self, part: str) -> None:
        """Restart a dead part, as a supervisor does."""
        if part == RAY:
            self.ray.stop()  # ends the processes of a dead head, as the end of its container would
            self.ray.start()
        elif part == S3:
            self.s3.stop()
            self.s3.start()
        else:
            self.daemons[part].stop()
            self.daemons[part].start()

    def submit(self, spec: JobSpec) -> str:
        """Post a job to the API; return its id."""
        with httpx.Client(trust_env=False, timeout=30) as http:
            answer = http.post(f"{self.api_url}/v1/jobs", json=spec.model_dump(mode="json"))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def _is_ready(self) -> bool:
        with suppress(httpx.TransportError), httpx.Client(trust_env=False, timeout=10) as http:
            return http.get(f"{self.api_url}/readyz").is_success
        return False

    # What belongs to the installation.

    def processes(self) -> list[psutil.Process]:
        """All its processes except the database's, found by their session or environment."""
        mine = []
        head = self.ray.pid
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if is_running(process) and (
                    os.getsid(process.pid) == head or self._is_mine(process)
                ):
                    mine.append(process)
        return mine

    def _is_mine(self, process: psutil.Process) -> bool:
        return bool(process.environ().get("EIGENPRESS_DATA_DIR") == str(self.settings.data_dir))


def tiny_spec(inputs: Path, **changes: Any) -> JobSpec:
    """A job on a tiny Llama; every step takes long enough for a kill."""
    model, texts = inputs / "llama", inputs / "texts"
    if not model.exists():
        inputs.mkdir(exist_ok=True)
        save_tiny_model(
            model,
            tiny_llama_config(hidden_size=96, intermediate_size=224, num_hidden_layers=4),
        )
        texts.mkdir()
        for number in range(60):
            (texts / f"{number}.txt").write_text(f"The number is {number}.\n" * 40)
    body = {
        "name": "chaos",
        "model": {"source": "local", "path": str(model)},
        "calibration": {
            "data": {"source": "local", "path": str(texts)},
            "sequences": 48,
            "sequence_length": 64,
            "batch_size": 2,
        },
        "targets": [{"keep": 0.8}, {"keep": 0.6}],
        "evaluation": {"sequences": 24, "decode_tokens": 0, "curve": [0.9, 0.7, 0.5]},
    }
    return JobSpec.model_validate(body | changes)


@contextmanager
def running_installation(folder: Path, **options: Any) -> Iterator[Installation]:
    """A running installation on a PostgreSQL server of its own."""
    with PostgresServer() as server, Installation(folder, server.url, **options) as made:
        yield made


def process_environment(settings: Settings, temporary: Path) -> dict[str, str]:
    """The environment of every process of an installation, including Ray's."""
    temporary.mkdir(parents=True, exist_ok=True)
    return environment(settings) | {
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


@dataclass(frozen=True)
class ServedApi:
    """An API with only a database and a bucket."""

    url: str
    settings: Settings


@contextmanager
def serving_api(settings: Settings) -> Iterator[ServedApi]:
    """Serve an API until the block ends; create the database if there is none."""
    port = choose_port(0, "")
    migrate(settings.database)
    env = process_environment(settings, settings.data_dir / "tmp")
    daemon = Daemon([*SERVE, "--port", str(port)], env, settings.data_dir / "api.log")
    url = f"http://{LOOPBACK}:{port}"

    def answers() -> bool:
        with suppress(httpx.TransportError), httpx.Client(trust_env=False, timeout=10) as http:
            return http.get(f"{url}/healthz").is_success
        return False

    try:
        daemon.start()
        wait_until(answers, READY_SECONDS)
        yield ServedApi(url, settings)
    finally:
        daemon.stop()
