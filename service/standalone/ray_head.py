"""A Ray head of our own on this machine, for `eigenpress serve` and the tests.

Everything it listens on is bound to loopback, on free ports, so that several may run side by
side; when it is stopped, none of its processes is left, drivers and workers included. If the
process that started it is killed, Ray's processes end by themselves, and `remove_leftovers` sees
to what could not. All its servers ask for a token: a Jobs API runs commands for whoever reaches it,
and other users of the machine can reach loopback.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import httpx
import psutil

from service.cluster.ray_jobs import (
    TOKEN_MODE,
    TOKEN_PATH_VARIABLE,
    TOKEN_VARIABLE,
    authorization,
)
from service.die_with_parent import tied
from service.errors import ClusterUnavailable
from service.standalone.ports import LOOPBACK, answers, choose_port
from service.standalone.private_files import write_private
from service.standalone.subprocesses import is_running

START_SECONDS = 120.0
"""How long Ray may take until its Jobs API answers; about 8 on two idle cores."""

STOP_SECONDS = 15.0
"""How long Ray may take to stop by itself before its processes are killed."""

LEFT_SECONDS = 5.0
"""How long a process that the head has left may take; a driver takes 3. Some of a head that was
killed, or did not start, ignore being told."""

_MAX_TEMP_CHARACTERS = 30
"""Ray's sockets lie some 75 characters below it, and the system allows 107 (macOS 103) in all."""

_POLL_SECONDS = 0.1
_MARK = "EIGENPRESS_LOCAL_RAY"
_LOG_LINES = 20

_ENVIRONMENT = {
    # The one switch that makes Ray bind all its servers to 127.0.0.1; without it gcs and raylet
    # listen on every interface, whatever the host flags say.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A worker's own children die with it.
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
    # Told to stop, the head would first wait half a minute for its jobs to end by themselves.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}

BOUNDS = {
    # Ray's head would keep records of 100,000 actors and as many calls that have ended.
    "RAY_maximum_gcs_destroyed_actor_cached_count": "200",
    "RAY_task_events_max_num_task_in_gcs": "2000",
    # Ray's agent keeps the counters of every worker that there ever was.
    "RAY_enable_metrics_collection": "false",
}
"""What keeps Ray's memory from growing with every job; the environment may say otherwise."""

WHOLE_LINES = {"RAY_DISABLE_WORKER_LOG_PREFIX": "1", "RAY_DEDUP_LOGS": "0"}
"""With it a worker's line of JSON stays one in the driver's log."""

NOT_FOR_JOBS = (
    "EIGENPRESS_ADMIN_KEY",
    "EIGENPRESS_ENCRYPTION_KEY",
    "EIGENPRESS_METRICS_TOKEN",
)
"""Variables that Ray does not inherit: no driver or worker needs the API, or reads secrets in the
database other than the tenants' credentials."""


class LocalRay:
    """A Ray head with dashboard and Jobs API; a context manager.

    `directory` keeps the log of this start and, while Ray runs, the objects that memory has no
    room for. `env` is what drivers and workers see besides this process's environment. Unset, the
    CPUs and GPUs are the machine's. The token is the one in this process's environment; if there is
    none, it is a file in `directory`, which stays.
    """

    def __init__(
        self,
        directory: Path,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        dashboard_port: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._dashboard_port = dashboard_port
        self._env = dict(env or {})
        self._spilled = directory / "spilled"
        self._session: Path | None = None
        self._head: subprocess.Popen[bytes] | None = None

    @property
    def dashboard_url(self) -> str:
        """Where the dashboard and the Jobs API answer."""
        return f"http://{LOOPBACK}:{self._dashboard_port}"

    @property
    def pid(self) -> int | None:
        """The head's process id; Ray's processes are in its session. None when stopped."""
        return self._head.pid if self._head is not None else None

    @property
    def token_path(self) -> Path:
        """The file with the token, unless this process's environment has one."""
        return self._directory / "token"

    def token_environment(self) -> dict[str, str]:
        """The variables with which clients and Ray's own processes find the token."""
        if os.environ.get(TOKEN_VARIABLE) or os.environ.get(TOKEN_PATH_VARIABLE):
            return dict(TOKEN_MODE)
        if not self.token_path.exists():
            write_private(self.token_path, secrets.token_hex(32))
        return TOKEN_MODE | {TOKEN_PATH_VARIABLE: str(self.token_path)}

    @property
    def log_path(self) -> Path:
        """What `ray start` printed."""
        return self._directory / "ray.log"

    def __enter__(self) -> LocalRay:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start Ray and wait until it takes jobs.

        Raises InvalidParameter if the dashboard's port is taken, InfrastructureError if another
        process takes it meanwhile, and ClusterUnavailable, with the end of Ray's log, if Ray ends
        or takes too long; nothing is left running then.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        # Also checks that no other Ray is there, which would answer in place of ours.
        self._dashboard_port = choose_port(self._dashboard_port, "dashboard_port")
        self._session = Path(tempfile.mkdtemp(prefix="ray-", dir=_socket_room()))
        self._record.write_text(str(self._session))
        with self.log_path.open("wb") as log:
            self._head = subprocess.Popen(
                # Killed, it would leave some of Ray's processes behind for a minute.
                tied(self._command(self._session), signal.SIGTERM),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for `serve`, which stops all in order
            )
        try:
            self._wait_until_ready(self._head, self._session)
        except BaseException:
            self.stop()
            raise

    def is_running(self) -> bool:
        """Whether the head's own process, and so Ray, is still there."""
        return self._head is not None and self._head.poll() is None

    def stop(self) -> None:
        """End every process that this Ray started, politely and then not; may be called again."""
        if self._head is not None:
            # The head takes Ray down in Ray's own order; what is left then was not Ray's to end.
            self._head.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._head.wait(STOP_SECONDS)
            _end(str(self._session), self._head.pid)
            self._head.wait()
            self._head = None
        if self._session is not None:
            self._remove_files(self._session)
            self._session = None

    def remove_leftovers(self) -> None:
        """End and remove what is left of a Ray in this directory whose starter was killed.

        For a caller who knows that no other Ray is meant to run here.
        """
        with contextlib.suppress(FileNotFoundError):
            session = Path(self._record.read_text())
            _end(str(session))
            self._remove_files(session)

    @property
    def _record(self) -> Path:
        """Names the folder of the Ray that runs, for as long as it does."""
        return self._directory / "session"

    def _remove_files(self, session: Path) -> None:
        shutil.rmtree(session, ignore_errors=True)
        shutil.rmtree(self._spilled, ignore_errors=True)
        self._record.unlink(missing_ok=True)

    def _command(self, session: Path) -> list[str]:
        self._spilled.mkdir(exist_ok=True)
        flags: dict[str, object] = {
            "--port": 0,
            "--dashboard-host": LOOPBACK,
            "--dashboard-port": self._dashboard_port,
            # These have fixed defaults, at which a second Ray on the machine would fail.
            "--dashboard-agent-listen-port": 0,
            "--ray-client-server-port": choose_port(0, ""),
            "--min-worker-port": 0,
            "--max-worker-port": 0,
            "--temp-dir": _temp_dir(session),
            "--object-spilling-directory": self._spilled,
        }
        if self._num_cpus is not None:
            flags["--num-cpus"] = self._num_cpus
        if self._num_gpus is not None:
            flags["--num-gpus"] = self._num_gpus
        ray = str(Path(sys.executable).with_name("ray"))
        switches = ["--head", "--block", "--include-dashboard=true", "--disable-usage-stats"]
        return [ray, "start", *switches, *(f"{flag}={value}" for flag, value in flags.items())]

    def _environment(self) -> dict[str, str]:
        # `python` in a driver's command has to be this one, with these packages.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        ports = {
            f"{name}_METRIC_PORT": str(choose_port(0, "")) for name in ("AUTOSCALER", "DASHBOARD")
        }
        # The dashboard leaves temporary files behind: they go with the session's folder.
        session = str(self._session)
        own = {"PATH": path, "TMPDIR": session, _MARK: session}
        inherited = {k: v for k, v in os.environ.items() if k not in NOT_FOR_JOBS}
        in_json = self._env.get("EIGENPRESS_LOG_FORMAT") == "json"
        return {
            **BOUNDS,
            **(WHOLE_LINES if in_json else {}),
            **inherited,
            **self._env,
            **_ENVIRONMENT,
            **self.token_environment(),
            **ports,
            **own,
        }

    def _wait_until_ready(self, process: subprocess.Popen[bytes], session: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        headers = authorization({**os.environ, **self.token_environment()})
        with httpx.Client(
            base_url=self.dashboard_url, headers=headers, trust_env=False, timeout=5.0
        ) as client:
            ours = False
            while not (ours and _takes_jobs(client)):
                ours = ours or answers(
                    self._dashboard_port, lambda: _members(str(session), process.pid)
                )
                if process.poll() is not None:
                    raise ClusterUnavailable(f"Ray ended while starting.\n{self._log_tail()}")
                if time.monotonic() > deadline:
                    raise ClusterUnavailable(
                        f"Ray was not ready after {START_SECONDS:.0f} s.\n{self._log_tail()}"
                    )
                time.sleep(_POLL_SECONDS)

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])


