"""Processes of this machine: components that run as children and write to a log file."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from service.die_with_parent import tied
from service.printable import uncoloured

STOP_SECONDS = 15.0


class Child:
    """A process in a session of its own, so that Ctrl-C at the terminal reaches its parent alone.

    A context manager: it starts the process on entry and ends it, with its process group, on exit.
    If the parent is killed, so is the process.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log_path: Path) -> None:
        """`env` is added to the environment; `log_path` is overwritten."""
        self._command = list(command)
        self._env = {**os.environ, **env}
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                tied(self._command),
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Terminate it, wait up to `STOP_SECONDS`, then kill the rest of its process group."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def pid(self) -> int | None:
        """The process's id; None before it was started."""
        return None if self._process is None else self._process.pid

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None


def log_tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, without colours, for an error message."""
    with path.open(errors="replace") as log:
        return uncoloured("".join(deque(log, lines))).rstrip()


def is_running(process: psutil.Process) -> bool:
    """Whether the process runs. A zombie does not, although some containers' init never reaps it.

    psutil's own `is_running` and `wait` count zombies as running. Its `is_running` is also false
    for a process from `process_iter` whose id now belongs to another process that runs.
    """
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
