"""`service.standalone.subprocesses` with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import service.standalone.subprocesses
from service.standalone.subprocesses import Child, is_running, log_tail
from tests.fixtures.waiting import wait_until

ROOT = Path(service.standalone.subprocesses.__file__).parents[2]
OBEDIENT = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {OBEDIENT}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); "


def python(code: str, log: Path, **env: str) -> Child:
    return Child([sys.executable, "-c", code], env, log)


def wait_until_up(log: Path, processes: int = 1) -> None:
    wait_until(lambda: log.read_text().count("up") == processes)


@pytest.fixture
def descendants() -> Callable[[], list[psutil.Process]]:
    """The processes that the test has started; this process may have others, for other tests."""
    others = set(psutil.Process().children(recursive=True))
    return lambda: list(set(psutil.Process().children(recursive=True)) - others)


def test_it_runs_until_the_block_is_left(
    tmp_path: Path, descendants: Callable[[], list[psutil.Process]]
) -> None:
    log = tmp_path / "logs" / "child.log"
    with python(OBEDIENT, log) as child:
        wait_until_up(log)
        assert child.is_running()
        (process,) = descendants()
        assert os.getsid(process.pid) == process.pid
    assert not child.is_running()
    assert not process.is_running()


def test_it_sees_the_environment_with_additions(tmp_path: Path) -> None:
    code = "import os; print(os.environ['ADDED'], 'PATH' in os.environ); " + OBEDIENT
    with python(code, tmp_path / "log", ADDED="yes"):
        wait_until_up(tmp_path / "log")
    assert log_tail(tmp_path / "log").splitlines() == ["yes True", "up"]


@pytest.mark.parametrize("code", [STUBBORN, PARENT + STUBBORN, PARENT + OBEDIENT])
def test_what_does_not_end_by_itself_is_killed_children_included(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    descendants: Callable[[], list[psutil.Process]],
    code: str,
) -> None:
    monkeypatch.setattr(service.standalone.subprocesses, "STOP_SECONDS", 0.2)
    log = tmp_path / "log"
    with python(code, log):
        wait_until_up(log, code.count("'up'"))
        processes = descendants()
        assert len(processes) == code.count("'up'")
    wait_until(lambda: not any(map(is_running, processes)), 10)


def test_one_that_has_died_is_not_running_and_its_last_words_are_kept(
    tmp_path: Path, descendants: Callable[[], list[psutil.Process]]
) -> None:
    with python("print('before'); raise SystemExit('why')", tmp_path / "log") as child:
        for process in descendants():
            process.wait(30)
        assert not child.is_running()
    assert log_tail(tmp_path / "log", 1) == "why"


def test_a_log_s_end_is_plain_text(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"first\n\x1b[31mred\x1b[39m\n\xff\n")
    assert log_tail(tmp_path / "log", 2) == "red\n\N{REPLACEMENT CHARACTER}"


def test_it_does_not_outlive_its_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import pathlib, sys, time; from service.standalone.subprocesses import Child; "
        f"Child([sys.executable, '-c', {STUBBORN!r}], {{}}, pathlib.Path({str(log)!r})).__enter__()"
        "; time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)})
    wait_until(lambda: log.exists() and "up" in log.read_text())
    (process,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(process), 10)


def test_neither_a_zombie_nor_what_has_gone_is_running() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    assert is_running(process)
    child.kill()
    wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
    assert not is_running(process)
    child.communicate()
    assert not psutil.pid_exists(child.pid)
    assert not is_running(process)