def _takes_jobs(client: httpx.Client) -> bool:
    """Whether the Ray behind the dashboard does."""
    try:
        # The dashboard answers seconds before the head has started its raylet, which runs the jobs.
        nodes = client.get("/api/v0/nodes")
        return client.get("/api/jobs/").is_success and b"ALIVE" in nodes.content
    except httpx.TransportError:
        return False


def _temp_dir(session: Path) -> Path:
    return session / "r"  # which Ray opens to all users; `session` is ours alone


def _socket_room() -> str:
    """A temporary folder with a path so short that Ray's unix sockets find room below it."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _MAX_TEMP_CHARACTERS else "/tmp"  # noqa: S108 - by mkdtemp


def _end(mark: str, session_id: int | None = None) -> None:
    """End the processes of a Ray, politely and then not."""
    number = signal.SIGTERM
    while members := _members(mark, session_id):
        _signal(members, number)
        _wait_for(members)
        number = signal.SIGKILL


def _members(mark: str, session_id: int | None) -> set[psutil.Process]:
    """The processes of a Ray that still run, also where their parents are gone.

    Ray's own stay in the head's session, `session_id`, but overwrite their environment with a
    title; drivers begin sessions of their own, but carry the mark of ours in their environment, as
    do all that they and the workers start. Without a session, which another process may have by
    now, Ray's servers are known by the mark in their arguments; its workers end with them.
    """
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                os.getsid(process.pid) == session_id
                or process.environ().get(_MARK) == mark
                or (session_id is None and any(mark in word for word in process.cmdline()))
            ):
                found.add(process)
    return set(filter(is_running, found))


def _wait_for(processes: Iterable[psutil.Process]) -> None:
    deadline = time.monotonic() + LEFT_SECONDS
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
