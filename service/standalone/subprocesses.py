"""Processes of this machine: components that run as children and write to a log file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from service.standalone.die_with_parent import tied

STOP_SECONDS = 15.0

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Child:
    """A process in a session of its own, so that Ctrl-C at the terminal reaches its parent alone.

    A context manager: started on entry; on exit ended, with all of its process group. If its
    parent is killed, so is it.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log_path: Path) -> None:
        """`env` is added to the environment; `log_path` is begun anew."""
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
        """Ask it to end, and wait for `STOP_SECONDS`; then kill what is left in its group."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None


def log_tail(path: Path, lines: int = 20) -> str:
    """The end of a log, without colours, for a message about the one who wrote it."""
    with path.open(errors="replace") as log:
        return _COLOUR.sub("", "".join(deque(log, lines))).rstrip()


def is_running(process: psutil.Process) -> bool:
    """Not so of a zombie, which waits for its parent to notice: some containers' init never does.

    psutil's own `is_running` and `wait` count one as there. The former is also false of what
    `process_iter` remembers of an id that another process has by now, which runs.
    """
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
