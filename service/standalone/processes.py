"""Processes of this machine."""

from __future__ import annotations

import contextlib

import psutil


def is_running(process: psutil.Process) -> bool:
    """Not so of a zombie, which waits for its parent to notice: some containers' init never does.

    psutil's own `is_running` and `wait` count one as there. The former is also false of what
    `process_iter` remembers of an id that another process has by now, which runs.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
