"""Runs programs that a model wrote in a process that can only compute.

The process has an empty environment, no input, no output, a session of its own, and limits on
processor time, memory and open files. It can read Python and the system's libraries, but no other
file. It cannot write files, open sockets, start processes or threads, or signal others:
`workers.evaluation.confined` gives up these rights before it runs the program. No program runs if
the kernel lacks the means (Linux 5.13 with Landlock and seccomp, on x86_64 or aarch64).

A program can still use the processor until its time is over, see names and sizes of files, exploit
a defect of the kernel, or forge its own verdict by manipulating the interpreter that runs it.
"""

from __future__ import annotations

import json
import math
import secrets
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from service.errors import SandboxUnavailable

TOKEN_BYTES = 16
MAX_REASON_BYTES = 500
CHECK_SECONDS = 60.0
CHECK_MEMORY_BYTES = 2**30
CONFINED = Path(__file__).with_name("confined.py")


@dataclass(frozen=True)
class Limits:
    """The limits of one program."""

    seconds: float  # of wall time, including the interpreter's start
    memory_bytes: int  # of address space, including the interpreter's


def passes(program: str, limits: Limits) -> bool:
    """Whether a Python program runs to its end without an error within its limits.

    It leaves no process and no file behind. Raises SandboxUnavailable, without running the program,
    if the process could not be confined.
    """
    token = secrets.token_hex(TOKEN_BYTES)
    request = {
        "token": token,
        "program": program,
        "cpu_seconds": math.ceil(limits.seconds) + 1,
        "memory_bytes": limits.memory_bytes,
    }
    with tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(request).encode())
        stdin.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(CONFINED)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
    with process:
        try:
            process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()  # it cannot have started another
        # The output is read only now, so a program that floods its pipe blocks when it is full.
        verdict, unconfined = process.communicate()
    if unconfined:  # stderr is closed once the process is confined
        reason = unconfined[:MAX_REASON_BYTES].decode(errors="replace")
        raise SandboxUnavailable(f"Programs cannot be confined on this machine: {reason}")
    return process.returncode == 0 and verdict == token.encode()


def check_sandbox() -> None:
    """Raise SandboxUnavailable unless programs can be confined on this machine."""
    if not passes("", Limits(CHECK_SECONDS, CHECK_MEMORY_BYTES)):
        raise SandboxUnavailable("An empty program fails in the sandbox of this machine.")
