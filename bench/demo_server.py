"""`eigenpress serve` as a child of the demo: started on free ports, stopped without remains."""

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

from service.standalone.ports import LOOPBACK, choose_port
from service.standalone.subprocesses import is_running, log_tail

START_SECONDS = 180
STOP_SECONDS = 60
EXIT_SECONDS = 5
"""What its children have left to end once the server itself is gone."""
POLL_SECONDS = 0.5


class ServerFailed(Exception):
    """The server did not start, or did not stop as it should."""


@dataclass(frozen=True)
class Server:
    """Where the running server is."""

    url: str
    dashboard_url: str


@contextmanager
def serving(command: Sequence[str], data_dir: Path, allowed: Sequence[Path]) -> Iterator[Server]:
    """Run `eigenpress serve` (the words of `command`) until the block ends; ready when it begins.

    What the server prints goes to ``serve.log`` in the data folder.

    Raises:
        ServerFailed: it is not ready in time, or leaves processes behind.
    """
    port, dashboard_port = choose_port(0, "--port"), choose_port(0, "--dashboard-port")
    here = Server(f"http://{LOOPBACK}:{port}", f"http://{LOOPBACK}:{dashboard_port}")
    log = data_dir / "serve.log"
    arguments = [*command, "--data-dir", str(data_dir)]
    arguments += ["--port", str(port), "--dashboard-port", str(dashboard_port)]
    arguments += [word for folder in allowed for word in ("--allow", str(folder))]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches the demo alone, which then stops the server.
        server = subprocess.Popen(
            arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_ready(server, here.url, log)
        yield here
    except BaseException as error:
        for complaint in _stop(server):
            error.add_note(complaint)
        raise
    if complaints := _stop(server):
        raise ServerFailed("; ".join(complaints))


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
    """Ask the server to stop, end by force what outlives it, and tell what was not as it should."""
    processes = _family(server.pid)
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)
    _, processes = psutil.wait_procs(processes, timeout=EXIT_SECONDS)
    remaining = [name for process in processes if (name := _kill(process))]
    complaints = [f"the server left these running: {', '.join(remaining)}"] if remaining else []
    if server.wait():
        complaints.append(f"the server ended with status {server.returncode}")
    return complaints


def _kill(process: psutil.Process) -> str | None:
    """The name of the process, killed; None if it had ended already."""
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
    """The process and everything below it; nothing, if it is gone already."""
    try:
        server = psutil.Process(pid)
        return [server, *server.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
