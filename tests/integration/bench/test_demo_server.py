"""The demo starts and stops its server; small scripts stand in for `eigenpress serve`."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import psutil
import pytest

from bench import demo_server
from bench.demo_server import ServerFailed, serving
from service.standalone.subprocesses import is_running

READY = """
import signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

def stop(*_):
    sys.exit(STATUS)

signal.signal(signal.SIGTERM, stop)
if ORPHAN:
    orphan = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    print("orphan", orphan.pid, flush=True)
port = int(sys.argv[sys.argv.index("--port") + 1])
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def script(*, status: int = 0, orphan: bool = False) -> list[str]:
    return [sys.executable, "-c", f"STATUS, ORPHAN = {status}, {orphan}\n{READY}"]


def test_the_server_is_ready_inside_the_block_and_gone_after_it(tmp_path: Path) -> None:
    with serving(script(), tmp_path, [tmp_path]) as server:
        assert httpx.get(f"{server.url}/readyz", trust_env=False).is_success

    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/readyz", trust_env=False)


def test_a_server_that_ends_while_starting_is_reported_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no bucket today')"]

    with pytest.raises(ServerFailed, match="no bucket today"), serving(command, tmp_path, []):
        pytest.fail("it never was ready")


def test_a_server_that_is_never_ready_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_server, "START_SECONDS", 0)

    with pytest.raises(ServerFailed, match="not ready after 0 s"), serving(script(), tmp_path, []):
        pytest.fail("it never was ready")


def test_a_server_that_ends_badly_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="status 3"), serving(script(status=3), tmp_path, []):
        pass


def test_a_process_left_behind_is_ended_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_server, "EXIT_SECONDS", 0.1)

    with (
        pytest.raises(ServerFailed, match="left these running: python"),
        serving(script(orphan=True), tmp_path, []),
    ):
        pass

    pid = int((tmp_path / "serve.log").read_text().split()[1])
    assert not psutil.pid_exists(pid) or not is_running(psutil.Process(pid))


def test_a_failure_inside_the_block_stays_the_one_that_is_seen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine") as caught, serving(script(status=3), tmp_path, []):
        raise ValueError("mine")

    assert caught.value.__notes__ == ["the server ended with status 3"]
