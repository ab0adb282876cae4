"""``python die_with_parent.py PARENT SIGNAL COMMAND ...``: run a command that dies with PARENT.

PARENT is the process that starts this one; when it dies, Linux sends the signal. Linux does so when
the *thread* that started the process ends, so that thread has to outlive it. On other systems the
command runs without this bond.

Run by its path, not as a module: it imports nothing of the package and costs some milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tied(command: list[str], number: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command line that starts `command` tied to this process."""
    return [sys.executable, "-I", __file__, str(os.getpid()), str(int(number)), *command]


def main(parent: str, number: str, *command: str) -> None:
    """Replace this process by the command."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(number)) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != int(parent):
            sys.exit(1)  # it has died already
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(*sys.argv[1:])
