"""Runs `eigenpress serve` as a child process on free ports, and stops it with all its children."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from service.client.credentials import ADMIN_KEY_FILE
from service.domain.sign_in import sign_in_code
from service.standalone.ports import LOOPBACK, choose_port
from service.standalone.subprocesses import is_running, log_tail

START_SECONDS = 180
STOP_SECONDS = 60
EXIT_SECONDS = 5
"""The time for its children to end after the server itself has ended."""
POLL_SECONDS = 0.5


class ServerFailed(Exception):
    """The server did not start, or did not stop cleanly."""


@dataclass(frozen=True)
class Server:
    """The addresses of the running server."""

    url: str
    dashboard_url: str
    token_path: Path
    """The file with the dashboard's token."""
    key_path: Path
    """The file with the administrator's key, from the first start on."""

    @property
    def key(self) -> str:
        return self.key_path.read_text().strip()

    @property
    def sign_in_url(self) -> str:
        """A link that signs the owner's browser in."""
        return f"{self.url}/sign-in?code={sign_in_code(self.key)}"


@contextmanager
def serving(command: Sequence[str], data_dir: Path, allowed: Sequence[Path]) -> Iterator[Server]:
    """Run `eigenpress serve` (`command`) until the block ends; the server is ready when it begins.

    The server's output goes to ``serve.log`` in the data folder.

    Raises:
        ServerFailed: it is not ready in time, or leaves processes behind.
    """
    port, dashboard_port = choose_port(0, "--port"), choose_port(0, "--dashboard-port")
    here = Server(
        f"http://{LOOPBACK}:{port}",
        f"http://{LOOPBACK}:{dashboard_port}",
        data_dir / "ray" / "token",
        data_dir / ADMIN_KEY_FILE,
    )
    log = data_dir / "serve.log"
    arguments = [*command, "--data-dir", str(data_dir)]
    arguments += ["--port", str(port), "--dashboard-port", str(dashboard_port)]
    arguments += [word for folder in allowed for word in ("--allow", str(folder))]
    with log.open("wb") as output:
        # In a session of its own it gets no Ctrl-C; the demo does, and then stops the server.
        server = subprocess.Popen(
            arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_ready(server, here.url, log)
        yield here
    except BaseException as error:
        for problem in _stop(server):
            error.add_note(problem)
        raise
    if problems := _stop(server):
        raise ServerFailed("; ".join(problems))


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(trust_env=False, timeout=10) as http:
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise ServerFailed(f"the server ended at once:\n{log_tail(log)}")
            with suppress(httpx.TransportError):
                if http.get(f"{url}/readyz").is_success:
                    return
            time.sleep(POLL_SECONDS)
    raise ServerFailed(f"the server is not ready after {START_SECONDS} s:\n{log_tail(log)}")


def _stop(server: subprocess.Popen[bytes]) -> list[str]:
    """Stop the server and kill the processes that outlive it; return what went wrong."""
    processes = _family(server.pid)
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
    _, processes = psutil.wait_procs(processes, timeout=EXIT_SECONDS)
    remaining = [name for process in processes if (name := _kill(process))]
    problems = [f"the server left these running: {', '.join(remaining)}"] if remaining else []
    if server.wait():
        problems.append(f"the server ended with status {server.returncode}")
    return problems


def _kill(process: psutil.Process) -> str | None:
    """Kill the process and return its name; None if it had already ended."""
    try:
        if not is_running(process):
            return None
        name = process.name()
        process.kill()
        with suppress(psutil.TimeoutExpired):
            process.wait(EXIT_SECONDS)
    except psutil.NoSuchProcess:
        return None
    return str(name)


def _family(pid: int) -> list[psutil.Process]:
    """The process and all its descendants; none if it has already ended."""
    try:
        server = psutil.Process(pid)
        return [server, *server.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
