"""`service.standalone.processes` with real processes."""

from __future__ import annotations

import subprocess
import sys

import psutil

from service.standalone.processes import is_running
from tests.fixtures.waiting import wait_until


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
